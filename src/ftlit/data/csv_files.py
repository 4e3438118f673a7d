"""Read csv files that list examples: cells, labels and splits, with file and line in each error."""

import csv
from collections.abc import Mapping
from pathlib import Path

from ftlit.data.dataset import SPLIT_NAMES, SPLITS, Split
from ftlit.data.images import shown
from ftlit.errors import UserError, one_line, unknown


def read_csv(path: Path) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """Column names, and (file and line, row) for each row, of a csv with a header line. Raises `UserError` if it cannot be read."""
    if not path.is_file():
        raise missing_path("csv file", path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets write a byte order mark
            reader = csv.DictReader(file, restval="")
            rows = [(f"{shown(path)}, line {reader.line_num}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{shown(path)} cannot be read as csv in UTF-8: {one_line(error)}") from error
    return list(reader.fieldnames or []), rows


def cell_of(row: Mapping[str, str], column: str, where: str) -> str:
    """The value of a column without surrounding spaces. Raises `UserError` if it is empty."""
    if not (text := (row[column] or "").strip()):
        raise UserError(f"{where}: column {column!r} is empty")
    return text


def labels_of(row: Mapping[str, str], column: str, separator: str | None, where: str) -> tuple[str, ...]:
    """The labels in a column: one, or any number with a separator."""
    if separator is None:
        return (cell_of(row, column, where),)
    return tuple(dict.fromkeys(text.strip() for text in row[column].split(separator) if text.strip()))


def split_of(row: Mapping[str, str], column: str, where: str) -> Split:
    """The split of a row; train if there is no such column. Raises `UserError` for an unknown split."""
    if column not in row:
        return "train"
    if (given := row[column].strip()).lower() not in SPLIT_NAMES:
        raise unknown(f"split in {where}:", given, SPLITS)
    return SPLIT_NAMES[given.lower()]


def missing_path(what: str, path: Path) -> UserError:
    """The error for a missing path, with the closest match in its folder."""
    if not path.parent.is_dir():
        return UserError(f"no {what} {shown(path)}: there is no folder {shown(path.parent)} either")
    beside = sorted(shown(other.name) for other in path.parent.iterdir() if other.is_dir() == (what == "folder"))
    return UserError(f"{unknown(what, shown(path.name), beside)} (in {shown(path.parent.absolute())})")
