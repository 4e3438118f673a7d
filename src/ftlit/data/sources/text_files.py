"""Read labelled texts from csv files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ftlit.code_identity import versioned
from ftlit.data.dataset import SPLITS, Collection, Examples, Split
from ftlit.data.sources.csv_files import cell_of, check_columns, group_of, labels_of, read_csv, split_of, without_train
from ftlit.data.sources.label_notes import label_notes
from ftlit.data.splitting.splits import SplitRule, assemble
from ftlit.errors import UserError
from ftlit.formatting import shown


class _TextRow(NamedTuple):
    """A text with the names of its labels, its split, and its group, if it has one."""

    text: str
    labels: tuple[str, ...]
    split: Split
    group: str | None


class _Columns(NamedTuple):
    """Names of columns; `None` for one that the file need not have."""

    text: str
    label: str
    split: str | None
    group: str | None


def collect_texts(
    csv: str | Path,
    *,
    others: Mapping[Split, str | Path | None],
    text_column: str,
    label_column: str,
    split_column: str,
    label_separator: str | None,
    group_column: str | None,
    rule: SplitRule,
) -> Collection:
    """Read a checked collection of texts (`ftlit.data.splitting.splits.assemble`) from csv files with a header line.

    Class names are sorted. The bytes of a text identify it.

    Args:
        csv: the file, UTF-8.
        others: split -> a separate file for it, or `None`.
        text_column: column with the text; surrounding spaces are removed.
        label_column: column with its label.
        split_column: column of `csv` with train, val or test; without a column `split` all texts are train.
        label_separator: separator of several labels in one cell, an empty cell has none; `None`: a cell is one label.
        group_column: column with the group of a text, which a split keeps together; `None`: no groups.
        rule: see `assemble`.

    Raises:
        UserError: a missing file or column, an empty text or label, an unknown split, a split that two files give.
    """
    columns = _Columns(text_column, label_column, split_column, group_column)
    rows = _rows(Path(csv).expanduser(), columns, label_separator)
    for split, path in others.items():
        if path is None:
            continue
        if any(row.split == split for row in rows):
            raise UserError(
                f"{shown(csv)} has rows with {split} in column {columns.split!r}, but data.{split}_csv={shown(path)} gives {split} too: "
                f"remove those rows from {shown(csv)}, or leave out data.{split}_csv"
            )
        rows += [row._replace(split=split) for row in _rows(Path(path).expanduser(), columns._replace(split=None), label_separator)]
    if "train" not in {row.split for row in rows}:
        raise without_train(Path(csv), str(columns.split))
    class_names = sorted({label for row in rows for label in row.labels})
    found = {split: _examples(own, class_names) for split in SPLITS if (own := [row for row in rows if row.split == split])}
    collection = assemble(found, class_names, rule, multilabel=label_separator is not None)
    collection.notes[:0] = label_notes(class_names)
    return collection


def _rows(path: Path, columns: _Columns, separator: str | None) -> list[_TextRow]:
    known, rows = read_csv(path)
    check_columns(path, known, {f"{name}_column": column for name, column in columns._asdict().items()})
    if not rows:
        raise UserError(f"{shown(path)} lists no texts: add one row per text")
    return [
        _TextRow(
            cell_of(row, columns.text, at),
            labels_of(row, columns.label, separator, at),
            split_of(row, columns.split, at) if columns.split is not None else "train",
            group_of(row, columns.group),
        )
        for at, row in rows
    ]


def _examples(rows: Sequence[_TextRow], class_names: Sequence[str]) -> Examples:
    numbers = {name: number for number, name in enumerate(class_names)}
    texts = [row.text for row in rows]
    labels = [tuple(sorted(numbers[label] for label in row.labels)) for row in rows]
    groups = [row.group for row in rows]
    contents = [np.frombuffer(text.encode(), np.uint8) for text in texts]
    return Examples(texts, labels, read_text, contents, groups if any(groups) else None)


@versioned("read_text", 1)
def read_text(text: str) -> str:
    """Return the text: no file is read."""
    return text
