"""Losses, the options of the config group `loss`: callables `(counts) -> nn.Module`, where `counts` are the training images per class."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ftlit.errors import UserError, unknown
from ftlit.registry import Registry

LOSSES: Registry[Callable[..., nn.Module]] = Registry("loss")  # by the names that checkpoints record


@LOSSES.register("cross_entropy")
def cross_entropy(counts: Sequence[int], *, label_smoothing: float = 0.0, class_weights: str | None = None) -> nn.Module:
    """Softmax cross-entropy of logits (N, C) against labels (N,) or class probabilities (N, C).

    Args:
        counts: number of training images per class.
        label_smoothing: probability mass that is spread evenly over all classes, in [0, 1).
        class_weights: `None`, or `balanced`: images / (classes * images of the class), the weights of scikit-learn; the loss is then
            `WeightedCrossEntropy`.

    Raises:
        UserError: an argument out of its range.
    """
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing={label_smoothing}: give a number, at least 0 and below 1")
    if class_weights is None:
        return nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    return WeightedCrossEntropy(weights_of_classes(counts, class_weights), label_smoothing=label_smoothing)


class WeightedCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy in which each image has the weight of its class, as a mean over images.

    The forward pass of `nn.CrossEntropyLoss` differs in two ways. It weights the smoothed mass of each class by that class, so that
    smoothing moves predictions to the rare classes (pytorch#104776). It divides by the sum of the weights of a batch, so that the loss
    depends on the batch and several processes do not equal one.
    """

    weight: torch.Tensor

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of logits (N, C) against labels (N,), or against class probabilities (N, C); each class has its weight in both."""
        one_hot = target if target.ndim == 2 else nn.functional.one_hot(target, input.shape[1])
        weighted_NC = one_hot * self.weight
        smoothed_NC = weighted_NC.lerp(weighted_NC.mean(dim=1, keepdim=True).expand_as(weighted_NC), self.label_smoothing)
        return -(smoothed_NC * input.log_softmax(dim=1)).sum(dim=1).mean()


@LOSSES.register("bce")
def bce(counts: Sequence[int]) -> nn.Module:
    """Binary cross-entropy of logits (N, C) against any number of labels per image, 0 or 1 each (N, C)."""
    return nn.BCEWithLogitsLoss()


def weights_of_classes(counts: Sequence[int], how: str) -> torch.Tensor:
    """The weight of each class in the loss. Raises `UserError` if `how` is not `balanced`."""
    if how != "balanced":
        raise unknown("class_weights", how, ["balanced", "null"])
    # a class may have no training images, only some in val or test: count one, or its weight, and val/loss, would be infinite
    images = torch.tensor(counts, dtype=torch.float32).clamp(min=1)
    return sum(counts) / (len(counts) * images)
