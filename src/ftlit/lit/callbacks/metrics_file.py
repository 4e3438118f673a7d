"""MetricsFile: the `metrics.csv` of a run, which a resumed run continues; it recognises its own rows by their hash."""

import csv
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from xxhash import xxh3_64

from ftlit.files import naming
from ftlit.formats import ENCODING, reading
from ftlit.lit.trainer_internals import has_csv_writer, waiting_rows
from ftlit.plain_arguments import plain_arguments

Row = dict[str, str]


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, which always begins a new `metrics.csv`, able to continue the one of the run that is resumed."""

    @plain_arguments
    def __init__(self, save_dir: str | Path, name: str | None = "", version: int | str | None = "") -> None:
        super().__init__(save_dir, name=name, version=version)
        self.trains = True  # whether rows are of training, not of the evaluation of the result, which is of no epoch
        self._earlier_rows: list[Row] = []
        self._replaces = False  # whether it removes rows of an earlier run
        self._count, self._hash = 0, xxh3_64()  # of the rows that were written

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.log_dir, "metrics.csv")

    @property
    def experiment(self) -> Any:
        """The writer of the file. Rows that are in the file already are read before the writer removes it."""
        if not has_csv_writer(self) and self.path.is_file():
            with reading(self.path, "remove it; only its rows are lost"):
                self._earlier_rows = complete_rows(self.path.read_text())
            self._replaces = bool(self._earlier_rows)
        with naming(self.path), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Experiment logs directory .* exists and is not empty")  # see `save`
            return super().experiment

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Add a row; one of the evaluation of the result has no epoch: Lightning gives it one that was never trained."""
        super().log_metrics(metrics if self.trains else {name: value for name, value in metrics.items() if name != "epoch"}, step)

    def save(self) -> None:
        """Write the rows that are in memory. Raises `WriteError`."""
        rows = waiting_rows(self.experiment)
        if rows and self._replaces:
            self._replaces = False
            warnings.warn(f"replacing the rows of an earlier run in {self.path}", stacklevel=2)
        with naming(self.path):
            super().save()
        self._count += len(rows)
        add_rows(self._hash, rows)

    def flush(self) -> tuple[int, str]:
        """Write rows that are still in memory. Returns the number of rows in the file, and a hash of them."""
        self.save()
        return self._count, self._hash.hexdigest()

    def continue_after(self, count: int, digest: str | None) -> None:
        """Keep the first rows of the file that was there; new rows follow them. A warning reports rows that are missing, or have changed.

        Args:
            count: how many rows to keep.
            digest: the hash of these rows, as `flush` gave it; `None` in checkpoints of earlier releases.
        """
        writer = self.experiment  # first, because it reads the earlier rows
        self._replaces = False
        kept = self._earlier_rows[:count]
        found = xxh3_64()
        add_rows(found, kept)
        if len(kept) < count:
            damage = f"was cut off: only {len(kept)} of {count} rows left" if kept else f"is missing or empty: rows lost: {count}"
            warnings.warn(f"{self.path} {damage}; the rows that are left stay, and new rows follow them", stacklevel=2)
        elif digest not in (None, found.hexdigest()):
            warnings.warn(f"{self.path} was changed: the first {count} rows differ from the rows that the run wrote", stacklevel=2)
        waiting_rows(writer)[:0] = kept


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
