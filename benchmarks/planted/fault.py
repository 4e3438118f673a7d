"""Planted faults and verdicts on them."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CAUGHT = ("prevented", "reported")
NO_OPTION = "no such option"


@dataclass(frozen=True)
class Found:
    """Result of a run: whether the fault did harm, a measured value, and messages of the library that no logger receives."""

    harm: bool
    measured: str = ""
    messages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """A cell of the table: outcome, measured value, and the warning or error that names the fault or ended the run."""

    outcome: str
    measured: str = ""
    message: str = ""

    def __str__(self) -> str:
        return f"{self.outcome} ({self.measured})" if self.measured else self.outcome


@dataclass(frozen=True)
class Fault:
    """A fault: its title in the table, and the run in which it is planted.

    Args:
        title: label of the row.
        probe: (peer, folder) -> result of the run; its docstring describes the planted fault.
        pattern: a regular expression; a warning or an error that it matches names the fault.
        processes: number of processes that train together.
        without: peers without the option in which the fault would be planted.
    """

    title: str
    probe: Callable[[Any, Path], Found]
    pattern: str
    processes: int = 1
    without: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name for `--only`."""
        return self.probe.__name__

    def run(self, peer: Any, folder: Path) -> Verdict:
        """Plant it in a run of this peer."""
        with captured_messages() as messages:
            try:
                found = self.probe(peer, folder)
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                named = re.search(self.pattern, str(error))
                return Verdict("reported", "error", message) if named else Verdict("crashes", type(error).__name__, message)
        if not found.harm:
            return Verdict("prevented", found.measured)
        message = next((message for message in [*found.messages, *messages] if re.search(self.pattern, message)), "")
        return Verdict("reported" if message else "silent", found.measured, message)


FAULTS: dict[str, Fault] = {}


def fault(title: str, pattern: str, **options: Any) -> Callable[[Callable[[Any, Path], Found]], Callable[[Any, Path], Found]]:
    """Add a probe to the table of faults."""

    def add(probe: Callable[[Any, Path], Found]) -> Callable[[Any, Path], Found]:
        FAULTS[probe.__name__] = Fault(title, probe, pattern, **options)
        return probe

    return add


class _Collector(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.INFO)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def captured_messages() -> Iterator[list[str]]:
    """Collect all warnings and log messages, one line each."""
    messages: list[str] = []
    collector, before = _Collector(messages), warnings.showwarning
    loggers = [logging.getLogger(name) for name in ("", "lightning.pytorch", "lightning.fabric", "finetuning_scheduler")]
    try:
        for logger in loggers:
            logger.addHandler(collector)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_, **__: messages.append(" ".join(str(message).split()))
            yield messages
    finally:
        warnings.showwarning = before
        for logger in loggers:
            logger.removeHandler(collector)
