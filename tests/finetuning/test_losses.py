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


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=8))
def test_the_mean_weight_of_the_training_images_is_1_so_that_the_learning_rate_need_not_change(counts):
    weight = cross_entropy(counts, class_weights="balanced").weight
    assert float((weight * torch.tensor(counts)).sum()) / sum(counts) == pytest.approx(1, rel=1e-5)


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
        loss = cross_entropy([1, 2, 3], class_weights=weights, label_smoothing=0.2)
        torch.testing.assert_close(loss(LOGITS, soft), loss(LOGITS, LABELS))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_class_weights_do_not_move_the_optimum_of_an_image(smoothing, label):
    """An image that always has the same label has the same optimum with and without weights, however rare its class is."""
    loss = cross_entropy([900, 90, 10], class_weights="balanced", label_smoothing=smoothing)
    optimum = torch.full((3,), smoothing / 3)
    optimum[label] += 1 - smoothing
    logits = optimum.clamp(min=1e-9).log().requires_grad_()
    loss(logits[None], torch.tensor([label])).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_of_a_batch_is_the_mean_over_its_images(smoothing):
    loss = cross_entropy([5, 2, 1], class_weights="balanced", label_smoothing=smoothing)
    alone = torch.stack([loss(LOGITS[i : i + 1], LABELS[i : i + 1]) for i in range(len(LABELS))])
    torch.testing.assert_close(loss(LOGITS, LABELS), alone.mean())
    plain = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")(LOGITS, LABELS)
    torch.testing.assert_close(alone, loss.weight[LABELS] * plain)


def test_a_mixed_image_has_the_mean_loss_of_its_two_labels():
    loss = cross_entropy([8, 1, 1], class_weights="balanced", label_smoothing=0.1)
    mixed = torch.tensor([[0.7, 0.3, 0.0]])
    parts = [loss(LOGITS[:1], torch.tensor([label])) for label in (0, 1)]
    torch.testing.assert_close(loss(LOGITS[:1], mixed), 0.7 * parts[0] + 0.3 * parts[1])


def test_bce_is_the_mean_over_images_and_labels():
    targets = torch.randint(2, (6, 3)).float()
    p = LOGITS.sigmoid()
    torch.testing.assert_close(bce([1, 2, 3])(LOGITS, targets), -(targets * p.log() + (1 - targets) * (1 - p).log()).mean())


@pytest.mark.parametrize("smoothing", [-0.1, 1, 1.5])
def test_label_smoothing_outside_of_0_to_1_is_an_error(smoothing):
    with pytest.raises(UserError, match=r"label_smoothing=.*: give a number, at least 0 and below 1"):
        cross_entropy([1, 1], label_smoothing=smoothing)


def test_unknown_class_weights_are_an_error_with_the_closest_match():
    with pytest.raises(UserError, match="class_weights=balance is not valid: did you mean 'balanced'"):
        cross_entropy([1, 1], class_weights="balance")
