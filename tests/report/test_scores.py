"""Scores of predictions: precision, recall, F1, confusion matrix, calibration, and the most confident errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from report_data import run_data_of
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torchmetrics.functional.classification import multiclass_calibration_error

from ftlit.lit.callbacks.recorder import predictions_of
from ftlit.report.contents import Predictions
from ftlit.report.scores import (
    ClassScore,
    calibration_error_by_chance,
    class_scores,
    confusion,
    low_recalls,
    most_confident_errors,
    reliability,
)


@pytest.mark.parametrize("number", [2, 10])
def test_scores_equal_those_of_scikit_learn_and_torchmetrics(number):
    predictions = run_data_of(number).predictions
    labels, predicted = ([numbers[0] for numbers in held] for held in (predictions.labels, predictions.predicted))
    expected = precision_recall_fscore_support(labels, predicted, labels=range(number), zero_division=0)
    found = [(s.precision, s.recall, s.f1, s.images) for s in class_scores(predictions, [str(i) for i in range(number)])]
    np.testing.assert_allclose(np.array(found).T, expected, atol=1e-12)
    pairs, counts = confusion(predictions)
    matrix = confusion_matrix(labels, predicted, labels=range(number))
    assert (matrix[*pairs.T] == counts).all() and counts.sum() == matrix.sum()
    probability, right = torch.tensor(predictions.probability), torch.tensor(labels) == torch.tensor(predicted)
    probability = 0.5 + probability / 2  # of two classes, the predicted one has at least 0.5
    by_class = torch.stack([torch.where(right, probability, 1 - probability), torch.where(right, 1 - probability, probability)], dim=1)
    expected = multiclass_calibration_error(by_class, torch.zeros(len(probability), dtype=torch.long), num_classes=2, n_bins=15)
    assert reliability(replace(predictions, probability=probability.numpy()))[3] == pytest.approx(float(expected), abs=1e-6)


def test_with_several_labels_each_class_has_its_own_scores():
    predictions = Predictions(["a", "b", "c"], [(0, 1), (), (1,)], [(0,), (1,), (1,)], np.array([0.9, 0.6, 0.8]))
    first, second = class_scores(predictions, ["x", "y"])
    assert (first.precision, first.recall, second.precision, second.recall) == (1.0, 1.0, 0.5, 0.5)


def test_with_several_labels_the_most_confident_error_is_the_label_that_is_most_wrong():
    logits = torch.tensor([[7.0, -0.1], [1.0, 4.0], [9.0, 9.0]])  # x right, y barely missed; y confidently wrong; both right
    predictions = predictions_of(logits, torch.tensor([[1, 1], [1, 0], [1, 1]]), ["a", "b", "c"])
    assert most_confident_errors(predictions) == [1, 0] and predictions.predicted == [(0,), (0, 1), (0, 1)]
    sigmoid = logits.sigmoid()
    np.testing.assert_allclose(predictions.probability, [1 - sigmoid[0, 1], sigmoid[1, 1], sigmoid[2, 0]], rtol=1e-6)


def test_low_recalls_are_those_below_half_of_the_accuracy():
    recalls = {"ants": (2, 0.0), "bees": (88, 1.0), "crabs": (10, 0.4), "none": (0, 0.0)}
    scores = [ClassScore(name, images, 0.0, recall, 0.0) for name, (images, recall) in recalls.items()]
    assert [score.name for score in low_recalls(scores)] == ["ants", "crabs"]  # the accuracy is 0.92
    assert not low_recalls([ClassScore("ants", 10, 0.0, 0.2, 0.0), ClassScore("bees", 10, 0.0, 0.3, 0.0)])


@pytest.mark.parametrize("number", [50, 2000])
def test_perfect_probabilities_exceed_the_calibration_error_by_chance_in_one_of_twenty_cases(number):
    random = np.random.default_rng(1)
    probability = random.uniform(0.5, 1, number)
    drawn = [random.random(number) < probability for _ in range(300)]
    held = [Predictions([""] * number, [(int(value),) for value in right], [(1,)] * number, probability) for right in drawn]
    by_chance = calibration_error_by_chance(held[0])
    assert np.mean([reliability(own)[3] > by_chance for own in held]) == pytest.approx(0.05, abs=0.045)
    assert (0.1 < by_chance < 0.3) if number == 50 else (0.01 < by_chance < 0.05)
