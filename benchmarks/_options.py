"""What the benchmarks' commands are given, checked before anything runs; and how a command ends."""

import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftlit.errors import UserError, unknown


def count(text: str) -> int:
    """A number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def several(what: str, options: Iterable[object]) -> Callable[[str], list[str]]:
    """Names with commas between, each of them one of `options`."""

    def names(text: str) -> list[str]:
        given, known = text.split(","), [str(option) for option in options]
        for name in given:
            if name not in known:
                raise ArgumentTypeError(str(unknown(what, name, known)))
        return given

    return names


def existing(text: str) -> Path:
    """One that is there."""
    if not Path(text).is_dir():
        raise ArgumentTypeError(f"{text!r} is no folder")
    return Path(text).resolve()


def sources(parser: ArgumentParser, names: Sequence[str], data: Path | None) -> list[str]:
    """Names of data sets as they were given, whole paths for folders elsewhere; an error of the command for what is not there."""
    if data is None:
        parser.error("--data DATA, or FTLIT_TEST_DATA, is needed")
    there = sorted(path.name for path in (data / "images").iterdir()) if (data / "images").is_dir() else []
    found = []
    for name in names:
        if name != "digits" and name not in there and not Path(name).is_dir():
            parser.error(str(UserError(f"{unknown('data set', name, ['digits', *there])}; or a folder of your own")))
        found.append(name if name == "digits" or name in there else str(Path(name).resolve()))
    return found


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C is one line."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on") from None


def ended(runs: Sequence[dict[str, Any]], log: Path) -> None:
    """Exit status 1 where runs failed, and a line that says why."""
    if failed := [run["error"] for run in runs if "error" in run]:
        sys.exit(f"{len(failed)} of {len(runs)} runs failed, the first: {failed[0]}; see {log}")
