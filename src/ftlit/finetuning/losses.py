"""Losses, the options of the config group `loss`: callables `(counts) -> nn.Module`, where `counts` are the training images per class."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Literal

import torch
from torch import nn

from ftlit.errors import UserError, invalid, shorten, unknown
from ftlit.formatting import count
from ftlit.registry import Registry

ClassWeights = Literal["balanced"] | Sequence[float]  # of each class by number

LOSSES: Registry[Callable[..., nn.Module]] = Registry("loss")  # by the names that checkpoints record


@LOSSES.register("cross_entropy")
def cross_entropy(
    counts: Sequence[int],
    *,
    label_smoothing: float = 0.0,
    class_weights: Literal["balanced"] | Sequence[float] | Mapping[str, float] | None = None,
) -> nn.Module:
    """Softmax cross-entropy of logits (N, C) against labels (N,) or class probabilities (N, C).

    Args:
        counts: number of training images per class.
        label_smoothing: probability mass that is spread evenly over all classes, in [0, 1).
        class_weights: `None`; `balanced`: images / (classes * images of the class), the weights of scikit-learn; or a number above 0 for
            each class, which a config gives by the names of the classes. The loss is then `WeightedCrossEntropy`.

    Raises:
        UserError: an argument out of its range.
    """
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing={label_smoothing}: give a number, at least 0 and below 1")
    if class_weights is None:
        return nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    if isinstance(class_weights, Mapping):
        raise UserError("class_weights by name need the names of the classes: give weights_by_name(class_weights, class_names)")
    weights = weights_of_classes(counts, class_weights)
    return WeightedCrossEntropy(torch.tensor(weights, dtype=torch.float32), label_smoothing=label_smoothing)


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


def weights_of_classes(counts: Sequence[int], given: ClassWeights) -> list[float]:
    """The weight of each class in the loss.

    Args:
        counts: number of training images per class.
        given: `balanced`, or the weights.

    Raises:
        UserError: another text, another number of weights, or one that is not above 0.
    """
    if isinstance(given, str):
        if given != "balanced":
            raise invalid("class_weights", given, ["balanced", "null"])
        # a class may have no training images, only some in val or test: count one, or its weight, and val/loss, would be infinite
        return [sum(counts) / (len(counts) * max(number, 1)) for number in counts]
    weights = [float(weight) for weight in given]
    if len(weights) != len(counts):
        raise UserError(
            f"class_weights has {count(len(weights), 'number')}, but there are {count(len(counts), 'class')}: "
            "give one number for each class, or balanced"
        )
    if wrong := [weight for weight in weights if not (isfinite(weight) and weight > 0)]:
        raise UserError(f"class_weights contains {wrong[0]}: give numbers above 0")
    return weights


def weights_by_name(given: Mapping[str, float], class_names: Sequence[str]) -> list[float]:
    """The weight of each class by its number. Raises `UserError` for an unknown or missing name, or a weight that is not a number.

    >>> weights_by_name({"dog": 1, "cat": 2}, ["cat", "dog"])
    [2.0, 1.0]
    """
    weights = {str(name): weight for name, weight in given.items()}  # a config reads a name such as 7 as a number
    for name, weight in weights.items():
        if name not in class_names:
            raise UserError(f"class_weights: {unknown('class', name, class_names)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UserError(f"class_weights has {weight!r} for the class {name!r}: give a number above 0")
    if missing := [name for name in class_names if name not in weights]:
        raise UserError(f"class_weights has no weight for {shorten(missing)}: give each class a weight, 1.0 for no change")
    return [float(weights[name]) for name in class_names]


def describe_weights(weights: Sequence[float]) -> str:
    """The range of the weights, to two digits.

    >>> describe_weights([2.0, 0.5, 1.0]), describe_weights([1.0, 1.0])
    ('class weights from 0.5 to 2', 'class weights all equal')
    """
    least, most = f"{min(weights):.2g}", f"{max(weights):.2g}"
    return "class weights all equal" if least == most else f"class weights from {least} to {most}"
