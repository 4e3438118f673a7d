"""Two machines with disks of their own, as two processes: what one of them has is not computed, and is copied to the other."""

import os
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
import warm
from machines_program import features
from paths import SUPPORT

from ftlit.lit.features import extraction_pass

pytestmark = [pytest.mark.e2e, pytest.mark.ddp]


def run(folder, **environment):
    """The folders of both machines, after their programs have ended well."""
    folders = [folder / name for name in ("first", "second")]
    programs = []
    for rank, own in enumerate(folders):
        own.mkdir()
        command = [sys.executable, str(SUPPORT / "machines_program.py"), str(own)]
        programs.append(warm.start(command, env={**os.environ, "RANK": str(rank), **environment}))
    assert [program.wait(60) for program in programs] == [0, 0]
    return folders


def test_each_machine_gets_what_the_other_has_and_computes_what_neither_has(tmp_path):
    for folder in run(tmp_path):
        noted = torch.load(folder / "noted", weights_only=True)
        for dtype in (torch.float32, torch.bfloat16, torch.uint8):
            found = noted[str(dtype)]
            assert found["computed"] == [[4]]  # 5 and 6 are equal images, which both hold
            assert torch.equal(found["rows"], features(dtype)[[0, 1, 2, 3, 5, 6]])
            assert found["held"] == 5  # each row once


def test_a_machine_that_cannot_read_what_another_lacks_ends_both(tmp_path):
    first, second = (torch.load(folder / "noted", weights_only=True) for folder in run(tmp_path, UNREADABLE="1"))
    assert second == "gone" and first.startswith("process 1 cannot read features in ") and first.endswith(": gone")


class Table:
    """Notes which process refreshes it, and whether that checks."""

    def __init__(self, calls, rank):
        self.calls, self.rank = calls, rank

    def refresh(self, *, check):
        self.calls.append((self.rank, check))

    def merge(self):
        self.calls.append((self.rank, "merge"))


@pytest.mark.parametrize("check", [True, False])
def test_the_first_process_of_each_machine_removes_damaged_features_before_the_others_list_them(monkeypatch, check):
    calls, meeting = [], threading.Barrier(4, timeout=30)
    monkeypatch.setattr(extraction_pass, "meet", lambda trainer: meeting.wait())

    def refresh(rank):
        trainer = SimpleNamespace(is_global_zero=rank == 0, local_rank=rank % 2)
        extraction_pass._refresh([Table(calls, rank)], trainer, check=check)

    threads = [threading.Thread(target=refresh, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = [(0, True), (2, True)] if check else [(0, False), (0, "merge"), (2, False)]
    assert calls[: len(first)] == first and sorted(calls[len(first) :]) == [(1, False), (3, False)]
