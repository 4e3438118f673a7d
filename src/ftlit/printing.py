"""Print lines and tables on stdout."""

import os
import sys
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.markup import escape

from ftlit.formatting import without_control


def print_line(text: str) -> None:
    """Print a text in one line, as it is, except control characters."""
    show(plain(text))


def plain(text: str) -> str:
    """A text from outside for the console: without markup, control characters escaped."""
    return escape(without_control(text))


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print rows, each in one line."""
    for name, text in rows:
        print_line(f"{name:<8}  {text}")


def show(item: RenderableType) -> None:
    """Print a text with markup in one line, or a table, wrapped for the terminal; without spaces at the ends of lines."""
    out = console()
    with out.capture() as captured:
        out.print(item, soft_wrap=isinstance(item, str))
    print(*(line.rstrip(" ") for line in captured.get().removesuffix("\n").split("\n")), sep="\n")


def console() -> Console:
    """As wide as the terminal, or as `COLUMNS`; else wide enough for the plan. In notebooks it prints text, as anywhere."""
    columns = os.environ.get("COLUMNS", "")
    decided = sys.stdout.isatty() or (columns.isdigit() and int(columns))
    return Console(highlight=False, width=None if decided else 160, force_jupyter=False)
