"""Processes wait for the first one as long as it reports."""

import threading
import time
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from ftlit.lit import rank_store
from ftlit.lit.rank_store import FirstProcess, LostProcess


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(rank_store, "REPORT_SECONDS", 0.05)
    monkeypatch.setattr(rank_store, "POLL_SECONDS", 0.01)
    store = HashStore()
    store.set_timeout(timedelta(seconds=1))
    return store


def first(store, work):
    with FirstProcess(store, 0, "block", 1).ahead():
        work()


def test_the_others_wait_for_longer_than_the_limit_while_the_first_reports(store):
    thread = threading.Thread(target=first, args=(store, lambda: time.sleep(0.8)))
    thread.start()
    begun = time.monotonic()
    with FirstProcess(store, 1, "block", 0.3 / 60).ahead():
        assert time.monotonic() - begun > 0.6
    thread.join()


def test_a_first_process_that_never_reports_is_an_error_with_the_option(store):
    with pytest.raises(LostProcess, match=r"process 1 stops: process 0 has not reported for .* minutes \(rank_timeout\)"):
        with FirstProcess(store, 1, "block", 0.2 / 60).ahead():
            pass


def test_the_others_end_with_the_first(store):
    with pytest.raises(ZeroDivisionError):
        first(store, lambda: 1 / 0)
    with pytest.raises(LostProcess, match="process 2 stops: process 0 failed"), FirstProcess(store, 2, "block", 1).ahead():
        pass
