"""Losses equal their definitions, and class weights equal those of scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from ftlit.errors import UserError
from ftlit.finetuning.losses import bce, cross_entropy

LOGITS, LABELS = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_balanced_weighs_classes_as_scikit_learn_does(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    np.testing.assert_allclose(cross_entropy(counts, class_weights="balanced").weight.numpy(), expected, rtol=1e-6)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any))
def test_a_class_without_training_images_has_the_weight_of_one_image_and_the_loss_is_finite(counts):
    weight = cross_entropy(counts, class_weights="balanced").weight
    for count, value in zip(counts, weight, strict=True):
        assert value == pytest.approx(sum(counts) / (len(counts) * max(count, 1)))
    logits, every_class = torch.zeros(len(counts), len(counts)), torch.arange(len(counts))
    assert cross_entropy(counts, class_weights="balanced")(logits, every_class).isfinite()


def test_the_balanced_loss_is_the_mean_over_classes():
    counts = [1, 2, 3]
    labels = torch.tensor([0, 1, 1, 2, 2, 2])
    per_image = -LOGITS.log_softmax(1).gather(1, labels[:, None])[:, 0]
    expected = torch.stack([per_image[labels == c].mean() for c in range(3)]).mean()
    torch.testing.assert_close(cross_entropy(counts, class_weights="balanced")(LOGITS, labels), expected)


def test_the_default_loss_is_the_mean_negative_log_likelihood_for_any_counts():
    expected = -LOGITS.log_softmax(1).gather(1, LABELS[:, None]).mean()
    torch.testing.assert_close(cross_entropy([9, 1, 0])(LOGITS, LABELS), expected)


@pytest.mark.parametrize("smoothing", [0.1, 0.9])
def test_label_smoothing_is_spread_evenly_over_all_classes(smoothing):
    soft = torch.nn.functional.one_hot(LABELS, 3) * (1 - smoothing) + smoothing / 3
    expected = -(soft * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(cross_entropy([1, 1, 1], label_smoothing=smoothing)(LOGITS, LABELS), expected)


def test_targets_may_be_class_probabilities():
    soft = torch.nn.functional.one_hot(LABELS, 3).float()
    for weights in (None, "balanced"):
        loss = cross_entropy([1, 2, 3], class_weights=weights)
        hard = loss(LOGITS, LABELS) if weights is None else loss(LOGITS, LABELS) * loss.weight[LABELS].sum() / len(LABELS)
        torch.testing.assert_close(loss(LOGITS, soft), hard)  # torch divides by the number of images here, by the sum of weights there


def test_bce_is_the_mean_over_images_and_labels():
    targets = torch.randint(2, (6, 3)).float()
    p = LOGITS.sigmoid()
    torch.testing.assert_close(bce([1, 2, 3])(LOGITS, targets), -(targets * p.log() + (1 - targets) * (1 - p).log()).mean())


@pytest.mark.parametrize("smoothing", [-0.1, 1, 1.5])
def test_label_smoothing_outside_of_0_to_1_is_an_error(smoothing):
    with pytest.raises(UserError, match=r"label_smoothing .*: give a number in \[0, 1\)"):
        cross_entropy([1, 1], label_smoothing=smoothing)


def test_unknown_class_weights_are_an_error_with_the_closest_match():
    with pytest.raises(UserError, match="no class_weights 'balance': did you mean 'balanced'"):
        cross_entropy([1, 1], class_weights="balance")
