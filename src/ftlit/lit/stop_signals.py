"""Signals that end a run: Ctrl-C, and SIGTERM and SIGUSR1, which clusters send some time before they end a job.

Outside of training a signal raises `KeyboardInterrupt` at once, but not during an import, which may hide the exception, or leave half a
module behind: it waits until the import ends. During training it is deferred: `LastCheckpoint` ends training between two steps, with a
checkpoint.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

DEFAULTS: dict[int, Any] = {  # signal -> its handler where a program sets none
    signal.SIGINT: signal.default_int_handler,
    **{getattr(signal, name): signal.SIG_DFL for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)},
}
SIGNALS = list(DEFAULTS)
INTERRUPTED_STATUS = 130  # what shells give for a program that Ctrl-C ended
STOPPING = b"\nstopping after this step or validation, with a checkpoint (Ctrl-C again: at once, without one)\n"
LOADING = b"\nstopping as soon as the libraries are loaded (Ctrl-C again: at once)\n"
INTERRUPTED = b"\nftlit: interrupted\n"
SECONDS_TO_RETRY = 0.1  # for a signal that came during an import
SECONDS_TO_STOP = 20.0  # from the signal to the end of the step; SLURM kills 30 s after SIGTERM (KillWait)


class PauseReached(Exception):
    """Ends a job whose fit ended at `LastCheckpoint.pause_at`, with a checkpoint from which it goes on."""


def _no_jobs() -> None:
    """There are none in other processes."""


class StopSignals:
    """The signals that this process has received.

    Attributes:
        owned: whether `receive` is the handler of the signals.
        requested: whether a signal was received.
        answers: whether the first Ctrl-C in training, or during an import, is answered on stderr.
        deferred: whether training reads `requested` between two steps; otherwise a signal raises at once.
        wait_for_jobs: called at the first Ctrl-C before it raises: processes of the terminal that run jobs get it too, and may end.
    """

    def __init__(self) -> None:
        self.owned = self.answers = self.requested = self.deferred = False
        self.wait_for_jobs: Callable[[], None] = _no_jobs
        self._raised_at = -SECONDS_TO_STOP
        self._later: threading.Timer | None = None
        self._held = self._retried = False

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal. A second signal raises at once, and a deferred one after `SECONDS_TO_STOP`."""
        if self.deferred and not self.requested:
            self.requested = True
            self._send_later(SECONDS_TO_STOP, number)
            self._answer(number, STOPPING)
            return
        if _is_importing(frame):
            self._hold(number)
            return
        self._held = self._retried = False
        self.requested = True
        if time.monotonic() - self._raised_at >= SECONDS_TO_STOP:  # otherwise the program is ending already
            if number == signal.SIGINT:
                self._raised_at = time.monotonic()
                self.wait_for_jobs()
            self.stop()

    def _hold(self, number: int) -> None:
        """Send this signal again a little later. End the process where it is a second one."""
        if self._held and not self._retried:
            self._answer(number, INTERRUPTED)
            os._exit(INTERRUPTED_STATUS)
        if not self._held:
            self._answer(number, LOADING)
        self._held, self._retried = True, False
        self._send_later(SECONDS_TO_RETRY, number)

    def _send_later(self, seconds: float, number: int) -> None:
        def send() -> None:
            self._retried = True
            os.kill(os.getpid(), number)

        if self._later:
            self._later.cancel()
        self._later = threading.Timer(seconds, send)
        self._later.daemon = True
        self._later.start()

    def _answer(self, number: int, line: bytes) -> None:
        if number == signal.SIGINT and self.answers:
            with suppress(OSError, ValueError):  # nobody reads it any more
                os.write(sys.stderr.fileno(), line)  # not print: the signal may have come within one

    def stop(self) -> None:
        """Raise `KeyboardInterrupt`."""
        self._raised_at = time.monotonic()
        raise KeyboardInterrupt

    def forget(self) -> None:
        """Forget the signals that were received."""
        self.requested = self.deferred = self._held = self._retried = False
        if self._later:
            self._later.cancel()


STOP_SIGNALS = StopSignals()


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame. A function of ftlit is not part of an import: a program may run it in one."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        if frame.f_code.co_name != "<module>" and str(frame.f_globals.get("__name__")).startswith("ftlit."):
            return False
        frame = frame.f_back
    return False


def _shield_worker() -> None:
    """In a forked worker process, accept signals from its parent only: a cluster sends them to all processes of a job."""
    if STOP_SIGNALS.owned:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)


if hasattr(os, "register_at_fork") and hasattr(signal, "sigwaitinfo"):
    os.register_at_fork(after_in_child=_shield_worker)


def _is_free(number: int) -> bool:
    """Whether a signal has its default handler, or that of submitit which only logs SIGTERM: a cluster kills the job soon after."""
    handler: Any = signal.getsignal(number)
    of_submitit = str(getattr(handler, "__module__", "")).startswith("submitit.")
    return handler is DEFAULTS[number] or (of_submitit and handler.__name__ == "bypass")


@contextmanager
def owned_signals(*, answers: bool = True) -> Iterator[None]:
    """Receive signals within a block, except those that have a handler already, such as the one by which submitit requeues a job.

    Args:
        answers: whether this process answers Ctrl-C, for all that get it.
    """
    main = threading.current_thread() is threading.main_thread()
    free = {number: signal.getsignal(number) for number in SIGNALS if main and _is_free(number)}
    for number in free:
        signal.signal(number, STOP_SIGNALS.receive)
    STOP_SIGNALS.owned = STOP_SIGNALS.owned or bool(free)
    if free:  # otherwise another block decides
        STOP_SIGNALS.answers = answers
    try:
        yield
    finally:
        if free:
            STOP_SIGNALS.forget()
            STOP_SIGNALS.owned = False
        for number, handler in free.items():
            signal.signal(number, handler)
