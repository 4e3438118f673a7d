"""Read labelled texts from csv files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ftlit.data.csv_format import USUAL, CsvFormat
from ftlit.data.dataset import SPLITS, Collection, Examples, Split
from ftlit.data.sources.csv_files import (
    cell_of,
    check_columns,
    group_of,
    in_several_files,
    labels_of,
    read_csv,
    split_of,
)
from ftlit.data.sources.label_notes import label_notes
from ftlit.data.splitting.splits import SplitRule, assemble
from ftlit.errors import UserError
from ftlit.formatting import shown
from ftlit.identity.code_identity import versioned


class _TextRow(NamedTuple):
    """A text with the names of its labels, its split, and its group, if it has one."""

    text: str
    labels: tuple[str, ...]
    split: Split
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
    form: CsvFormat = USUAL,
) -> Collection:
    """Read a checked collection of texts (`ftlit.data.splitting.splits.assemble`) from csv files with a header line.

    Class names are sorted. The bytes of a text identify it.

    Args:
        csv: the file.
        others: split -> a separate file for it, or `None`.
        text_column: column with the text; surrounding spaces are removed.
        label_column: column with its label.
        split_column: column of `csv` with train, val or test; without a column `split` all texts are train.
        label_separator: separator of several labels in one cell, an empty cell has none; `None`: a cell is one label.
        group_column: column with the group of a text, which a split keeps together; `None`: no groups.
        rule: see `assemble`.
        form: encoding and separator of the files.

    Raises:
        UserError: a missing file or column, an empty text or label, an unknown split, a split that two files give.
    """

    def rows_of(path: Path, split_column: str | None, split: Split) -> list[_TextRow]:
        known, rows = read_csv(path, form)
        columns = {"text_column": text_column, "label_column": label_column, "split_column": split_column, "group_column": group_column}
        check_columns(path, known, columns)
        if not rows:
            raise UserError(f"{shown(path)} lists no texts: add one row per text")
        return [
            _TextRow(
                cell_of(row, text_column, at),
                labels_of(row, label_column, label_separator, at),
                split_of(row, split_column, at, split),
                group_of(row, group_column),
            )
            for at, row in rows
        ]

    rows = in_several_files(csv, others, split_column, rows_of)
    class_names = sorted({label for row in rows for label in row.labels})
    found = {split: _examples(own, class_names) for split in SPLITS if (own := [row for row in rows if row.split == split])}
    collection = assemble(found, class_names, rule, multilabel=label_separator is not None)
    collection.notes[:0] = label_notes(class_names)
    return collection


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
