"""The layout of help texts: rows in two columns, wrapped for the terminal."""

import shutil
import textwrap
from collections.abc import Iterable

HelpRow = tuple[str, str]
MAX_WIDTH, LEFT = 120, 36  # columns of the text, and of what is on the left of it


def two_columns(title: str, rows: Iterable[HelpRow]) -> str:
    """A title and rows below it. The text of a row whose left part is long begins below that; lines of a text stay lines."""
    lines = [f"{title}:"]
    for left, right in rows:
        wrapped = [line for part in right.split("\n") for line in textwrap.wrap(part, _width() - LEFT - 2, break_on_hyphens=False)]
        first = wrapped.pop(0) if wrapped and len(left) < LEFT else ""
        lines += [f"  {left:{LEFT}}{first}".rstrip(), *(" " * (LEFT + 2) + line for line in wrapped)]
    return "\n".join(lines)


def paragraph(text: str) -> str:
    """A text, wrapped."""
    return textwrap.fill(text, _width(), break_on_hyphens=False)


def _width() -> int:
    return min(shutil.get_terminal_size((100, 24)).columns, MAX_WIDTH)
