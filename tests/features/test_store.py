"""Rows come back to the bit, or are missing: whatever is killed, cut off, damaged or full."""

import errno
import multiprocessing
import os
import random
import re
import signal
import time
import warnings
from contextlib import contextmanager, nullcontext
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import ftlit.features.shard
import ftlit.features.store
import ftlit.features.table
from ftlit.cli import cache
from ftlit.errors import UserError
from ftlit.features.keys import DTYPE_OF
from ftlit.features.shard import Damaged, no_space, read_shard
from ftlit.features.spec import HASH_DTYPE
from ftlit.features.store import Store
from ftlit.features.table import FeatureKey, FeatureTable, Rows, Writer
from ftlit.formatting import size_in_words

FORK = multiprocessing.get_context("fork")  # a process that starts in milliseconds
SHAPES = {"vector": (5,), "map": (3, 2, 4), "tokens": (4, 3), "number": ()}


def hashes(*numbers: int) -> np.ndarray:
    return np.array([blake2b(str(n).encode(), digest_size=16).hexdigest() for n in numbers], HASH_DTYPE)


def row(number: int, shape=(5,), dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(number)).to(dtype)


def values(numbers, shape=(5,), dtype=torch.float32) -> torch.Tensor:
    return torch.stack([row(n, shape, dtype) for n in numbers]) if len(numbers) else torch.empty(0, *shape, dtype=dtype)


@pytest.fixture(autouse=True)
def short_keys(monkeypatch):
    monkeypatch.setattr(ftlit.features.store, "DIGEST", re.compile("[a-z]|other"))


def feature_key(digest="k", shape=(5,), dtype=torch.float32) -> FeatureKey:
    return FeatureKey(digest, dtype, shape, {"cut": "layer4", "of": digest})


def written(table: FeatureTable, numbers, step: int = 4) -> FeatureTable:
    writer = Writer(table)
    for begin in range(0, len(numbers), step):
        some = numbers[begin : begin + step]
        writer.add(hashes(*some), values(some, table.shape, table.dtype))
    writer.flush()
    table.refresh()
    return table


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@contextmanager
def shards_of(rows: int):
    before, ftlit.features.table.SHARD_BYTES = ftlit.features.table.SHARD_BYTES, 20 * rows
    try:
        yield
    finally:
        ftlit.features.table.SHARD_BYTES = before


# --- rows


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", DTYPE_OF.values(), ids=DTYPE_OF)
def test_rows_come_back_to_the_bit_in_this_process_and_the_next(tmp_path, dtype, shape):
    features = values(range(9), shape, dtype)
    features[0], features[1], features[2] = float("nan"), float("-inf"), -0.0
    table = Store(tmp_path).table(feature_key("k", shape, dtype))
    writer = Writer(table)
    writer.add(hashes(*range(9)), features)
    writer.flush()
    for one in (table, Store(tmp_path).table(feature_key("k", shape, dtype))):
        one.refresh()
        read = Rows(one, hashes(*range(9))).read(range(9))
        assert (read.dtype, read.shape, bits(read)) == (dtype, features.shape, bits(features))


def test_rows_are_cast_to_the_dtype_of_the_table_and_taken_from_any_memory(tmp_path):
    table = Store(tmp_path).table(feature_key("k", (3, 2, 4), torch.float16))
    features = values(range(4), (3, 2, 4))
    writer = Writer(table)
    writer.add(hashes(*range(4)), features.to(memory_format=torch.channels_last))
    writer.flush()
    table.refresh()
    assert Rows(table, hashes(*range(4))).read(range(4)).equal(features.half())


@given(
    per_shard=st.integers(1, 12), step=st.integers(1, 7), n=st.integers(1, 25), data=st.data(),
)  # fmt: skip
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_in_any_order_from_any_number_of_shards_equal_those_of_a_table(tmp_path_factory, per_shard, step, n, data):
    order = data.draw(st.permutations(range(n)))
    places = data.draw(st.lists(st.integers(0, n - 1), max_size=30))
    with shards_of(per_shard):
        table = written(Store(tmp_path_factory.mktemp("s")).table(feature_key()), order, step)
    assert sum(len(shard.images) for shard in table.shards) == n
    assert len(table.shards) >= -(-n // max(per_shard, step))
    rows = Rows(table, hashes(*range(n)))
    assert len(rows) == n and rows.row_bytes == 20
    assert rows.read(places).equal(values(range(n))[places] if places else torch.empty(0, 5))
    assert rows.read(np.array(places, int)).equal(rows.read(places))


def test_rows_may_be_asked_for_several_times_and_there_may_be_none(tmp_path):
    table = written(Store(tmp_path).table(feature_key()), range(6))
    assert Rows(table, hashes(3, 3, 0, 3)).read([0, 1, 2, 3]).equal(values([3, 3, 0, 3]))
    none = Rows(table, hashes())
    assert len(none) == 0 and none.read([]).shape == (0, 5)


def test_what_is_read_is_a_copy_and_outlives_the_files(tmp_path):
    table = written(Store(tmp_path).table(feature_key()), range(6))
    rows = Rows(table, hashes(*range(6)))
    rows.read([0])[:] = 7
    for shard in table.shards:
        shard.path.unlink()
    assert rows.read(range(6)).equal(values(range(6)))


@given(held=st.sets(st.integers(0, 12)), asked=st.lists(st.integers(0, 12), max_size=20))
@settings(max_examples=40)
def test_missing_names_each_lacking_image_once_where_it_first_comes(tmp_path_factory, held, asked):
    table = written(Store(tmp_path_factory.mktemp("s")).table(feature_key()), sorted(held))
    first = [place for place, number in enumerate(asked) if number not in held and number not in asked[:place]]
    assert table.missing(hashes(*asked)).tolist() == first
    shards, places = table.find(hashes(*asked))
    for number, shard, place in zip(asked, shards, places, strict=True):
        assert (shard >= 0) == (place >= 0) == (number in held)
        assert number not in held or table.shards[shard].features[place].equal(row(number))


def test_a_row_written_twice_is_there_once(tmp_path):
    table = written(Store(tmp_path).table(feature_key()), range(4))
    written(table, range(2, 6))
    written(Store(tmp_path).table(feature_key()), range(4))
    assert Rows(table, hashes(*range(6))).read(range(6)).equal(values(range(6)))
    assert len(list(table.folder.glob("*.safetensors"))) == 2


def test_what_another_process_wrote_is_found_by_looking_again(tmp_path):
    mine, others = (Store(tmp_path).table(feature_key()) for _ in range(2))
    written(mine, range(3))
    written(others, range(3, 5))
    assert mine.missing(hashes(*range(5))).tolist() == [3, 4]
    mine.refresh()
    assert not len(mine.missing(hashes(*range(5)))) and len(mine.shards) == 2


def test_a_shard_is_written_when_there_is_enough_and_when_it_took_long(tmp_path, monkeypatch):
    def files():
        return len(list(tmp_path.glob("k/*.safetensors")))

    table = Store(tmp_path).table(feature_key())
    with shards_of(4):
        writer = Writer(table)
        seen = []
        for number in range(9):
            writer.add(hashes(number), values([number]))
            seen.append(files())
        assert seen == [0, 0, 0, 0, 1, 1, 1, 1, 2]
        writer.flush()
        writer.flush()
        assert files() == 3
    monkeypatch.setattr(ftlit.features.table, "SHARD_SECONDS", -1.0)
    writer = Writer(table)
    writer.add(hashes(20), values([20]))
    assert files() == 4


def test_a_batch_larger_than_a_shard_is_one_shard(tmp_path):
    with shards_of(2):
        table = written(Store(tmp_path).table(feature_key()), range(11), step=7)
    assert sorted(len(shard.images) for shard in table.shards) == [4, 7]
    assert Rows(table, hashes(*range(11))).read(range(11)).equal(values(range(11)))


# --- damage


def one_shard(tmp_path):
    table = written(Store(tmp_path).table(feature_key()), range(4))
    return table.shards[0].path


def reopened(tmp_path):
    """The table as a new process reads it, and the warnings."""
    table = Store(tmp_path).table(feature_key())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table.refresh()
    return table, [str(warning.message) for warning in caught]


def check_noticed_or_equal(tmp_path, path):
    table, messages = reopened(tmp_path)
    if not messages:
        assert Rows(table, hashes(*range(4))).read(range(4)).equal(values(range(4)))
        return False
    assert (
        len(messages) == 1
        and messages[0].startswith(f"stored features are damaged and removed, and computed again when they are needed: {path} (")
        and "\n" not in messages[0]
    )
    assert not path.exists() and table.missing(hashes(*range(4))).tolist() == [0, 1, 2, 3]
    written(table, range(4))
    assert reopened(tmp_path)[1] == []
    return True


@pytest.mark.parametrize("mask", [0x01, 0x20, 0xFF])
def test_a_changed_byte_anywhere_in_a_shard_is_noticed_or_changes_no_value(tmp_path, mask):
    path = one_shard(tmp_path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    noticed = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
        found = check_noticed_or_equal(tmp_path, path)
        noticed += found
        assert found or at < header, f"a value at byte {at} is another, unnoticed"
        path.write_bytes(whole)
    assert noticed > 0.9 * len(whole)


def test_a_shard_cut_off_anywhere_is_noticed(tmp_path):
    path = one_shard(tmp_path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert check_noticed_or_equal(tmp_path, path)


def test_a_shard_with_something_behind_it_or_zeros_in_it_is_noticed(tmp_path):
    path = one_shard(tmp_path)
    whole = path.read_bytes()
    for content in (whole + b"\0", whole + whole, bytes(len(whole)), whole[:-64] + bytes(64), b"\n" + whole):
        path.write_bytes(content)
        assert check_noticed_or_equal(tmp_path, path)


@pytest.mark.parametrize(("shape", "dtype"), [((4,), torch.float32), ((5,), torch.float16), ((5, 1), torch.float32), ((), torch.float32)])
def test_a_shard_of_another_shape_or_dtype_is_noticed(tmp_path, shape, dtype):
    other = written(Store(tmp_path / "other").table(feature_key("k", shape, dtype)), range(4)).shards[0].path
    folder = Store(tmp_path).table(feature_key()).folder
    other.rename(path := folder / other.name)
    assert check_noticed_or_equal(tmp_path, path)


@pytest.mark.parametrize(
    "tensors", [{"features": torch.zeros(4, 5)}, {"images": torch.zeros(4, 32, dtype=torch.uint8)},
                {"features": torch.zeros(4, 5), "images": torch.zeros(3, 32, dtype=torch.uint8)},
                {"features": torch.tensor(1.0), "images": torch.zeros(1, 32, dtype=torch.uint8)},
                {"features": torch.zeros(4, 5), "images": torch.zeros(4, 32, dtype=torch.uint8)}],
)  # fmt: skip
def test_a_file_that_is_no_shard_is_noticed(tmp_path, tensors):
    path = Store(tmp_path).table(feature_key()).folder / "a.safetensors"
    save_file(tensors, path)
    with pytest.raises(Damaged):
        read_shard(path)
    assert check_noticed_or_equal(tmp_path, path)


def test_one_damaged_shard_costs_its_own_rows_only(tmp_path):
    with shards_of(4):
        table = written(Store(tmp_path).table(feature_key()), range(12))
    path = table.shards[1].path
    lost = [n for n in range(12) if hashes(n)[0] in table.shards[1].images]
    path.write_bytes(path.read_bytes()[:-1])
    again, messages = reopened(tmp_path)
    assert len(messages) == 1 and str(path) in messages[0]
    assert again.missing(hashes(*range(12))).tolist() == lost and len(lost) == 4
    assert Rows(written(again, lost), hashes(*range(12))).read(range(12)).equal(values(range(12)))


def test_without_a_check_of_the_sums_only_the_shape_is_looked_at(tmp_path):
    path = one_shard(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    table = Store(tmp_path).table(feature_key())
    table.refresh(check=False)
    assert len(table.shards) == 1
    path.write_bytes(whole[:-1])
    with pytest.warns(UserWarning, match="damaged"):
        Store(tmp_path).table(feature_key()).refresh(check=False)


# --- processes


class Signal:
    """An event without a lock: one of multiprocessing waits for ever for a waiter that was killed."""

    def __init__(self) -> None:
        self._value = FORK.RawValue("b", 0)

    def set(self) -> None:
        self._value.value = 1

    def wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self._value.value and time.monotonic() < end:
            time.sleep(0.002)
        return bool(self._value.value)


def in_process(work, *args):
    process = FORK.Process(target=work, args=args)
    process.start()
    return process


def write_all(folder, count, started):
    ftlit.features.table.SHARD_BYTES = 20 * 3
    store = Store(folder)
    table = store.table(feature_key())
    with store.locked([table]):
        started.set()
        table.refresh()
        for number in table.missing(hashes(*range(count))).tolist():
            writer = Writer(table)
            writer.add(hashes(number), values([number]))
            writer.flush()


def test_a_writer_that_is_killed_leaves_whole_shards_only_and_the_next_one_finishes(tmp_path):
    count, before, cut_short = 400, 0, 0
    draw = random.Random(0)
    for _ in range(8):
        started = Signal()
        process = in_process(write_all, tmp_path, count, started)
        assert started.wait(20)
        time.sleep(draw.uniform(0, 0.06))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        cut_short += process.exitcode == -signal.SIGKILL
        table, messages = reopened(tmp_path)
        assert messages == []
        held = [n for n in range(count) if n not in table.missing(hashes(*range(count)))]
        assert len(held) >= before and Rows(table, hashes(*held)).read(range(len(held))).equal(values(held))
        before = len(held)
    assert cut_short > 0
    process = in_process(write_all, tmp_path, count, Signal())
    process.join()
    assert process.exitcode == 0 and not list(tmp_path.glob("*/*.part"))
    table, messages = reopened(tmp_path)
    assert messages == [] and Rows(table, hashes(*range(count))).read(range(count)).equal(values(range(count)))


def test_what_a_killed_process_left_beside_goes_away_and_nothing_else_does(tmp_path):
    store = Store(tmp_path)
    table, other = written(store.table(feature_key()), range(4)), store.table(feature_key("other"))
    for one in (table, other):
        (one.folder / "abc.123.part").write_bytes(b"half")
    kept = sorted(table.folder.iterdir())
    with store.locked([table]):
        assert sorted(table.folder.iterdir()) == [path for path in kept if path.suffix != ".part"]
    assert (other.folder / "abc.123.part").exists()


def hold(folder, keys, held, go):
    store = Store(folder)
    with store.locked([store.table(feature_key(key)) for key in keys]):
        held.set()
        go.wait(30)


def count_up(folder, times, inside, most):
    store = Store(folder)
    table = store.table(feature_key())
    for _ in range(times):
        with store.locked([table]):
            inside.value += 1
            most.value = max(most.value, inside.value)
            time.sleep(0.005)
            inside.value -= 1


def test_two_processes_are_never_inside_at_once(tmp_path):
    inside, most = FORK.RawValue("i", 0), FORK.RawValue("i", 0)
    processes = [in_process(count_up, tmp_path, 10, inside, most) for _ in range(3)]
    for process in processes:
        process.join()
    assert (most.value, inside.value, [process.exitcode for process in processes]) == (1, 0, [0, 0, 0])


@pytest.mark.parametrize("killed", [True, False])
def test_a_process_that_waits_prints_a_line_and_continues_when_the_other_ends_or_is_killed(tmp_path, killed, capfd):
    held, go, mine = Signal(), Signal(), Signal()
    first = in_process(hold, tmp_path, ["k"], held, go)
    assert held.wait(20)
    second = in_process(hold, tmp_path, ["k"], mine, go)
    assert not mine.wait(0.3)
    os.kill(first.pid, signal.SIGKILL) if killed else go.set()
    assert mine.wait(20)
    go.set()
    first.join(), second.join()
    assert second.exitcode == 0
    assert capfd.readouterr().out == f"ftlit: another process computes these features: waiting for {tmp_path}\n"


def test_several_tables_are_locked_in_one_order_so_that_none_waits_for_ever(tmp_path):
    go = Signal()
    go.set()
    orders = [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"], ["a", "a"]] * 2
    processes = [in_process(hold, tmp_path, order, Signal(), go) for order in orders]
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * len(orders)


def test_other_tables_are_not_locked(tmp_path):
    held, go, other = Signal(), Signal(), Signal()
    first = in_process(hold, tmp_path, ["k"], held, go)
    assert held.wait(20)
    second = in_process(hold, tmp_path, ["other"], other, go)
    assert other.wait(20)
    go.set()
    first.join(), second.join()


def test_a_lock_ends_with_an_exception(tmp_path):
    store = Store(tmp_path)
    table = store.table(feature_key())
    with pytest.raises(KeyError), store.locked([table]):
        raise KeyError
    with store.locked([table]):
        pass


# --- the disk


FULL = [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded")]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_disk_is_one_line_with_a_remedy_and_leaves_earlier_shards(tmp_path, monkeypatch, error):
    table = written(Store(tmp_path).table(feature_key()), range(4))

    def full(source, target):
        raise error

    monkeypatch.setattr(ftlit.features.shard.os, "replace", full)
    writer = Writer(table)
    writer.add(hashes(7, 8), values([7, 8]))
    with pytest.raises(UserError, match=r"^features need 40 B more in .*/k, where .*B are free: give a folder on another disk, ") as raised:
        writer.flush()
    assert "\n" not in str(raised.value) and not list(tmp_path.glob("*/*.part"))
    monkeypatch.undo()
    again, messages = reopened(tmp_path)
    assert messages == [] and again.missing(hashes(0, 1, 2, 3, 7)).tolist() == [4]
    writer.flush()
    again.refresh()
    assert Rows(again, hashes(7, 8)).read([0, 1]).equal(values([7, 8]))


def test_another_error_of_the_disk_stays_what_it_is_and_leaves_no_part(tmp_path, monkeypatch):
    def broken(source, target):
        raise OSError(errno.EIO, "Input/output error")

    writer = Writer(Store(tmp_path).table(feature_key()))
    monkeypatch.setattr(ftlit.features.shard.os, "replace", broken)
    writer.add(hashes(7), values([7]))
    with pytest.raises(OSError, match="Input/output"):
        writer.flush()
    assert not list(tmp_path.glob("*/*.part"))


def test_the_error_for_a_full_disk_takes_a_folder_that_does_not_exist(tmp_path):
    assert "features need 2 GB more in" in str(no_space(tmp_path / "a" / "b", 2_000_000_000))


# --- the list of tables


def test_tables_lists_each_table_the_last_used_first(tmp_path):
    store = Store(tmp_path)
    assert store.tables() == []
    written(store.table(feature_key("a")), range(3))
    with shards_of(4):
        written(store.table(feature_key("b", (3, 2, 4))), range(9))
    os.utime(tmp_path / "a", (1000, 1000))
    first, second = store.tables()
    assert (first.digest, first.images, first.about) == ("b", 9, {"cut": "layer4", "of": "b"})
    assert (second.digest, second.images, len(second.shards), second.used) == ("a", 3, 1, 1000.0)
    assert first.bytes == sum(path.stat().st_size for path in first.shards) >= 9 * 24 * 4
    store.table(feature_key("a"))
    assert [stored.digest for stored in store.tables()] == ["a", "b"]


def test_tables_lists_a_damaged_table(tmp_path):
    path = one_shard(tmp_path)
    path.write_bytes(b"")
    (tmp_path / "k" / "about.json").write_text("{")
    (stored,) = Store(tmp_path).tables()
    assert (stored.about, stored.images, stored.bytes, stored.shards) == ({}, 0, 0, [path])


def test_remove_takes_one_table_and_no_other(tmp_path):
    store = Store(tmp_path)
    for key in "ab":
        written(store.table(feature_key(key)), range(3))
    assert store.remove("a") and [stored.digest for stored in store.tables()] == ["b"]
    assert len(written(store.table(feature_key("a")), range(3)).shards) == 1


def test_remove_refuses_while_a_process_writes_and_takes_what_a_killed_one_left(tmp_path):
    store, held, go = Store(tmp_path), Signal(), Signal()
    written(store.table(feature_key()), range(3))
    process = in_process(hold, tmp_path, ["k"], held, go)
    assert held.wait(20)
    assert not store.remove("k") and store.tables()[0].images == 3
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert store.remove("k") and store.tables() == []


def test_a_folder_may_be_given_from_home_or_from_here(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Store("~/features").folder == Store("features").folder == tmp_path / "features"
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(("size", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (5e13, "5e+04 GB")])
def test_sizes_in_words(size, words):
    assert size_in_words(size) == words


# --- many small shards


def in_shards(table, places) -> None:
    """A shard for each row."""
    writer = Writer(table)
    for i in places:
        writer.add(hashes(i), values([i]))
        writer.flush()
    table.refresh()


def test_many_small_shards_become_one_with_the_same_rows_and_one_large_one_stays(tmp_path):
    table = Store(tmp_path).table(feature_key())
    in_shards(table, range(8))
    before = Rows(table, hashes(*range(8))).read(range(8))
    table.merge()
    assert len(table.shards) == len(list(tmp_path.glob("k/*.safetensors"))) == 1
    assert Rows(table, hashes(*range(8))).read(range(8)).equal(before)
    assert read_shard(table.shards[0].path, check=True).features.shape == (8, *before.shape[1:])
    large = table.shards[0].path
    in_shards(table, range(8, 12))
    table.merge()
    assert large.exists() and len(table.shards) == 2 and not len(table.missing(hashes(*range(12))))


def test_rows_that_are_long_and_a_disk_without_room_for_both_leave_shards_apart(tmp_path, monkeypatch):
    table = Store(tmp_path).table(feature_key())
    in_shards(table, range(8))
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
        table.merge()
    assert len(table.shards) == 8
    with monkeypatch.context() as patch:
        patch.setattr(ftlit.features.table, "MAX_MERGED_ROW_BYTES", 1)
        table.merge()
    assert len(table.shards) == 8


def test_a_folder_that_is_not_the_stores_is_neither_listed_nor_removed(tmp_path, monkeypatch):
    monkeypatch.undo()  # the keys are those of the store
    mine = tmp_path / "my_thesis"
    mine.mkdir()
    (mine / "about.json").write_text("{}")
    key = "0123456789abcdef" * 2
    written(Store(tmp_path).table(feature_key(key)), range(3))
    assert [stored.digest for stored in Store(tmp_path).tables()] == [key]
    cache.prune(str(tmp_path), unused=0.0, max_gb=None)
    assert mine.is_dir() and not (tmp_path / key).exists()


@pytest.mark.parametrize("removed", range(7))
def test_a_merge_that_is_killed_at_any_moment_loses_no_row(tmp_path, monkeypatch, removed):
    table = Store(tmp_path).table(feature_key())
    in_shards(table, range(6))
    left = iter(range(removed))

    def killed(path, **how):
        if path.suffix == ".safetensors" and next(left, None) is None:
            raise KeyboardInterrupt
        os.unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt) if removed < 6 else nullcontext():
            table.merge()
    for _ in range(3):  # a later run, and the one after it
        table, messages = reopened(tmp_path)
        assert messages == [] and Rows(table, hashes(*range(6))).read(range(6)).equal(values([*range(6)]))
        table.merge()


def test_rows_that_a_killed_merge_left_twice_are_merged_to_one(tmp_path):
    table = Store(tmp_path).table(feature_key())
    writer = Writer(table)
    for group in ([0, 1], [1, 2], [3], [4], [0, 4, 5]):
        writer.add(hashes(*group), values(group))
        writer.flush()
    table.refresh()
    table.merge()
    assert sum(len(shard.images) for shard in table.shards) == 6 and Rows(table, hashes(*range(6))).read(range(6)).equal(
        values([*range(6)])
    )


def test_features_that_half_precision_cannot_hold_are_refused(tmp_path):
    table = Store(tmp_path).table(feature_key(shape=(2,), dtype=torch.float16))
    with pytest.raises(UserError, match=r"features up to 1e\+05 do not fit in torch.float16: take bfloat16"):
        Writer(table).add(hashes(0), torch.tensor([[1.0, 1e5]]))


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_to_is_named_in_one_line():
    with pytest.raises(UserError, match=r"/proc/features cannot hold features \(.*\): give another folder"):
        Store("/proc/features").table(feature_key())
