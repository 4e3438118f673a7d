"""Invariant 9 for the files of a run: a changed byte of anything that is read again is an error that names the file, or has no effect."""

import json
import os
import random
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from ftlit.errors import UserError
from ftlit.files import WriteError
from ftlit.formats import DamagedFile, read_json, write_json
from ftlit.recipes.resuming.yaml_file import load_yaml, write_yaml
from ftlit.tensor_files import load_checkpoint, read_tensors, save_checkpoint, weights_only, write_tensors

CONTENT = {"val/accuracy": 0.91, "names": ["ä", "b"], "nested": {"a": None, "b": [1, 2.5, True]}, "missing": float("nan")}
YAML = "seed: 0\ndata:\n  root: photos\n  batch_size: 64\nbackbone:\n  name: résnet\n"


def same(a, b) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def one_line_that_names(path: Path, error: BaseException) -> bool:
    return str(path) in str(error) and "\n" not in str(error)


def flips(size: int, most: int = 400):
    places = range(size) if size <= most else sorted(random.Random(0).sample(range(size), most))
    return [(place, 1 << place % 8) for place in places]


def test_a_flipped_bit_anywhere_in_a_json_file_is_noticed_or_changes_no_value(tmp_path):
    path = tmp_path / "result.json"
    for content in (CONTENT, [CONTENT, CONTENT]):
        write_json(path, content)
        whole, noticed = path.read_bytes(), 0
        assert same(read_json(path), content)
        for place, mask in flips(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
            try:
                found = read_json(path)
                values = [{k: v for k, v in entry.items() if k in CONTENT} for entry in (found if isinstance(found, list) else [found])]
                assert all(same(entry, CONTENT) for entry in values), place
            except UserError as error:
                assert one_line_that_names(path, error)
                noticed += 1
        assert noticed > len(whole) / 2


@pytest.mark.parametrize("text", [b"", b"{", b"\x93\x00", b"3", b"null", b'"x"', b"[1]", b"[" * 100_000, b"9" * 5000])
def test_a_file_that_is_no_json_is_named_with_a_remedy(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_bytes(text)
    with pytest.raises(DamagedFile, match="remove it, or run again") as caught:
        read_json(path, remedy="remove it, or run again")
    assert one_line_that_names(path, caught.value)


def test_a_file_that_is_missing_is_not_to_be_removed(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "file.json")
    for name in ("link.json", "file.json"):
        with pytest.raises(UserError) as caught:
            read_json(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name} is missing, or is a link to a file that is missing: restore it"


def test_a_file_without_a_checksum_is_read_as_it_is(tmp_path):
    path = tmp_path / "result.json"
    path.write_text('{"format": 1, "a": 2}')
    assert read_json(path) == {"a": 2}


def test_a_flipped_bit_anywhere_in_a_yaml_file_is_noticed_or_changes_no_value(tmp_path):
    path = tmp_path / "config.yaml"
    write_yaml(path, YAML)
    whole, config = path.read_bytes(), load_yaml(path, remedy="begin anew")
    assert config.data.batch_size == 64 and "checksum" not in config
    for place, mask in flips(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
        try:
            found = load_yaml(path, remedy="begin anew")
            assert {name: found[name] for name in config} == config, place
        except DamagedFile as error:
            assert one_line_that_names(path, error) and str(error).endswith("begin anew")
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(DamagedFile):
            load_yaml(path, remedy="")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize("text", [BOMB, "", "a: [", "- 1\n- 2\n", "word", "x: !!python/object:os.system ls\n", "a: 1\na: 2\n", "\x93\0"])
def test_a_file_that_is_no_config_is_named_at_once(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(DamagedFile) as caught:
        load_yaml(path, remedy="begin anew")
    assert one_line_that_names(path, caught.value)


def network() -> dict:
    torch.manual_seed(0)
    return {"state_dict": nn.Linear(20, 30).state_dict(), "epoch": 3, "names": ["a", "b"], "rates": {"lr": 0.1}}


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_noticed_or_changes_no_value(tmp_path):
    path = tmp_path / "best.ckpt"
    save_checkpoint(network(), path)
    whole, noticed = path.read_bytes(), 0
    assert equal(load_checkpoint(path), network())
    for place, mask in flips(len(whole), most=1500):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
        try:
            assert equal(load_checkpoint(path), network()), place
        except Exception as error:
            noticed += 1
            assert not isinstance(error, AssertionError)
    assert noticed > 1000


def test_the_line_for_a_flipped_weight_names_the_file(tmp_path):
    path = tmp_path / "best.ckpt"
    save_checkpoint(network(), path)
    whole = bytearray(path.read_bytes())
    place = whole.index(network()["state_dict"]["weight"].numpy().tobytes())
    whole[place + 2] ^= 0x40
    path.write_bytes(whole)
    assert torch.load(path, weights_only=True)  # torch does not notice
    with pytest.raises(DamagedFile, match="is damaged") as caught:
        load_checkpoint(path)
    assert one_line_that_names(path, caught.value)


def test_checkpoints_of_other_programs_load(tmp_path):
    old, plain = tmp_path / "old.pth", tmp_path / "plain.pth"
    torch.save(network(), old, _use_new_zipfile_serialization=False)
    torch.save(network(), plain)
    assert equal(load_checkpoint(old), network()) and equal(load_checkpoint(plain), network())


def test_a_checkpoint_that_was_written_without_checksums_loads(tmp_path):
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(network(), tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert equal(load_checkpoint(tmp_path / "x.pth"), network())


def test_an_archive_with_compressed_parts_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 1_000_000)
    with pytest.raises(DamagedFile, match="is compressed"):
        load_checkpoint(tmp_path / "x.ckpt")


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_no_environment_variable_lets_a_checkpoint_execute_code(tmp_path, monkeypatch, capsys):
    torch.save({"a": Evil()}, tmp_path / "evil.ckpt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(Exception, match="Weights only load failed"):
        load_checkpoint(tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"), weights_only():
        torch.load(tmp_path / "evil.ckpt")
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "executed" not in capsys.readouterr().out


def test_a_flipped_bit_anywhere_in_a_file_of_tensors_is_noticed_or_changes_no_value(tmp_path):
    path, tensors = tmp_path / "x.safetensors", {"a": torch.arange(12.0).view(3, 4), "b": torch.tensor([True, False])}
    write_tensors(path, tensors, {"captions": "x"})
    whole = path.read_bytes()
    assert equal(read_tensors(path)[0], tensors) and read_tensors(path)[1] == {"captions": "x"}
    for place, mask in flips(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
        try:
            assert equal(read_tensors(path)[0], tensors), place
        except Exception as error:
            assert not isinstance(error, AssertionError)


@pytest.mark.parametrize(
    ("first", "raised"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "full"), WriteError), (None, RuntimeError)]
)
def test_an_interruption_or_a_full_disk_is_not_hidden_by_the_writer_that_it_stops(tmp_path, monkeypatch, first, raised):
    def save(content, file):
        try:
            file.write(b"half")
            if first:
                raise first
        finally:
            raise RuntimeError("unexpected pos 3517504 vs 3517392")  # as torch's writer at its end

    monkeypatch.setattr(torch, "save", save)
    path = tmp_path / "last.ckpt"
    path.write_text("old")
    with pytest.raises(raised) as caught:
        save_checkpoint({}, path)
    assert caught.value.__cause__ is not caught.value
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
