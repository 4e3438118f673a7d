"""Losses of linear probes as functions of the outputs: values, gradients and curvatures for the solver.

Shapes: N samples, K outputs (one per class; a single one for two classes), G problems: the K outputs where they are independent of each
other (svm), else one. Weights of the samples are a column (N, 1) of mean 1, or `None`; a loss is then the mean of weight * loss.
"""

from abc import ABC, abstractmethod
from typing import Literal, Self

import torch
from torch import Tensor

LossName = Literal["softmax", "svm", "ridge"]


def losses_of(outputs_NK: Tensor, labels_N: Tensor, kind: LossName) -> Tensor:
    """Loss of each sample, (N,), whose mean `solve` minimises; outputs (N, K), one column for two classes."""
    classes = max(2, outputs_NK.shape[1])
    if kind == "softmax" and classes > 2:
        return torch.nn.functional.cross_entropy(outputs_NK, labels_N, reduction="none")
    signs = signs_of(labels_N, classes, outputs_NK.dtype)
    if kind == "ridge":
        return 0.5 * (outputs_NK - signs).square().sum(dim=1)
    margins = signs * outputs_NK
    return (torch.relu(1 - margins).square() if kind == "svm" else torch.nn.functional.softplus(-margins)).sum(dim=1)


class Softmax:
    """Cross-entropy of three classes or more: a single problem."""

    largest = 0.25  # upper bound of the second derivative

    def __init__(self, labels: Tensor, weights: Tensor | None = None) -> None:
        self.places, self.weights = labels[:, None], weights

    def double(self) -> "Softmax":
        """The same in float64."""
        return self if self.weights is None else Softmax(self.places[:, 0], self.weights.double())

    def __call__(self, outputs: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (N, columns) -> mean losses (G,) in float64, and their gradients (N, columns); here `columns` is always all of them."""
        total = torch.logsumexp(outputs, dim=1, keepdim=True)
        mean = weighted(total - outputs.gather(1, self.places), self.weights).mean(dtype=torch.float64)
        slope = torch.exp(outputs - total)
        slope.scatter_add_(1, self.places, slope.new_full(self.places.shape, -1.0))
        return mean[None], weighted(slope.div_(len(outputs)), self.weights)

    def curvature(self, outputs: Tensor) -> Tensor:
        """Mean second derivative with respect to each output, (K,)."""
        likely = torch.exp(outputs - outputs.logsumexp(dim=1, keepdim=True))
        return weighted(likely * (1 - likely), self.weights).mean(dim=0)

    def newton(self, outputs: Tensor, slope: Tensor) -> Tensor:
        """Newton step (K,) of the bias, to be subtracted, from its gradient `slope` (K,); both float64."""
        likely = torch.exp(outputs - outputs.logsumexp(dim=1, keepdim=True))
        counted = weighted(likely, self.weights)
        hessian = (counted.mean(dim=0).diag() - counted.T @ likely / len(likely)).double()
        # the same bias for all outputs changes nothing: any curvature will do in that direction
        level = hessian.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
        step: Tensor = torch.linalg.solve(hessian + level / len(hessian), slope)
        return step


class Signed(ABC):
    """A loss of each output and its sign (N, K), +1 or -1."""

    def __init__(self, signs: Tensor, weights: Tensor | None = None) -> None:
        self.signs, self.weights = signs, weights

    def double(self) -> Self:
        """The same in float64."""
        return type(self)(self.signs.double(), None if self.weights is None else self.weights.double())

    @abstractmethod
    def curvature(self, outputs: Tensor) -> Tensor:
        """See `Softmax`."""

    def newton(self, outputs: Tensor, slope: Tensor) -> Tensor:
        """See `Softmax`; the outputs are independent of each other."""
        curvature = self.curvature(outputs).double()
        return torch.where(curvature > 0, slope / curvature, 0.0)


class Logistic(Signed):
    """Cross-entropy of two classes with a single output."""

    largest = 0.25

    def __call__(self, outputs: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """See `Softmax`."""
        margin = self.signs * outputs
        mean = weighted(torch.nn.functional.softplus(-margin), self.weights).mean(dim=0, dtype=torch.float64)
        return mean, weighted(self.signs * torch.sigmoid(-margin) / -len(outputs), self.weights)

    def curvature(self, outputs: Tensor) -> Tensor:
        """See `Softmax`."""
        return weighted(torch.sigmoid(outputs) * torch.sigmoid(-outputs), self.weights).mean(dim=0)


class Svm(Signed):
    """Squared hinge loss of each output: K problems."""

    largest = 2.0

    def __call__(self, outputs: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """See `Softmax`; here for a subset of the columns."""
        signs = self.signs if outputs.shape == self.signs.shape else self.signs[:, columns]
        short = torch.relu(1 - signs * outputs)
        mean = weighted(short.square(), self.weights).mean(dim=0, dtype=torch.float64)
        return mean, weighted(signs * short * (-2 / len(outputs)), self.weights)

    def curvature(self, outputs: Tensor) -> Tensor:
        """See `Softmax`."""
        return 2 * weighted((self.signs * outputs < 1).to(outputs.dtype), self.weights).mean(dim=0)


LinearLoss = Softmax | Logistic | Svm


def weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    """Values (N, ...) times the weights of their samples (N, 1)."""
    return values if weights is None else weights * values


def signs_of(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """+1 for the class of the output, else -1, (N, K); for two classes (N, 1), +1 for the second."""
    if classes == 2:
        return (2 * labels - 1).to(dtype)[:, None]
    return torch.nn.functional.one_hot(labels, classes).to(dtype) * 2 - 1
