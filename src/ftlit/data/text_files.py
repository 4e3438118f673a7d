"""Read labelled texts from csv files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ftlit.code_identity import versioned
from ftlit.data.csv_files import cell_of, labels_of, read_csv, split_of
from ftlit.data.dataset import SPLITS, Collection, Examples, Split
from ftlit.data.images import shown
from ftlit.data.splits import assemble
from ftlit.errors import UserError, unknown

TextRow = tuple[str, tuple[str, ...], Split]  # text, labels, split


def collect_texts(
    csv: str | Path,
    *,
    others: Mapping[Split, str | Path | None],
    text_column: str,
    label_column: str,
    split_column: str,
    label_separator: str | None,
    fractions: Mapping[Split, float],
    split_seed: int,
) -> Collection:
    """A checked collection of the texts of csv files with a header line; see `ftlit.data.splits.assemble`. Class names are sorted;
    a text is identified by its bytes.

    Args:
        csv: the file, UTF-8.
        others: split -> a separate file for it, or `None`.
        text_column: column with the text; surrounding spaces are removed.
        label_column: column with its label.
        split_column: column of `csv` with train, val or test; without it all texts are train.
        label_separator: separator of several labels in one cell, an empty cell has none; `None`: a cell is one label.
        fractions: see `assemble`.
        split_seed: see `assemble`.

    Raises:
        UserError: a missing file or column, an empty text or label, an unknown split, a split that comes from two places.
    """
    columns = text_column, label_column, split_column
    rows = _rows(Path(csv).expanduser(), columns, label_separator)
    for split, path in others.items():
        if path is None:
            continue
        if any(row[2] == split for row in rows):
            raise UserError(f"{shown(csv)} has rows of the split {split}, and data.{split}_csv={shown(path)} gives another: leave one out")
        rows += [(text, labels, split) for text, labels, _ in _rows(Path(path).expanduser(), (*columns[:2], None), label_separator)]
    if "train" not in {split for *_, split in rows}:
        raise UserError(f"{shown(csv)} lists no text of the train split")
    class_names = sorted({label for _, labels, _ in rows for label in labels})
    numbers = {name: number for number, name in enumerate(class_names)}
    found = {}
    for split in SPLITS:
        if own := [(text, tuple(sorted(numbers[label] for label in labels))) for text, labels, at in rows if at == split]:
            found[split] = _examples(*map(list, zip(*own, strict=True)))
    return assemble(found, class_names, fractions=fractions, split_seed=split_seed, multilabel=label_separator is not None)


def _rows(path: Path, columns: tuple[str, str, str | None], separator: str | None) -> list[TextRow]:
    known, rows = read_csv(path)
    text, label, split = columns
    for column in (text, label):
        if column not in known:
            raise unknown(f"column in {shown(path)}", column, known)
    if not rows:
        raise UserError(f"{shown(path)} lists no text")
    return [
        (cell_of(row, text, at), labels_of(row, label, separator, at), split_of(row, split, at) if split is not None else "train")
        for at, row in rows
    ]


def _examples(texts: list[str], labels: list[tuple[int, ...]]) -> Examples:
    return Examples(texts, labels, read_text, [np.frombuffer(text.encode(), np.uint8) for text in texts])


@versioned("read_text", 1)
def read_text(text: str) -> str:
    """A text as it is: the csv file holds it."""
    return text
