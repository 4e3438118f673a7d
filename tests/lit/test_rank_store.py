"""Processes wait for each other as long as the others report."""

import threading
import time
from contextlib import suppress
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from ftlit.errors import UserError
from ftlit.lit import rank_store
from ftlit.lit.rank_store import LostProcess, Processes

SHORT = 0.3 / 60  # minutes: below the time that the first process works


@pytest.fixture
def processes(monkeypatch):
    """Two processes that report."""
    monkeypatch.setattr(rank_store, "REPORT_SECONDS", 0.05)
    monkeypatch.setattr(rank_store, "POLL_SECONDS", 0.01)
    store = HashStore()
    store.set_timeout(timedelta(seconds=1))
    both = [Processes(store, rank, 2).start() for rank in range(2)]
    yield both
    for process in both:
        process.end()


def later(work, seconds=0.8):
    def run():
        time.sleep(seconds)
        work()

    threading.Thread(target=run).start()
    return time.monotonic()


def test_the_others_wait_for_longer_than_the_limit_also_before_the_first_has_begun_its_block(processes):
    def block():
        with processes[0].ahead("block", 1):
            pass

    begun = later(block)
    with processes[1].ahead("block", SHORT):
        assert time.monotonic() - begun > 0.6


@pytest.mark.parametrize("late", range(2))
def test_each_process_waits_for_the_other(processes, late):
    begun = later(lambda: processes[late].meet(SHORT))
    processes[1 - late].meet(SHORT)
    assert time.monotonic() - begun > 0.6


def test_a_process_that_never_reports_is_an_error_with_the_option(processes):
    silent = Processes(processes[1].store, 2, 4)
    with pytest.raises(
        LostProcess, match=r"process 2 stops, because process 3 has not reported for .* minutes: look for its error; .* raise rank_timeout"
    ) as caught:
        silent.value("something", 3, SHORT)
    assert caught.value.silent


def test_the_others_end_with_the_first(processes):
    with suppress(ZeroDivisionError), processes[0].ahead("block", 1):
        raise ZeroDivisionError
    with pytest.raises(LostProcess, match="process 1 stops, because process 0 failed"), processes[1].ahead("block", 1):
        pass


def test_nobody_waits_for_a_process_that_has_ended(processes):
    processes[1].end()
    with pytest.raises(LostProcess, match="process 0 stops, because process 1 has ended: see the error of that process"):
        processes[0].meet(1)


def test_an_error_of_the_user_in_the_first_is_that_of_the_others_and_one_of_them_prints_it(processes):
    with suppress(UserError), processes[0].ahead("block", 1):
        raise UserError("no such folder")
    with pytest.raises(UserError, match=r"^no such folder$"), processes[1].ahead("block", 1):
        pass
    assert [process.is_first_with("no such folder") for process in processes] == [True, False]
    assert processes[1].is_first_with("another error")


def test_the_process_that_holds_the_store_waits_until_the_others_have_ended(processes):
    processes[0].holds_store = True
    begun = later(processes[1].end, seconds=0.3)
    processes[0].leave()
    assert 0.2 < time.monotonic() - begun < rank_store.LEAVE_SECONDS
