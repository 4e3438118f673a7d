"""Command-line options of the benchmarks, checked before anything runs, and exit statuses."""

import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftlit.errors import UserError, unknown


def count(text: str) -> int:
    """A whole number, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def several(what: str, options: Iterable[object]) -> Callable[[str], list[str]]:
    """A parser of comma-separated names, each of them one of `options`."""

    def names(text: str) -> list[str]:
        given, known = text.split(","), [str(option) for option in options]
        for name in given:
            if name not in known:
                raise ArgumentTypeError(str(unknown(what, name, known)))
        return given

    return names


def existing(text: str) -> Path:
    """A folder that exists."""
    if not Path(text).is_dir():
        raise ArgumentTypeError(f"{text!r} is not a folder")
    return Path(text).resolve()


def sources(parser: ArgumentParser, names: Sequence[str], data: Path | None) -> list[str]:
    """Names of data sets as given, absolute paths for folders elsewhere; exit with an error if one does not exist."""
    if data is None:
        parser.error("--data DATA, or FTLIT_TEST_DATA, is required")
    available = sorted(path.name for path in (data / "images").iterdir()) if (data / "images").is_dir() else []
    found = []
    for name in names:
        if name != "digits" and name not in available and not Path(name).is_dir():
            parser.error(str(UserError(f"{unknown('data set', name, ['digits', *available])}; or give a path of your own folder")))
        found.append(name if name == "digits" or name in available else str(Path(name).resolve()))
    return found


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C into a one-line message."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit("interrupted; run the same command to continue") from None


def exit_if_failed(runs: Sequence[dict[str, Any]], log: Path) -> None:
    """Exit with status 1 and the first error if runs failed."""
    if errors := [run["error"] for run in runs if "error" in run]:
        sys.exit(f"{len(errors)} of {len(runs)} runs failed, the first: {errors[0]}; see {log}")
