"""Losses of linear classifiers by their outputs: values, slopes and curvatures, what solving asks for.

Shapes: N samples, K outputs (one for each class; one alone for two classes), G problems: the K outputs where they are independent of each
other (svm), else one.
"""

from abc import ABC, abstractmethod
from typing import Literal, Self, get_args

import torch
from torch import Tensor

Kind = Literal["softmax", "svm", "ridge"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def losses_of(outputs_NK: Tensor, labels_N: Tensor, kind: Kind) -> Tensor:
    """The loss of each sample, (N,), whose mean `solve` minimises; outputs as a `Path` gives them, one column for two classes."""
    classes = max(2, outputs_NK.shape[1])
    if kind == "softmax" and classes > 2:
        return torch.nn.functional.cross_entropy(outputs_NK, labels_N, reduction="none")
    signs = signs_of(labels_N, classes, outputs_NK.dtype)
    if kind == "ridge":
        return 0.5 * (outputs_NK - signs).square().sum(dim=1)
    margins = signs * outputs_NK
    return (torch.relu(1 - margins).square() if kind == "svm" else torch.nn.functional.softplus(-margins)).sum(dim=1)


class Softmax:
    """Cross-entropy of three classes or more: one problem."""

    largest = 0.25  # second derivative

    def __init__(self, labels: Tensor) -> None:
        self.places = labels[:, None]

    def double(self) -> "Softmax":
        """The same in float64."""
        return self

    def __call__(self, outputs: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (N, columns) -> mean losses (G,) in float64, and their gradients (N, columns); here the columns are all."""
        total = torch.logsumexp(outputs, dim=1, keepdim=True)
        mean = (total - outputs.gather(1, self.places)).mean(dtype=torch.float64)
        slope = torch.exp(outputs - total)
        slope.scatter_add_(1, self.places, slope.new_full(self.places.shape, -1.0))
        return mean[None], slope.div_(len(outputs))

    def curvature(self, outputs: Tensor) -> Tensor:
        """Mean second derivative by each output, (K,)."""
        likely = outputs.softmax(dim=1)
        return (likely * (1 - likely)).mean(dim=0)

    def newton(self, outputs: Tensor, slope: Tensor) -> Tensor:
        """The bias, (K,), that Newton's method would take away, given the gradient by it; both float64."""
        likely = outputs.softmax(dim=1)
        hessian = (likely.mean(dim=0).diag() - likely.T @ likely / len(likely)).double()
        level = (
            hessian.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
        )  # a bias equal for all outputs changes nothing: any curvature will do along it
        step: Tensor = torch.linalg.solve(hessian + level / len(hessian), slope)
        return step


class Signed(ABC):
    """A loss of each output and its sign, (N, K)."""

    def __init__(self, signs: Tensor) -> None:
        self.signs = signs

    def double(self) -> Self:
        """The same in float64."""
        return type(self)(self.signs.double())

    @abstractmethod
    def curvature(self, outputs: Tensor) -> Tensor:
        """See `Softmax`."""

    def newton(self, outputs: Tensor, slope: Tensor) -> Tensor:
        """See `Softmax`; the outputs do not depend on each other."""
        curvature = self.curvature(outputs).double()
        return torch.where(curvature > 0, slope / curvature, 0.0)


class Logistic(Signed):
    """Cross-entropy of two classes, by one output."""

    largest = 0.25

    def __call__(self, outputs: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """See `Softmax`."""
        margin = self.signs * outputs
        mean = torch.nn.functional.softplus(-margin).mean(dim=0, dtype=torch.float64)
        return mean, self.signs * torch.sigmoid(-margin) / -len(outputs)

    def curvature(self, outputs: Tensor) -> Tensor:
        """See `Softmax`."""
        return (torch.sigmoid(outputs) * torch.sigmoid(-outputs)).mean(dim=0)


class Svm(Signed):
    """Squared hinge of each output: K problems."""

    largest = 2.0

    def __call__(self, outputs: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """See `Softmax`; here for some of the columns."""
        signs = self.signs if outputs.shape == self.signs.shape else self.signs[:, columns]
        short = torch.relu(1 - signs * outputs)
        return short.square().mean(dim=0, dtype=torch.float64), signs * short * (-2 / len(outputs))

    def curvature(self, outputs: Tensor) -> Tensor:
        """See `Softmax`."""
        return 2 * (self.signs * outputs < 1).to(outputs.dtype).mean(dim=0)


LinearLoss = Softmax | Logistic | Svm


def signs_of(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """+1 for the class of an output, else -1, (N, K); for two classes +1 is the second."""
    if classes == 2:
        return (2 * labels - 1).to(dtype)[:, None]
    return torch.nn.functional.one_hot(labels, classes).to(dtype) * 2 - 1
