"""Sweeps that run: those of this process, and jobs of them in other processes."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from ftlit.errors import UserError
from ftlit.sweeps.halving import Halving
from ftlit.sweeps.jobs import FILE, read_job


@dataclass
class RunningSweep:
    """A sweep that this process runs.

    Attributes:
        jobs: the overrides of its jobs by number; none where a search chooses them.
        minimizes: of a search, whether the lowest score is the best; `None` for a sweep without one.
        halving: its plan, where it runs by successive halving.
        has_rungs_left: whether it has begun and its last rung has not ended.
    """

    jobs: list[list[str]] = field(default_factory=list)
    minimizes: bool | None = None
    halving: Halving | None = None
    has_rungs_left: bool = False


SWEEPS: dict[Path, RunningSweep] = {}  # by folder; empty for a single run
_HEARS_ESTIMATE: ContextVar[Callable[[float], None] | None] = ContextVar("hears_estimate", default=None)


@contextmanager
def hearing_estimate(hear: Callable[[float], None]) -> Iterator[None]:
    """Within it, pass the seconds that the plan of a job estimates to a function."""
    token = _HEARS_ESTIMATE.set(hear)
    try:
        yield
    finally:
        _HEARS_ESTIMATE.reset(token)


def tell_estimate(seconds: float) -> None:
    """Pass on the seconds that the plan of a run estimates, if the run is a job of a sweep."""
    if hear := _HEARS_ESTIMATE.get():
        hear(seconds)


LOCKS: dict[Path, int] = {}  # the open folders of these sweeps


def lock(folder: Path) -> None:
    """Keep other sweeps out of a folder, until `unlock` or the end of this process. The folder is made. The lock is the kernel's, on the
    folder itself; where the file system has none, nothing is kept out.

    Raises:
        UserError: another sweep runs there.
    """
    if folder in LOCKS:
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"another sweep runs in {folder}: wait until it ends, stop it, or give another hydra.sweep.dir=...") from None
    except OSError:
        pass  # this file system has no locks
    LOCKS[folder] = handle


def unlock() -> None:
    """Release the folders of all sweeps of this process."""
    while LOCKS:
        os.close(LOCKS.popitem()[1])


os.register_at_fork(after_in_child=unlock)  # worker processes would hold the lock after this process was killed


def wait_for_running(folder: Path, seconds: float) -> None:
    """Wait until the jobs that run now in other processes have written that they ended, for this time at most."""
    until = time.monotonic() + seconds
    running = [path.parent for path in folder.glob(f"*/{FILE}") if _is_running(path.parent)]
    while time.monotonic() < until and any(map(_is_running, running)):
        time.sleep(0.1)


def _is_running(folder: Path) -> bool:
    job = read_job(folder)
    return job is not None and job.status is None
