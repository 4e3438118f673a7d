"""Figures of merit of a network's answers on test images, class by class and by how sure it was."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftlit.report.contents import Predictions

BINS = 15
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ClassScore:
    """Of one class: how many of its images there are, and the shares in [0, 1]; 0 where there is nothing to divide by.

    Args:
        name: of the class.
        images: of the test split that have it.
        precision: of those said to have it, the share that does.
        recall: of those that have it, the share that was found.
        f1: the harmonic mean of both.
    """

    name: str
    images: int
    precision: float
    recall: float
    f1: float


def class_scores(tested: Predictions, class_names: Sequence[str]) -> list[ClassScore]:
    """By class, in the order of the class numbers."""
    said, true = (_counts(labels, len(class_names)) for labels in (tested.predicted, tested.labels))
    right = _counts([set(a) & set(b) for a, b in zip(tested.labels, tested.predicted, strict=True)], len(class_names))
    return [
        ClassScore(name, int(t), r / max(s, 1), r / max(t, 1), 2 * r / max(s + t, 1))
        for name, s, t, r in zip(class_names, said, true, right, strict=True)
    ]


def confusion(tested: Predictions) -> tuple[Array, Array]:
    """Pairs int (n, 2) of a class and what it was taken for, those that there are, and how often (n,). Of images with one label."""
    both = np.hstack([np.array(numbers, dtype=int).reshape(-1, 1) for numbers in (tested.labels, tested.predicted)])
    pairs, counts = np.unique(both, axis=0, return_counts=True)
    return pairs, counts


def reliability(tested: Predictions) -> tuple[Array, Array, Array, float]:
    """Mean probability, accuracy and number of images in each of `BINS` bins of equal width, and the expected calibration error: the mean
    distance of the first two, weighted by the third (Guo et al. 2017, section 2). Empty bins are nan; images without a finite probability
    are in none.
    """
    finite = np.isfinite(tested.probability)
    right = np.array([set(a) == set(b) for a, b in zip(tested.labels, tested.predicted, strict=True)], float)[finite]
    probability = tested.probability[finite]
    places = np.minimum((probability * BINS).astype(int), BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    with np.errstate(invalid="ignore"):
        sure, accuracy = (np.bincount(places, values, BINS) / counts for values in (probability, right))
    return sure, accuracy, counts, float(np.nansum(np.abs(sure - accuracy) * counts) / max(counts.sum(), 1))


def surest_mistakes(tested: Predictions) -> list[int]:
    """Places of all that was taken for something else, the surest first."""
    pairs = enumerate(zip(tested.labels, tested.predicted, strict=True))
    return sorted((place for place, (label, said) in pairs if label != said), key=lambda place: -np.nan_to_num(tested.probability[place]))


def _counts(labels: Sequence[Any], number: int) -> Array:
    return np.bincount([label for held in labels for label in held], minlength=number).astype(float)
