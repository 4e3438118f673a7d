"""Linear classifiers on vectors, solved: the whole path of strengths of an L2 penalty, from the strongest to the weakest.

Shapes: N samples, C features, K outputs (one for each class; one alone for two classes), S strengths. G problems are solved side by
side: the K outputs where they are independent of each other (svm), else one.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from ftlit.lbfgs import Seen, by_problem, minimise

Kind = Literal["softmax", "svm", "ridge"]
KINDS: tuple[Kind, ...] = get_args(Kind)
AGAIN = 3  # times that a minimisation is begun anew, with the curvature at its end, where its certificate does not hold
BIAS_STEPS = 8
NOTHING = 1e-12  # of the largest mean square along an axis: no more than rounding
SMALLEST = 1e-3  # of the curvature's largest possible value: what its estimate is not allowed to fall below
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-6}  # of the objective: what may be left to gain


@dataclass(frozen=True)
class Path:
    """Solutions for S strengths, in the order asked for.

    Args:
        weight: (S, K, C)
        bias: (S, K)
        objective: (S,) float64, mean loss + strength / 2 * |weight|^2.
        left: (S,) float64, a bound on what the objective can still fall by, relative to it: |gradient|^2 / (2 strength) by the weights,
            since at the best bias it is strongly convex in them (Boyd and Vandenberghe 2004, section 9.1.2), and half of Newton's squared
            decrement by the bias, which nothing penalises (section 9.5.1).
        converged: (S,) bool, whether `left` is within the tolerance.
    """

    weight: Tensor
    bias: Tensor
    objective: Tensor
    left: Tensor
    converged: Tensor


def solve(codes_NC: Tensor, labels_N: Tensor, classes: int, strengths: Sequence[float], kind: Kind) -> Path:
    """Minimise mean loss + strength / 2 * |weight|^2; the bias is free.

    `softmax`: cross-entropy; for two classes one weight vector and the logistic loss, as scikit-learn has it: C = 1 / (N strength).
    `svm`: squared hinge, one class against the rest, summed over the classes: C = 1 / (N strength).
    `ridge`: half the squared distance to +1 and -1, one class against the rest: alpha = N strength.

    Args:
        codes_NC: float32 or float64, best standardised; on any device.
        labels_N: int64, 0 .. classes - 1.
        classes: how many there are, 2 or more.
        strengths: each above 0.
        kind: of the loss.
    """
    basis = _Basis(codes_NC if kind == "softmax" else codes_NC.double())  # where a hinge bends float32 loses its way; ridge is cheap
    signs = _signs(labels_N, classes, basis.codes.dtype)
    if kind == "ridge":
        return _ridge(basis, signs, strengths, codes_NC)
    loss: _Loss = _Svm(signs) if kind == "svm" else _Logistic(signs) if classes == 2 else _Softmax(labels_N)
    tolerance, finer = TOLERANCE[codes_NC.dtype], None
    guess = point = basis.codes.new_zeros(basis.rank + 1, signs.shape[1])  # the last row is the bias
    found = {}
    for i in sorted(range(len(strengths)), key=lambda i: -strengths[i]):
        found[i] = _minimum(loss, basis, guess, float(strengths[i]), tolerance)
        if basis.codes.dtype == torch.float32 and float(found[i][2]) > tolerance:  # rounding hides the way down
            finer = finer or basis.double()
            found[i] = _minimum(loss.double(), finer, found[i][0].double(), float(strengths[i]), tolerance)
        before, point = point, found[i][0].to(basis.codes.dtype)
        guess = 2 * point - before if kind == "softmax" and len(found) > 1 else point  # along the path; a hinge bends too sharply for it
    points, values, lefts = (torch.stack(each) for each in zip(*(found[i] for i in range(len(strengths))), strict=True))
    weight, bias = basis.back(points.to(basis.codes.dtype))
    return Path(weight.to(codes_NC), bias.to(codes_NC), values, lefts, lefts <= tolerance)


def losses_of(outputs_NK: Tensor, labels_N: Tensor, kind: Kind) -> Tensor:
    """The loss of each sample, (N,), whose mean `solve` minimises; outputs as a `Path` gives them, one column for two classes."""
    classes = max(2, outputs_NK.shape[1])
    if kind == "softmax" and classes > 2:
        return torch.nn.functional.cross_entropy(outputs_NK, labels_N, reduction="none")
    signs = _signs(labels_N, classes, outputs_NK.dtype)
    if kind == "ridge":
        return 0.5 * (outputs_NK - signs).square().sum(dim=1)
    margins = signs * outputs_NK
    return (torch.relu(1 - margins).square() if kind == "svm" else torch.nn.functional.softplus(-margins)).sum(dim=1)


class _Basis:
    """Codes, less their mean, in the directions of their principal axes, in which a quadratic loss is diagonal; only those that the
    samples span, since a solution has no part outside of them.
    """

    def __init__(self, codes: Tensor) -> None:
        n, c = codes.shape
        self.mean = codes.mean(dim=0)
        centred = codes - self.mean
        double = centred.double()
        spread, axes = torch.linalg.eigh((double.T @ double if c <= n else double @ double.T) / n)
        kept = spread > NOTHING * spread[-1]
        spread, axes = spread[kept], axes[:, kept]
        if c > n:
            axes = double.T @ (axes / (spread * n).sqrt())
        self.axes = axes.to(codes.dtype)
        self.codes = centred @ self.axes
        self.spread = spread.to(codes.dtype)  # mean square along each axis
        self.rank = len(spread)

    def double(self) -> "_Basis":
        """The same in float64."""
        finer = copy(self)
        finer.codes, finer.spread = self.codes.double(), self.spread.double()
        return finer

    def outputs(self, point: Tensor) -> Tensor:
        """Point (rank + 1, K) -> (N, K)."""
        return torch.addmm(point[-1], self.codes, point[:-1])

    def back(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points (S, rank + 1, K) -> weights (S, K, C) and biases (S, K) for the codes as they were given."""
        weights = (self.axes @ points[:, :-1]).transpose(1, 2)
        return weights, points[:, -1] - weights @ self.mean


def _ridge(basis: _Basis, signs: Tensor, strengths: Sequence[float], like: Tensor) -> Path:
    """One eigendecomposition for all strengths."""
    n = len(signs)
    mean, along = signs.mean(dim=0), basis.codes.T @ signs / n
    points, values, lefts = [], [], []
    for strength in strengths:
        weight = along / (basis.spread + strength)[:, None]
        points.append(torch.cat([weight, mean[None]]))
        apart = basis.outputs(points[-1]) - signs
        values.append(0.5 * (apart.square().sum() / n + strength * weight.square().sum()))
        gradient = basis.codes.T @ apart / n + strength * weight
        lefts.append(gradient.square().sum() / (2 * strength) / values[-1].clamp(min=torch.finfo(values[-1].dtype).tiny))
    weights, bias = basis.back(torch.stack(points))
    left = torch.stack(lefts)
    return Path(weights.to(like), bias.to(like), torch.stack(values), left, left <= TOLERANCE[like.dtype])


class _Softmax:
    """Cross-entropy of three classes or more: one problem."""

    largest = 0.25  # second derivative

    def __init__(self, labels: Tensor) -> None:
        self.places = labels[:, None]

    def double(self) -> "_Softmax":
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
        level = hessian.diagonal().mean()  # a bias equal for all outputs changes nothing: any curvature will do along it
        step: Tensor = torch.linalg.solve(hessian + level / len(hessian), slope)
        return step


class _Signed(ABC):
    """A loss of each output and its sign, (N, K)."""

    def __init__(self, signs: Tensor) -> None:
        self.signs = signs

    def double(self) -> Self:
        """The same in float64."""
        return type(self)(self.signs.double())

    @abstractmethod
    def curvature(self, outputs: Tensor) -> Tensor:
        """See `_Softmax`."""

    def newton(self, outputs: Tensor, slope: Tensor) -> Tensor:
        """See `_Softmax`; the outputs do not depend on each other."""
        curvature = self.curvature(outputs).double()
        return torch.where(curvature > 0, slope / curvature, 0.0)


class _Logistic(_Signed):
    """Cross-entropy of two classes, by one output."""

    largest = 0.25

    def __call__(self, outputs: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """See `_Softmax`."""
        margin = self.signs * outputs
        mean = torch.nn.functional.softplus(-margin).mean(dim=0, dtype=torch.float64)
        return mean, self.signs * torch.sigmoid(-margin) / -len(outputs)

    def curvature(self, outputs: Tensor) -> Tensor:
        """See `_Softmax`."""
        return (torch.sigmoid(outputs) * torch.sigmoid(-outputs)).mean(dim=0)


class _Svm(_Signed):
    """Squared hinge of each output: K problems."""

    largest = 2.0

    def __call__(self, outputs: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """See `_Softmax`; here for some of the columns."""
        signs = self.signs if outputs.shape == self.signs.shape else self.signs[:, columns]
        short = torch.relu(1 - signs * outputs)
        return short.square().mean(dim=0, dtype=torch.float64), signs * short * (-2 / len(outputs))

    def curvature(self, outputs: Tensor) -> Tensor:
        """See `_Softmax`."""
        return 2 * (self.signs * outputs < 1).to(outputs.dtype).mean(dim=0)


_Loss = _Softmax | _Logistic | _Svm


def _signs(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """+1 for the class of an output, else -1, (N, K); for two classes +1 is the second."""
    if classes == 2:
        return (2 * labels - 1).to(dtype)[:, None]
    return torch.nn.functional.one_hot(labels, classes).to(dtype) * 2 - 1


def _minimum(loss: _Loss, basis: _Basis, point: Tensor, strength: float, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Point (rank + 1, K) of the minimum, from `point` on, its value and what is left, relative to it, both () float64."""
    left = torch.tensor(torch.inf)
    for again in range(1 + AGAIN):
        before = left
        within = tolerance / 4**again  # with the bias at its best the certificate is another one
        point, value, left = _certified(loss, basis, _minimised(loss, basis, point, strength, within), strength, tolerance)
        if float(left) <= tolerance or float(left) >= float(before):
            break
    return point, value, left


def _certified(loss: _Loss, basis: _Basis, point: Tensor, strength: float, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `_minimum`; the bias is taken to its best by Newton's method, which needs no further product with the codes."""
    outputs, columns = basis.outputs(point), torch.arange(point.shape[1], device=point.device)
    size = 0.5 * strength * point[:-1].square().sum(dtype=torch.float64)
    bias = torch.zeros_like(point[-1])
    value, slope = loss(outputs, columns)
    for _ in range(BIAS_STEPS):
        along = slope.sum(dim=0, dtype=torch.float64)
        step = loss.newton(outputs + bias, along)
        gain = 0.5 * (along * step).sum()
        if float(gain) <= 0.01 * tolerance * float(value.sum() + size):
            break
        new_value, new_slope = loss(outputs + (bias - step.to(bias.dtype)), columns)
        if float(new_value.sum()) >= float(value.sum()):
            break
        bias, value, slope = bias - step.to(bias.dtype), new_value, new_slope
    gradient = basis.codes.T @ slope + strength * point[:-1]
    total = value.sum() + size
    left = gain + gradient.square().sum(dtype=torch.float64) / (2 * strength)
    point = torch.cat([point[:-1], (point[-1] + bias)[None]])
    return point, total, left / total.clamp(min=torch.finfo(torch.float64).tiny)


def _minimised(loss: _Loss, basis: _Basis, point: Tensor, strength: float, tolerance: float) -> Tensor:
    """See `_minimum`; in coordinates where the curvature is near 1."""
    curvature = loss.curvature(basis.outputs(point)).clamp(min=SMALLEST * loss.largest)
    scale = torch.cat([1 / torch.sqrt(basis.spread[:, None] * curvature + strength), 1 / torch.sqrt(curvature)[None]])

    def at(scaled: Tensor, columns: Tensor) -> Seen:
        own = scale if scaled.shape[1] == scale.shape[1] else scale[:, columns]
        now = own * scaled
        mean, slope = loss(basis.outputs(now), columns)
        value = mean + 0.5 * strength * by_problem(now[:-1].square(), len(mean))
        gradient = torch.cat([basis.codes.T @ slope + strength * now[:-1], slope.sum(dim=0, keepdim=True)])
        left = 0.5 * by_problem(torch.cat([gradient[:-1].square() / strength, (gradient[-1:] * own[-1:]).square()]), len(mean))
        return value, gradient.mul_(own), left

    return scale * minimise(at, point / scale, tolerance)
