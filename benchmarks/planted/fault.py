"""What a planted fault is, and what a peer made of it."""

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
    """What a run came to: whether the fault did its harm, the number behind it, and lines that the peer said where no logger sees them."""

    harm: bool
    number: str = ""
    said: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """A cell of the table; `line` is the warning or error that names the fault, or what the run crashed with."""

    word: str
    number: str = ""
    line: str = ""

    def __str__(self) -> str:
        return f"{self.word} ({self.number})" if self.number else self.word


@dataclass(frozen=True)
class Fault:
    """A fault: its row in the table, and the run in which it is planted.

    Args:
        title: the row.
        probe: (peer, folder) -> what was found; its docstring says what is planted.
        names: a regular expression; a warning or an error that it matches names the fault.
        processes: that train together.
        without: peers that have nothing the fault could be planted in.
    """

    title: str
    probe: Callable[[Any, Path], Found]
    names: str
    processes: int = 1
    without: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What `--only` takes."""
        return self.probe.__name__

    def run(self, peer: Any, folder: Path) -> Verdict:
        """Plant it in a run of this peer."""
        with heard() as lines:
            try:
                found = self.probe(peer, folder)
            except Exception as error:
                line = f"{type(error).__name__}: {error}"
                named = re.search(self.names, str(error))
                return Verdict("reported", "refused", line) if named else Verdict("crashes", type(error).__name__, line)
        if not found.harm:
            return Verdict("prevented", found.number)
        line = next((line for line in [*found.said, *lines] if re.search(self.names, line)), "")
        return Verdict("reported" if line else "silent", found.number, line)


FAULTS: dict[str, Fault] = {}


def fault(title: str, names: str, **how: Any) -> Callable[[Callable[[Any, Path], Found]], Callable[[Any, Path], Found]]:
    """Enter a probe in the table."""

    def enter(probe: Callable[[Any, Path], Found]) -> Callable[[Any, Path], Found]:
        FAULTS[probe.__name__] = Fault(title, probe, names, **how)
        return probe

    return enter


class _Ear(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.INFO)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def heard() -> Iterator[list[str]]:
    """All that is warned of and logged meanwhile, a line each."""
    lines: list[str] = []
    ear, before = _Ear(lines), warnings.showwarning
    loggers = [logging.getLogger(name) for name in ("", "lightning.pytorch", "lightning.fabric", "finetuning_scheduler")]
    try:
        for logger in loggers:
            logger.addHandler(ear)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_, **__: lines.append(" ".join(str(message).split()))
            yield lines
    finally:
        warnings.showwarning = before
        for logger in loggers:
            logger.removeHandler(ear)
