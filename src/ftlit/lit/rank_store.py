"""Processes of a run wait for each other: each reports to the others, so that they wait as long as it lives, and no longer.

A thread reports. So work of any length is waited for, and a process counts as silent if it is dead or paused, not if its main thread hangs.
In a training step no report counts: there a process that hangs is noticed by the timeout of torch's collective operations.
"""

import atexit
import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Self

import torch
from lightning.pytorch import Trainer
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import TCPStore  # type: ignore[attr-defined]

from ftlit.errors import UserError
from ftlit.lit.cluster_internals import default_store, waiting_minutes
from ftlit.lit.module_internals import before_setup, knows_rank_before_setup, name_meeting_place

CONNECT_MINUTES = 10.0  # to start Python in each process
REPORT_SECONDS = 5.0  # between two reports of a process
POLL_SECONDS = 0.2
LEAVE_SECONDS = 10.0  # that the holder of the store waits, after an error, for the others to see it
DONE, FAILED, ENDED = "done", "failed", "ended"
TURNS = 3  # see `turn_of`
BLOCKS = itertools.count()  # of `first_ahead`: a key of the store is used once
JOINED: "list[Processes]" = []  # those of this program, at most one element


class LostProcess(UserError):
    """Another process has failed, or is silent.

    Args:
        reason: in one line.
        silent: whether it is silent.
    """

    def __init__(self, reason: str, *, silent: bool = False) -> None:
        super().__init__(reason)
        self.silent = silent


class Processes:
    """The processes of a run, which wait for each other by a store: as long as one reports, the others wait for it.

    Collective operations of torch end with an error after a fixed time, also where the others are at work. So each process reports from
    the moment it joins until it ends, and long work of one process, or of each by itself, ends with `ahead` or `meet`.

    Args:
        store: of all processes.
        rank: of this process.
        count: of processes.
        holds_store: whether the store ends with this process.
    """

    def __init__(self, store: Store, rank: int, count: int, *, holds_store: bool = False) -> None:
        self.store, self.rank, self.count, self.holds_store = store, rank, count, holds_store
        self._meetings = itertools.count()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._report, daemon=True)

    def start(self) -> Self:
        """Report from now on, until this process ends."""
        self._thread.start()
        atexit.register(self.end)
        return self

    def end(self) -> None:
        """Report no more. The others no longer wait for this process."""
        atexit.unregister(self.end)
        self._ended.set()
        self._thread.join()
        with suppress(RuntimeError):
            self.store.set(f"report/{self.rank}", ENDED)

    def _report(self) -> None:
        for number in itertools.count():
            with suppress(RuntimeError):  # the others notice
                self.store.set(f"report/{self.rank}", str(number))
            if self._ended.wait(REPORT_SECONDS):
                return

    @contextmanager
    def ahead(self, name: str, minutes: float, first: int = 0) -> Iterator[None]:
        """Run a block in one process. The others wait for its end, and run it then. An error of the user in that one is theirs too.

        Args:
            name: of the block, the same in all processes, and used once.
            minutes: without a report after which that process counts as lost.
            first: the process.

        Raises:
            LostProcess: in the others: that process reports no more, or has failed.
        """
        if self.rank != first:
            outcome = self.value(name, first, minutes)
            if outcome == FAILED:
                raise LostProcess(f"process {self.rank} stops, because process {first} failed: see the error of that process")
            if outcome != DONE:
                raise UserError(outcome)
            yield
            return
        outcome = FAILED
        try:
            yield
            outcome = DONE
        except UserError as error:
            outcome = str(error)
            raise
        finally:
            self.store.set(name, outcome)

    def is_first_with(self, error: str) -> bool:
        """Whether no other process has ended with this error; True where the store can no longer tell."""
        try:
            return self.store.add(f"error/{error}", 1) == 1
        except RuntimeError:
            return True

    def leave(self) -> None:
        """After an error: if the store ends with this process, wait for the end of the others, for at most `LEAVE_SECONDS`."""
        deadline = time.monotonic() + LEAVE_SECONDS
        while self.holds_store and time.monotonic() < deadline and not all(self._has_ended(rank) for rank in range(1, self.count)):
            time.sleep(POLL_SECONDS)

    def _has_ended(self, rank: int) -> bool:
        return self._found(f"report/{rank}") == ENDED

    def meet(self, minutes: float) -> None:
        """Wait for all other processes. All pass here in the same order.

        Raises:
            LostProcess: one of them reports no more, or has ended.
        """
        name = f"meeting/{next(self._meetings)}"
        self.store.set(f"{name}/{self.rank}", DONE)
        for rank in range(self.count):
            self.value(f"{name}/{rank}", rank, minutes)

    def value(self, name: str, rank: int, minutes: float) -> str:
        """What another process sets. It is waited for as long as that process reports. Raises `LostProcess`."""
        last, since = "", time.monotonic()
        while (found := self._found(name)) is None:
            report = self._found(f"report/{rank}") or ""
            if report == ENDED and self._found(name) is None:
                raise LostProcess(f"process {self.rank} stops, because process {rank} has ended: see the error of that process")
            if report != last:
                last, since = report, time.monotonic()
            if time.monotonic() - since > 60 * minutes:
                silence = f"process {rank} has not reported for {minutes:g} minutes: look for its error"
                raise LostProcess(f"process {self.rank} stops, because {silence}; if it was only slow, raise rank_timeout", silent=True)
            time.sleep(POLL_SECONDS)
        return found

    def _found(self, name: str) -> str | None:
        """The value of a key, if it is set. It never waits: the store serves one call at a time, and the reports need it too."""
        try:
            return str(self.store.get(name).decode()) if self.store.check([name]) else None
        except RuntimeError as error:  # torch's DistError: the store ended with the process that held it
            raise LostProcess(f"process {self.rank} stops, because process 0 cannot be reached") from error


def join(rank: int, count: int, minutes: float) -> Processes:
    """Join the processes of a run, once, at MASTER_ADDR and MASTER_PORT, where their process group will meet too.

    Raises:
        LostProcess: the first process is not there within `minutes`.
    """
    if not _joined_as(rank, count):
        agent_holds_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's
        holds_store = rank == 0 and not agent_holds_it
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), count, holds_store
        try:  # without waiting for the others here, where no signal would be handled
            server = TCPStore(*place, timeout=timedelta(minutes=minutes), wait_for_workers=False, multi_tenant=True)
        except RuntimeError as error:
            raise LostProcess(f"process {rank} stops: process 0 cannot be reached") from error
        store = PrefixStore(f"ftlit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", server)
        _become(Processes(store, rank, count, holds_store=holds_store))
    return JOINED[0]


def _joined_as(rank: int, count: int) -> bool:
    return bool(JOINED) and (JOINED[0].rank, JOINED[0].count) == (rank, count)


def _become(processes: Processes) -> None:
    """Report as one of these processes from now on, and no more as one of others, of an earlier trainer."""
    for earlier in JOINED:
        earlier.end()
    JOINED[:] = [processes.start()]


def meet_before_setup(trainer: Trainer) -> None:
    """Let the processes of a trainer meet before they set up their process group, which waits for a fixed time only."""

    def meet_first() -> None:
        if trainer.world_size > 1 and not torch.distributed.is_initialized() and knows_rank_before_setup(trainer):
            name_meeting_place(trainer)
            minutes = max(waiting_minutes(trainer), CONNECT_MINUTES)  # the others may be starting
            join(trainer.global_rank, trainer.world_size, minutes).meet(minutes)

    before_setup(trainer, meet_first)


def meet(trainer: Trainer) -> None:
    """Wait for the other processes of a trainer, as long as they report. A no-op in one process."""
    if processes := _processes_of(trainer):
        processes.meet(waiting_minutes(trainer))


@contextmanager
def first_ahead(trainer: Trainer) -> Iterator[None]:
    """Run a block in the first process of a trainer before the others, which wait for its end; see `Processes.ahead`.

    All processes have to pass here in the same order. A no-op in one process.
    """
    processes = _processes_of(trainer)
    if processes is None:
        yield
        return
    with processes.ahead(f"block/{next(BLOCKS)}", waiting_minutes(trainer)):
        yield


def turn_of(trainer: Trainer) -> int:
    """When a process does what others of its machine rely on: 0 for the first process, 1 for the first of each other machine, then 2."""
    return 0 if trainer.is_global_zero else 1 if trainer.local_rank == 0 else 2


def _processes_of(trainer: Trainer) -> Processes | None:
    """The processes of a trainer: those that have joined, or, in a program of the user, those of its process group."""
    if trainer.world_size == 1 or not torch.distributed.is_initialized():
        return None
    if not _joined_as(trainer.global_rank, trainer.world_size):
        _become(Processes(PrefixStore("ftlit", default_store()), trainer.global_rank, trainer.world_size))
    return JOINED[0]
