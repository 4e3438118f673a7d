"""Invariant 9 for shards: damage is detected and loses only the rows of the shard; a full disk leaves no partial file."""

import errno

import pytest
import torch
from feature_rows import KEY, feature_key, hashes, one_shard, reopened, shards_of, values, written
from safetensors.torch import save_file

import ftlit.features.shard
from ftlit.errors import UserError
from ftlit.features.shard import Damaged, no_space, read_shard
from ftlit.features.store import Store
from ftlit.features.table import Rows, Writer


def check_detected_or_equal(tmp_path, path):
    """Return whether the damage is detected; if not, the rows must be unchanged."""
    table, messages = reopened(tmp_path)
    if not messages:
        assert Rows(table, hashes(*range(4))).read(range(4)).equal(values(range(4)))
        return False
    assert (
        len(messages) == 1
        and messages[0].startswith(f"removed damaged features, which are computed again when needed: {path} (")
        and "\n" not in messages[0]
    )
    assert not path.exists() and table.missing(hashes(*range(4))).tolist() == [0, 1, 2, 3]
    written(table, range(4))
    assert reopened(tmp_path)[1] == []
    return True


@pytest.mark.parametrize("mask", [0x01, 0x20, 0xFF])
def test_a_changed_byte_in_a_shard_is_detected_or_changes_no_value(tmp_path, mask):
    path = one_shard(tmp_path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    detected = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
        found = check_detected_or_equal(tmp_path, path)
        detected += found
        assert found or at < header, f"a changed value at byte {at} is not detected"
        path.write_bytes(whole)
    assert detected > 0.9 * len(whole)


def test_a_truncated_shard_is_detected(tmp_path):
    path = one_shard(tmp_path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert check_detected_or_equal(tmp_path, path)


def test_a_shard_with_extra_bytes_or_zeros_is_detected(tmp_path):
    path = one_shard(tmp_path)
    whole = path.read_bytes()
    for content in (whole + b"\0", whole + whole, bytes(len(whole)), whole[:-64] + bytes(64), b"\n" + whole):
        path.write_bytes(content)
        assert check_detected_or_equal(tmp_path, path)


@pytest.mark.parametrize(("shape", "dtype"), [((4,), torch.float32), ((5,), torch.float16), ((5, 1), torch.float32), ((), torch.float32)])
def test_a_shard_of_another_shape_or_dtype_is_detected(tmp_path, shape, dtype):
    other = written(Store(tmp_path / "other").table(feature_key(shape=shape, dtype=dtype)), range(4)).shards[0].path
    folder = Store(tmp_path).table(feature_key()).folder
    other.rename(path := folder / other.name)
    assert check_detected_or_equal(tmp_path, path)


@pytest.mark.parametrize(
    "tensors", [{"features": torch.zeros(4, 5)}, {"images": torch.zeros(4, 32, dtype=torch.uint8)},
                {"features": torch.zeros(4, 5), "images": torch.zeros(3, 32, dtype=torch.uint8)},
                {"features": torch.tensor(1.0), "images": torch.zeros(1, 32, dtype=torch.uint8)},
                {"features": torch.zeros(4, 5), "images": torch.zeros(4, 32, dtype=torch.uint8)}],
)  # fmt: skip
def test_a_file_that_is_not_a_shard_is_detected(tmp_path, tensors):
    path = Store(tmp_path).table(feature_key()).folder / "a.safetensors"
    save_file(tensors, path)
    with pytest.raises(Damaged):
        read_shard(path)
    assert check_detected_or_equal(tmp_path, path)


def test_a_damaged_shard_loses_only_its_rows(tmp_path):
    with shards_of(4):
        table = written(Store(tmp_path).table(feature_key()), range(12))
    path = table.shards[1].path
    lost = [n for n in range(12) if hashes(n)[0] in table.shards[1].images]
    path.write_bytes(path.read_bytes()[:-1])
    again, messages = reopened(tmp_path)
    assert len(messages) == 1 and str(path) in messages[0]
    assert again.missing(hashes(*range(12))).tolist() == lost and len(lost) == 4
    assert Rows(written(again, lost), hashes(*range(12))).read(range(12)).equal(values(range(12)))


def test_without_checksums_only_the_structure_is_checked(tmp_path):
    path = one_shard(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    table = Store(tmp_path).table(feature_key())
    table.refresh(check=False)
    assert len(table.shards) == 1
    path.write_bytes(whole[:-1])
    with pytest.warns(UserWarning, match="damaged"):
        Store(tmp_path).table(feature_key()).refresh(check=False)


FULL = [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded")]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_the_error_for_a_full_disk_gives_a_remedy_and_earlier_shards_are_kept(tmp_path, monkeypatch, error):
    table = written(Store(tmp_path).table(feature_key()), range(4))

    def full(source, target):
        raise error

    monkeypatch.setattr(ftlit.features.shard.os, "replace", full)
    writer = Writer(table)
    writer.add(hashes(7, 8), values([7, 8]))
    line = rf"^features need 40 B more in .*/{KEY}, but the disk is full, or your quota is used up: use a folder on another disk \(cache"
    with pytest.raises(UserError, match=line) as raised:
        writer.flush()
    assert "\n" not in str(raised.value) and not list(tmp_path.glob("*/*.part"))
    monkeypatch.undo()
    again, messages = reopened(tmp_path)
    assert messages == [] and again.missing(hashes(0, 1, 2, 3, 7)).tolist() == [4]
    writer.flush()
    again.refresh()
    assert Rows(again, hashes(7, 8)).read([0, 1]).equal(values([7, 8]))


def test_another_disk_error_gives_a_remedy_and_leaves_no_partial_file(tmp_path, monkeypatch):
    def broken(source, target):
        raise OSError(errno.EIO, "Input/output error")

    writer = Writer(Store(tmp_path).table(feature_key()))
    monkeypatch.setattr(ftlit.features.shard.os, "replace", broken)
    writer.add(hashes(7), values([7]))
    with pytest.raises(
        UserError, match=r"cannot write features in .* \(Input/output error\): make the file or folder accessible, use another folder"
    ):
        writer.flush()
    assert not list(tmp_path.glob("*/*.part"))


def test_the_error_for_a_shard_that_cannot_be_opened_names_it(tmp_path):
    path = one_shard(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"cannot read .* \(.*\): make the file or folder accessible, use another folder") as caught:
        Store(tmp_path).table(feature_key()).refresh()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_error_for_a_full_disk_supports_a_missing_folder(tmp_path):
    assert str(no_space(tmp_path / "a" / "b", 10**18)).startswith(f"features need 1e+09 GB more in {tmp_path / 'a' / 'b'}, but only ")
