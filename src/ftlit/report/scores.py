"""Metrics of the predictions on test images: scores per class, confusion, calibration, most confident errors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ftlit.report.contents import Predictions

BINS = 15
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ClassScore:
    """Metrics of one class, in [0, 1]; 0 where the denominator is 0.

    Args:
        name: of the class.
        images: number of test images of this class.
        precision: share of its images among those predicted as it.
        recall: share of its images that are predicted as it.
        f1: harmonic mean of precision and recall.
    """

    name: str
    images: int
    precision: float
    recall: float
    f1: float


def class_scores(predictions: Predictions, class_names: Sequence[str]) -> list[ClassScore]:
    """Scores per class, in the order of the class numbers."""
    predicted, true = (_counts(labels, len(class_names)) for labels in (predictions.predicted, predictions.labels))
    right = _counts([set(a) & set(b) for a, b in zip(predictions.labels, predictions.predicted, strict=True)], len(class_names))
    return [
        ClassScore(name, int(t), r / max(p, 1), r / max(t, 1), 2 * r / max(p + t, 1))
        for name, p, t, r in zip(class_names, predicted, true, right, strict=True)
    ]


def low_recalls(scores: Sequence[ClassScore]) -> list[ClassScore]:
    """The classes whose recall is below half of the accuracy, the lowest first; of images with one label."""
    images = sum(score.images for score in scores)
    accuracy = sum(score.recall * score.images for score in scores) / max(images, 1)
    return sorted(
        (score for score in scores if score.images and score.recall < accuracy / 2), key=lambda score: (score.recall, -score.images)
    )


def confusion(predictions: Predictions) -> tuple[Array, Array]:
    """Pairs (true class, predicted class), int (n, 2), that occur, and their counts (n,); of images with one label."""
    both = np.hstack([np.array(numbers, dtype=int).reshape(-1, 1) for numbers in (predictions.labels, predictions.predicted)])
    pairs, counts = np.unique(both, axis=0, return_counts=True)
    return pairs, counts


def reliability(predictions: Predictions) -> tuple[Array, Array, Array, float]:
    """Mean probability, accuracy and number of images in each of `BINS` bins of equal width, and the expected calibration error: the mean
    distance of the first two, weighted by the third (Guo et al. 2017, section 2). Empty bins are nan; images without a finite probability
    are in none.
    """
    finite = np.isfinite(predictions.probability)
    right = np.array([set(a) == set(b) for a, b in zip(predictions.labels, predictions.predicted, strict=True)], float)[finite]
    probability = predictions.probability[finite]
    places = np.minimum((probability * BINS).astype(int), BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (np.bincount(places, values, BINS) / counts for values in (probability, right))
    return confidence, accuracy, counts, float(np.nansum(np.abs(confidence - accuracy) * counts) / max(counts.sum(), 1))


def uncalibrated(predictions: Predictions) -> Predictions:
    """The predictions with their probabilities before temperature scaling, where these are known."""
    return predictions if predictions.uncalibrated is None else replace(predictions, probability=predictions.uncalibrated)


def calibration_error_by_chance(predictions: Predictions, draws: int = 200) -> float:
    """The expected calibration error that perfect probabilities would not exceed on as many images in 95 % of cases: its quantile over
    random draws of which predictions are correct, each with its own probability (Bröcker and Smith 2007).
    """
    probability = predictions.probability[np.isfinite(predictions.probability)]
    places = np.minimum((probability * BINS).astype(int), BINS - 1)
    random = np.random.default_rng(0)
    found = [np.abs(np.bincount(places, probability - (random.random(len(places)) < probability), BINS)).sum() for _ in range(draws)]
    return float(np.quantile(found, 0.95) / max(len(places), 1))


def most_confident_errors(predictions: Predictions) -> list[int]:
    """Positions of the wrong predictions, the most confident first."""
    pairs = enumerate(zip(predictions.labels, predictions.predicted, strict=True))
    return sorted(
        (place for place, (label, predicted) in pairs if label != predicted),
        key=lambda place: -np.nan_to_num(predictions.probability[place]),
    )


def _counts(labels: Sequence[Any], number: int) -> Array:
    return np.bincount([label for held in labels for label in held], minlength=number).astype(float)
