"""Print lines and tables on stdout."""

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ftlit.formatting import without_control


def print_line(text: str) -> None:
    """Print a text in one line, as it is, except control characters."""
    console().print(plain(text), soft_wrap=True)


def plain(text: str) -> str:
    """A text from outside for the console: without markup, control characters escaped."""
    return escape(without_control(text))


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print rows, each in one line."""
    for name, text in rows:
        print_line(f"{name:<8}  {text}")


def show(table: Table) -> None:
    """Print a table."""
    console().print(table)


def console() -> Console:
    """Wide enough for the plan where no terminal decides."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)
