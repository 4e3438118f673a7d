"""Read csv files that list examples: cells, labels and splits, with file and line in each error."""

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from PIL import Image

from ftlit.data.csv_format import TAB, TAB_CHARACTER, USUAL, USUAL_NAMES, CsvFormat
from ftlit.data.dataset import SPLITS, Split
from ftlit.data.source_paths import existing_csv
from ftlit.data.splitting.split_names import split_named
from ftlit.errors import UserError, closest, one_line, shorten, unknown
from ftlit.formatting import count, shell_word, shown

QUOTE_ERRORS = {  # part of a message of the csv module -> what is wrong with a row
    "unexpected end of data": "has a double quote that is never closed: add the closing quote",
    "expected after": 'has a double quote inside a value in double quotes: write each " inside such a value as ""',
}
SPLIT_COLUMN = "split"  # the default of `split_column`, the only column that a file need not have
_BEYOND = "\0beyond"  # key of the values beyond the last column; no csv file can hold it


class _OfSplit(Protocol):
    @property
    def split(self) -> Split:
        """The split of an example."""


Listed = TypeVar("Listed", bound=_OfSplit)


def read_csv(path: Path, form: CsvFormat = USUAL) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """Read a csv with a header line. Returns the column names, and (file and line, row) for each row.

    Raises:
        UserError: no such file, an empty file, a file that is not csv in its encoding, a column named twice, a row with more fields than
            columns.
    """
    existing_csv(path)
    rows: list[tuple[str, dict[str, str]]] = []
    begin = 1  # line of the row that is read
    try:
        with path.open(newline="", encoding=form.decoder) as file:
            # strict: a quote that is not closed would make one cell of the rest of the file
            reader = csv.DictReader(file, restkey=_BEYOND, restval="", strict=True, delimiter=form.delimiter(file))
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            begin = reader.line_num + 1
            for row in reader:
                rows.append((f"{shown(path)}, line {reader.line_num}", row))
                begin = reader.line_num + 1
    except UnicodeError as error:  # of UTF-16 without its mark it is no UnicodeDecodeError
        raise UserError(
            f"{shown(path)} is not encoded in {form.encoding.upper()}: give its encoding, such as data.encoding="
            f"{'cp1252' if form.encoding.lower().startswith('utf') else 'utf-16'}, or save it as UTF-8 (in a spreadsheet: as type CSV "
            "UTF-8) and leave data.encoding out"
        ) from error
    except csv.Error as error:
        reason = next((text for part, text in QUOTE_ERRORS.items() if part in str(error)), one_line(error))
        raise UserError(f"{shown(path)} cannot be read as csv: the row that begins in line {begin} {reason}") from error
    if not columns:
        raise UserError(f"{shown(path)} is empty: give a header line with the names of the columns, and a row for each example")
    if twice := [name for name, count in Counter(columns).items() if count > 1 and name]:
        raise UserError(f"{shown(path)} has several columns with the same name ({shorten(twice)}): rename or remove them")
    for where, row in rows:
        _check_length(row, columns, where)
    return columns, rows


def check_columns(path: Path, known: Sequence[str], wanted: Mapping[str, str | None]) -> None:
    """Check that a csv file has the columns that are read.

    Args:
        path: of the file.
        known: its columns.
        wanted: option -> column, `None` for one that is not used. The default of `split_column` may be missing, another name may not.

    Raises:
        UserError: a column is missing. Where the file has another usual name for it, the message gives the option to set.
    """
    optional = {("split_column", SPLIT_COLUMN)}
    missing = {option: column for option, column in wanted.items() if column not in (None, *known) and (option, column) not in optional}
    if not missing:
        return
    if mark := _mark_in(known):
        raise UserError(f"{shown(path)} has no column {shorten(map(repr, missing.values()))}, only {known[0]!r}: give {_separator(mark)}")
    if any(Path(name).suffix.lower() in Image.registered_extensions() for name in known):
        raise UserError(
            f"the first line of {shown(path)} is data ({shorten(known)}), not a header: insert a first line with the names of the columns, "
            "such as path,label"
        )
    meant = {option: next((name for name in known if name.lower() in USUAL_NAMES.get(option, ())), None) for option in missing}
    if all(meant.values()):
        words = " ".join(f"data.{option}={name}" for option, name in meant.items())
        none = shorten(map(repr, missing.values()))
        raise UserError(f"{shown(path)} has no column {none}: give {words}; the file has the columns {shorten(known)}")
    option = next(option for option in missing if not meant[option])
    near = closest(missing[option], known)
    hint = f"did you mean data.{option}={near}? The" if near else f"give data.{option}=...; the"
    raise UserError(f"{shown(path)} has no column {missing[option]!r}: {hint} file has the columns {shorten(known)}")


def _mark_in(columns: Sequence[str]) -> str | None:
    """The separator that the name of an only column contains: the file was read with another one."""
    return next((mark for mark in (",", ";", "\t", "|", ":") if mark in columns[0]), None) if len(columns) == 1 else None


def _separator(mark: str) -> str:
    word = f"data.separator={TAB[0] if mark == TAB_CHARACTER else mark}"
    return f"'{word}'" if mark == "," else shell_word(word)  # a bare comma would look like the end of a part


def _check_length(row: dict[str, Any], columns: Sequence[str], where: str) -> None:
    """Reject a row with more values than columns: a comma in a cell without quotes would cut that cell."""
    beyond: list[str] = row.pop(_BEYOND, [])
    if any(text.strip() for text in beyond):
        advice = "put a value that contains the separator in double quotes"
        if mark := _mark_in(columns):
            advice = f"give {_separator(mark)}"
        raise UserError(
            f"{where} has {count(len(columns) + len(beyond), 'value')}, but the header has {count(len(columns), 'column')} "
            f"({shorten(map(repr, columns))}): {advice}"
        )


def cell_of(row: Mapping[str, str], column: str, where: str) -> str:
    """The value of a column without surrounding spaces. Raises `UserError` if it is empty."""
    if not (text := (row[column] or "").strip()):
        raise UserError(f"{where} has no value in column {column!r}: fill in a value, or remove the row")
    return text


def labels_of(row: Mapping[str, str], column: str, separator: str | None, where: str) -> tuple[str, ...]:
    """The labels in a column: one, or any number with a separator."""
    if separator is None:
        return (cell_of(row, column, where),)
    return tuple(dict.fromkeys(text.strip() for text in row[column].split(separator) if text.strip()))


def split_of(row: Mapping[str, str], column: str | None, where: str, otherwise: Split = "train") -> Split:
    """The split of a row; `otherwise` if there is no such column. Raises `UserError` for an unknown split."""
    if column is None or column not in row:
        return otherwise
    if (split := split_named(row[column])) is None:
        raise UserError(f"{where}: {unknown('split', row[column].strip(), SPLITS)}")
    return split


def in_several_files(
    csv: str | Path,
    others: Mapping[Split, str | Path | None],
    split_column: str,
    rows_of: Callable[[Path, str | None, Split], list[Listed]],
) -> list[Listed]:
    """The rows of a csv file, and of separate files for some splits.

    Args:
        csv: the file; its column `split_column` gives the split of a row, and without the column all are train.
        others: split -> a file whose rows all are of this split, or `None`.
        split_column: of `csv` only.
        rows_of: reads the rows of a file; called with its path, the column that gives the split (`None`: none), and the split of all rows
            without that column.

    Raises:
        UserError: a split that two files give, or no row of train.
    """
    rows = rows_of(Path(csv).expanduser(), split_column, "train")
    for split, path in others.items():
        if path is None:
            continue
        if any(row.split == split for row in rows):
            raise UserError(
                f"{shown(csv)} has rows with {split} in column {split_column!r}, but data.{split}_csv={shown(path)} gives {split} too: "
                f"remove those rows from {shown(csv)}, or leave out data.{split}_csv"
            )
        rows += rows_of(Path(path).expanduser(), None, split)
    if "train" not in {row.split for row in rows}:
        raise without_train(Path(csv), split_column)
    return rows


def without_train(path: Path, column: str) -> UserError:
    """The error for a csv file that gives no example of train."""
    return UserError(f"{shown(path)} has no row with train in column {column!r}: write train there for the training examples, or add rows")


def group_of(row: Mapping[str, str], column: str | None) -> str | None:
    """The group of a row; `None` if there is no such column, or an empty cell."""
    return None if column is None else row[column].strip() or None
