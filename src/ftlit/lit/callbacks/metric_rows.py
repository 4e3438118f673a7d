"""Rows of `metrics.csv`: those that a file holds whole, and a hash of them, by which a resumed run recognises its own."""

import csv
from collections.abc import Mapping, Sequence
from typing import Any

from xxhash import xxh3_64

from ftlit.formats import ENCODING

Row = dict[str, str]


def complete_rows(text: str) -> list[Row]:
    """The rows of a csv file without empty cells and cells beyond the header; a last line without an end was cut, and is left out."""
    lines = text.splitlines(keepends=True)
    whole = lines if text.endswith("\n") else lines[:-1]
    return [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(whole)]


def add_rows(digest: xxh3_64, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a hash: their cells that are not empty, whatever the order of the columns."""
    for row in rows:
        cells = {name: str(value) for name, value in row.items() if value is not None}
        digest.update(f"{sorted((name, text) for name, text in cells.items() if text)}\n".encode(**ENCODING))
