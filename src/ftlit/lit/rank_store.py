"""Processes that wait for the first one: it reports to the others while it works, so that they wait as long as it lives, and no longer."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ftlit.errors import UserError
from ftlit.lit.trainer_internals import default_store, waiting_minutes

REPORT_SECONDS = 5.0  # between two reports of the first process
POLL_SECONDS = 0.2
BLOCKS = count()  # of `first_ahead`: a key of the store is used once


class LostProcess(UserError):
    """The first process has failed, or is silent.

    Args:
        reason: in one line.
        silent: whether it is silent.
    """

    def __init__(self, reason: str, *, silent: bool = False) -> None:
        super().__init__(reason)
        self.silent = silent


class FirstProcess:
    """Blocks that the first process runs before the others.

    Args:
        store: of all processes.
        rank: of this process.
        name: of the block, the same in all processes, and used once.
        minutes: without a report after which the first process counts as lost.
    """

    def __init__(self, store: Store, rank: int, name: str, minutes: float) -> None:
        self.store, self.rank, self.name, self.minutes = store, rank, name, minutes

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """In the first process, report while the block runs. In the others, wait for the end of its block.

        Raises:
            LostProcess: in the others: the first process reports no more, or has failed.
        """
        if self.rank:
            self._wait()
            yield
            return
        with self._reporting():
            yield

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        ended, outcome = threading.Event(), "failed"
        thread = threading.Thread(target=self._report, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
            outcome = "done"
        finally:
            ended.set()
            thread.join()
            self.store.set(f"{self.name}/end", outcome)

    def _report(self, ended: threading.Event) -> None:
        number = 0
        while not ended.is_set():
            with suppress(RuntimeError):  # the others notice
                self.store.set(f"{self.name}/report", str(number))
            number += 1
            ended.wait(REPORT_SECONDS)

    def _wait(self) -> None:
        last, since = b"", time.monotonic()
        while not self._asked(lambda: self.store.check([f"{self.name}/end"])):
            report = self._asked(lambda: self.store.check([f"{self.name}/report"]) and self.store.get(f"{self.name}/report")) or b""
            if report != last:
                last, since = report, time.monotonic()
            if time.monotonic() - since > 60 * self.minutes:
                silence = f"process 0 has not reported for {self.minutes:g} minutes (rank_timeout)"
                raise LostProcess(f"process {self.rank} stops: {silence}", silent=True)
            time.sleep(POLL_SECONDS)
        if self._asked(lambda: self.store.get(f"{self.name}/end")) != b"done":
            raise LostProcess(f"process {self.rank} stops: process 0 failed, see its error")

    def _asked(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except RuntimeError as error:  # torch's DistError: the store ended with the process that held it
            raise LostProcess(f"process {self.rank} stops: process 0 cannot be reached") from error


def connect(rank: int, world_size: int, minutes: float) -> Store:
    """The store at MASTER_ADDR and MASTER_PORT, where the process group of the same processes will meet too.

    Raises:
        LostProcess: the first process is not there.
    """
    try:
        store, _, _ = next(rendezvous("env://", rank, world_size, timeout=timedelta(minutes=minutes)))
    except RuntimeError as error:
        raise LostProcess(f"process {rank} stops: process 0 cannot be reached") from error
    return PrefixStore(f"ftlit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


@contextmanager
def first_ahead(trainer: Trainer) -> Iterator[None]:
    """Run a block in the first process of a trainer before the others, which wait for its end; see `FirstProcess`.

    All processes have to pass here in the same order. A no-op in one process.
    """
    if trainer.world_size == 1 or not torch.distributed.is_initialized():
        yield
        return
    first = FirstProcess(PrefixStore("ftlit", default_store()), trainer.global_rank, f"block {next(BLOCKS)}", waiting_minutes(trainer))
    with first.ahead():
        yield
