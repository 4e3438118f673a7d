"""Losses: the options of the Hydra group `loss` are callables `(counts) -> nn.Module`, counts being the training images of each class."""

from collections.abc import Sequence

import torch
from torch import nn

from ftlit.errors import UserError, unknown


def cross_entropy(counts: Sequence[int], *, label_smoothing: float = 0.0, class_weights: str | None = None) -> nn.Module:
    """Softmax cross-entropy of logits (N, C) against labels (N,) or class probabilities (N, C).

    Args:
        counts: training images of each class.
        label_smoothing: mass spread evenly over all classes, in [0, 1).
        class_weights: `None`, or `balanced`: images / (classes * images of the class), as scikit-learn weighs them.

    Raises:
        UserError: an argument out of its range.
    """
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing {label_smoothing}: give a number in [0, 1)")
    return nn.CrossEntropyLoss(weight=_weights(counts, class_weights), label_smoothing=label_smoothing)


def bce(counts: Sequence[int]) -> nn.Module:
    """Binary cross-entropy of logits (N, C) against several labels at once, 0 or 1 each (N, C)."""
    return nn.BCEWithLogitsLoss()


def _weights(counts: Sequence[int], how: str | None) -> torch.Tensor | None:
    if how is None:
        return None
    if how != "balanced":
        raise unknown("class_weights", how, ["balanced", "null"])
    # a class can be without training images (val or test have it): as if it had one, or its weight, and with it val/loss, were infinite
    images = torch.tensor(counts, dtype=torch.float32).clamp(min=1)
    return sum(counts) / (len(counts) * images)
