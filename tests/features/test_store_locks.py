"""Locks of feature tables: one process writes at a time, and a killed process leaves only complete shards."""

import multiprocessing
import os
import random
import signal
import time

import pytest
from feature_rows import KEY, feature_key, hashes, reopened, values, written

import ftlit.features.table
from ftlit.features.store import Store
from ftlit.features.table import Rows, Writer

FORK = multiprocessing.get_context("fork")  # a process that starts in milliseconds


class Event:
    """An event without a lock: multiprocessing.Event blocks forever if a process that waits for it is killed."""

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
    """Start a function in a process."""
    process = FORK.Process(target=work, args=args)
    process.start()
    return process


def write_all(folder, count, started):
    """Write the missing of `count` rows, three per shard."""
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


def test_a_killed_writer_leaves_complete_shards_and_the_next_writer_finishes(tmp_path):
    count, before, cut_short = 400, 0, 0
    draw = random.Random(0)
    for _ in range(8):
        started = Event()
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
    process = in_process(write_all, tmp_path, count, Event())
    process.join()
    assert process.exitcode == 0 and not list(tmp_path.glob("*/*.part"))
    table, messages = reopened(tmp_path)
    assert messages == [] and Rows(table, hashes(*range(count))).read(range(count)).equal(values(range(count)))


def test_locking_a_table_removes_its_partial_files_and_nothing_else(tmp_path):
    store = Store(tmp_path)
    table, other = written(store.table(feature_key()), range(4)), store.table(feature_key("other"))
    for one in (table, other):
        (one.folder / "abc.123.part").write_bytes(b"half")
    kept = sorted(table.folder.iterdir())
    with store.locked([table]):
        assert sorted(table.folder.iterdir()) == [path for path in kept if path.suffix != ".part"]
    assert (other.folder / "abc.123.part").exists()


def hold(folder, keys, held, go):
    """Lock the tables of these keys until `go` is set."""
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


def test_only_one_process_holds_the_lock_at_a_time(tmp_path):
    inside, most = FORK.RawValue("i", 0), FORK.RawValue("i", 0)
    processes = [in_process(count_up, tmp_path, 10, inside, most) for _ in range(3)]
    for process in processes:
        process.join()
    assert (most.value, inside.value, [process.exitcode for process in processes]) == (1, 0, [0, 0, 0])


@pytest.mark.parametrize("killed", [True, False])
def test_a_waiting_process_prints_a_line_and_continues_when_the_other_ends_or_is_killed(tmp_path, killed, capfd):
    held, go, mine = Event(), Event(), Event()
    first = in_process(hold, tmp_path, [KEY], held, go)
    assert held.wait(20)
    second = in_process(hold, tmp_path, [KEY], mine, go)
    assert not mine.wait(0.3)
    os.kill(first.pid, signal.SIGKILL) if killed else go.set()
    assert mine.wait(20)
    go.set()
    first.join(), second.join()
    assert second.exitcode == 0
    assert capfd.readouterr().out == f"ftlit: waiting for another process that is computing these features in {tmp_path}\n"


def test_locking_several_tables_in_any_order_never_deadlocks(tmp_path):
    go = Event()
    go.set()
    orders = [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"], ["a", "a"]] * 2
    processes = [in_process(hold, tmp_path, order, Event(), go) for order in orders]
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * len(orders)


def test_other_tables_are_not_locked(tmp_path):
    held, go, other = Event(), Event(), Event()
    first = in_process(hold, tmp_path, [KEY], held, go)
    assert held.wait(20)
    second = in_process(hold, tmp_path, ["other"], other, go)
    assert other.wait(20)
    go.set()
    first.join(), second.join()


def test_an_exception_releases_the_lock(tmp_path):
    store = Store(tmp_path)
    table = store.table(feature_key())
    with pytest.raises(KeyError), store.locked([table]):
        raise KeyError
    with store.locked([table]):
        pass


def test_remove_fails_while_a_process_holds_the_lock_and_works_after_it_was_killed(tmp_path):
    store, held, go = Store(tmp_path), Event(), Event()
    written(store.table(feature_key()), range(3))
    process = in_process(hold, tmp_path, [KEY], held, go)
    assert held.wait(20)
    assert not store.remove(KEY) and store.tables()[0].images == 3
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert store.remove(KEY) and store.tables() == []
