"""The prediction for one image or text, and the rows that `ftlit predict` prints: csv, or JSON lines."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from math import inf, isinf
from typing import Any, TextIO

from ftlit.errors import shorten
from ftlit.formatting import harmless, printable
from ftlit.intervals import accuracy_interval

OUTPUT_FORMATS = ("csv", "jsonl")
SEPARATOR = " | "  # between the classes of a set in a cell


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image or text.

    Args:
        probabilities: class name -> probability in [0, 1], the highest first. They sum to 1, except for data with several labels.
        distance: of the features from those of training, relative to the threshold, see `FeatureSubspace.relative_distances`; `None` where
            the checkpoint cannot tell.
    """

    probabilities: Mapping[str, float]
    distance: float | None = None

    def __repr__(self) -> str:
        return f"Prediction({shorten((f'{label} {value:.4f}' for label, value in self.probabilities.items()), most=3)})"

    @property
    def unlike(self) -> bool | None:
        """Whether the input is unlike those of training: its distance is above 1. `None` where the checkpoint cannot tell."""
        return None if self.distance is None else self.distance > 1

    @property
    def label(self) -> str:
        """The most probable class."""
        return next(iter(self.probabilities))

    @property
    def probability(self) -> float:
        """Probability of the most probable class."""
        return self.probabilities[self.label]

    def top(self, k: int) -> list[tuple[str, float]]:
        """The k most probable classes and their probabilities; all, if there are fewer."""
        return list(self.probabilities.items())[:k]

    def classes_within(self, threshold: float) -> list[str]:
        """The classes, the most probable first, whose score, 1 - probability, is at most this; see `ftlit.inference.prediction_sets`."""
        return [label for label, value in self.probabilities.items() if 1 - value <= threshold]


PredictionRow = tuple[str, Prediction | str]  # name; prediction, or the reason why there is none


def unsure_first(
    rows: Sequence[PredictionRow], true_labels: Sequence[str] | None, *, multilabel: bool
) -> tuple[list[PredictionRow], list[str] | None]:
    """Return rows and their true labels, the least certain prediction first, rows without a prediction last.

    Args:
        rows: in any order.
        true_labels: of the rows; `None`: not known.
        multilabel: whether an input has any number of labels. Then its certainty is that of the least certain of them.
    """
    order = sorted(range(len(rows)), key=lambda place: _certainty(rows[place][1], multilabel=multilabel))
    return [rows[place] for place in order], None if true_labels is None else [true_labels[place] for place in order]


def _certainty(result: Prediction | str, *, multilabel: bool) -> float:
    if isinstance(result, str):
        return inf
    return min(max(value, 1 - value) for value in result.probabilities.values()) if multilabel else result.probability


class RowWriter:
    """Writes rows, each as soon as it is computed.

    Args:
        to: the stream.
        format: one of `OUTPUT_FORMATS`.
        top: number of classes in a row.
        threshold: of the prediction set in each row, see `Prediction.classes_within`; `None`: no sets.
        with_distance: whether the predictions have a distance from the inputs of training.
        true_labels: of the inputs, in the order of the rows; `None`: not known.

    Attributes:
        set_sizes: number of classes in a set -> number of sets so far.
        unlike: number of inputs so far that are unlike those of training.
        images: true label -> number of inputs with a prediction so far.
        errors: true label -> number of those so far whose most probable class is another one.
        covered: number of those so far whose set holds the true label.
    """

    def __init__(
        self,
        to: TextIO,
        format: str,
        top: int,
        threshold: float | None = None,
        *,
        with_distance: bool = False,
        true_labels: Iterable[str] | None = None,
    ) -> None:
        self.to, self.format, self.top, self.threshold, self.with_distance = to, format, top, threshold, with_distance
        self.true_labels = true_labels
        self.set_sizes: Counter[int] = Counter()
        self.unlike = 0
        self.images: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.covered = 0

    def write(self, rows: Iterable[PredictionRow]) -> int:
        """Write a header, if the format has one, and the rows. Returns the number of rows without a prediction."""
        write = self._write_json if self.format == "jsonl" else self._csv_writer()
        failed = 0
        for (name, result), label in zip(rows, repeat(None) if self.true_labels is None else self.true_labels, strict=False):
            failed += isinstance(result, str)
            self.unlike += not isinstance(result, str) and bool(result.unlike)
            within = None
            if self.threshold is not None and not isinstance(result, str):
                within = result.classes_within(self.threshold)
                self.set_sizes[len(within)] += 1
            if label is not None and not isinstance(result, str):
                self.images[label] += 1
                if result.label != label:
                    self.errors[label] += 1
                self.covered += within is not None and label in within
            write(printable(name), result, within, label)
        return failed

    def describe_sets(self) -> str:
        """How many sets have one class, several, or none; their mean size; and how many hold the true label, where it is known."""
        empty, one, number = self.set_sizes[0], self.set_sizes[1], self.set_sizes.total()
        mean = sum(size * of for size, of in self.set_sizes.items()) / max(1, number)
        text = f"{one:,} of one class, {number - empty - one:,} of several, {empty:,} empty, {mean:.2f} classes on average"
        if labelled := self.images.total():
            share = self.covered / labelled
            low, high = accuracy_interval(share, labelled)
            text += f"; coverage on the {labelled:,} labelled ones {share:.4f} (95 % interval {low:.3f} to {high:.3f})"
        few = self.threshold is not None and isinf(self.threshold)
        return f"{text} (too few held-out examples for this coverage, so each set holds all classes)" if few else text

    def _write_json(self, name: str, result: Prediction | str, within: list[str] | None, label: str | None) -> None:
        if isinstance(result, str):
            found: dict[str, Any] = {"error": result}
        else:
            found = {"predictions": [{"label": label, "probability": round(value, 6)} for label, value in result.top(self.top)]}
            found |= {} if within is None else {"set": within, "sure": len(within) == 1}
            found |= {} if result.distance is None else {"unlike": result.unlike, "distance": round(result.distance, 4)}
        found |= {} if label is None else {"true_label": label}
        self.to.write(json.dumps({"path": name, **found}, ensure_ascii=False) + "\n")

    def _csv_writer(self) -> Any:
        writer, quoting = (csv.writer(self.to, lineterminator="\n", quoting=rule) for rule in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        more = [f"{name}_{i}" for i in range(2, self.top + 1) for name in ("label", "probability")]
        others = [*([] if self.threshold is None else ["set", "sure"]), *(["unlike", "distance"] if self.with_distance else [])]
        others += [] if self.true_labels is None else ["true_label"]
        writer.writerow(["path", "label", "probability", *more, *others, "error"])

        def write(name: str, result: Prediction | str, within: list[str] | None, label: str | None) -> None:
            top = [] if isinstance(result, str) else result.top(self.top)
            cells = [cell for label, value in top for cell in (harmless(label), f"{value:.4f}")]
            sets = [] if self.threshold is None else [harmless(SEPARATOR.join(within or [])), _sure_cell(within)]
            distances = _distance_cells(result) if self.with_distance else []
            known = [] if label is None else [harmless(label)]
            error = result if isinstance(result, str) else ""
            row = [harmless(name), *cells, *[""] * (2 * self.top - len(cells)), *sets, *distances, *known, error]
            (quoting if "\r" in "".join(row) else writer).writerow(row)

        return write


def _sure_cell(within: list[str] | None) -> str:
    """Whether the set has one class; empty for an input without a prediction."""
    return "" if within is None else "yes" if len(within) == 1 else "no"


def _distance_cells(result: Prediction | str) -> list[str]:
    if isinstance(result, str) or result.distance is None:
        return ["", ""]
    return ["yes" if result.unlike else "no", f"{result.distance:.3f}"]
