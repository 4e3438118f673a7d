"""Linear classifiers on vectors, solved: the whole path of L2 penalties, from the strongest to the weakest.

Shapes: N samples, C features, K outputs (one for each class; one alone for two classes), S L2 penalties. G problems are solved side by
side: the K outputs where they are independent of each other (svm), else one.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from math import inf, log

import torch
from torch import Tensor

from ftlit.probes.lbfgs import Seen, by_problem, minimise
from ftlit.probes.objectives import Kind, LinearLoss, Logistic, Softmax, Svm, signs_of

AGAIN = 3  # times that a minimisation is begun anew, with the curvature at its end, where its certificate does not hold
BIAS_STEPS = 8
NOTHING = 1e-12  # of the largest mean square along an axis: no more than rounding
NEWTON_STEPS = 50
MANY = 500_000  # numbers of the features, from which float32 is worth trying
FEW_AXES = 512  # up to which Newton's method is quicker than L-BFGS (2 to 26 times, on 64 and 512)
LEAST_STEP = 1e-3  # of a full one of Newton's
STEADY = 1e-12  # curvature by the bias where no sample is short of its margin
START = 1.0  # L2 penalty at which 0 is near the solution
STEP = 10.0  # from an L2 penalty to the next, at most
SMALLEST = 1e-3  # of the curvature's largest possible value: what its estimate is not allowed to fall below
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-6}  # of the objective: what may be left to gain


@dataclass(frozen=True)
class Path:
    """Solutions for S L2 penalties, in the order asked for.

    Args:
        weight: (S, K, C)
        bias: (S, K)
        objective: (S,) float64, mean loss + L2 penalty / 2 * |weight|^2.
        left: (S,) float64, a bound on what the objective can still fall by, relative to it: |gradient|^2 / (2 L2 penalty) by the weights,
            since at the best bias it is strongly convex in them (Boyd and Vandenberghe 2004, section 9.1.2), and half of Newton's squared
            decrement by the bias, which nothing penalises (section 9.5.1).
        converged: (S,) bool, whether `left` is within the tolerance.
    """

    weight: Tensor
    bias: Tensor
    objective: Tensor
    left: Tensor
    converged: Tensor


def solve(features_NC: Tensor, labels_N: Tensor, classes: int, l2_penalties: Sequence[float], kind: Kind) -> Path:
    """Minimise mean loss + L2 penalty / 2 * |weight|^2; the bias is free.

    `softmax`: cross-entropy; for two classes one weight vector and the logistic loss, as scikit-learn has it: C = 1 / (N L2 penalty).
    `svm`: squared hinge, one class against the rest, summed over the classes: C = 1 / (N L2 penalty).
    `ridge`: half the squared distance to +1 and -1, one class against the rest: alpha = N L2 penalty.

    Args:
        features_NC: float32 or float64, best standardised; on a device that has float64.
        labels_N: int64, 0 .. classes - 1.
        classes: how many there are, 2 or more.
        l2_penalties: each above 0.
        kind: of the loss.
    """
    # float32 halves the price of a step, but its rounding may hide the way down: not worth it for few features, and fatal where a hinge bends
    basis = _Basis(features_NC if kind == "softmax" and features_NC.numel() >= MANY else features_NC.double())
    signs = signs_of(labels_N, classes, basis.features.dtype)
    if kind == "ridge":
        return _ridge(basis, signs, l2_penalties, features_NC)
    loss: LinearLoss = Svm(signs) if kind == "svm" else Logistic(signs) if classes == 2 else Softmax(labels_N)
    tolerance = TOLERANCE[features_NC.dtype]
    point = before = basis.features.new_zeros(basis.rank + 1, signs.shape[1])  # the last row is the bias
    found, last, way = {}, inf, 0.0
    for l2, place in _descent(l2_penalties):
        along, way = way, log(last / l2) if last < inf else 0.0
        ahead = min(way / along, 2.0) if along and kind == "softmax" else 0.0  # along the path; a hinge bends too sharply for it
        solved = _minimum(loss, basis, point + ahead * (point - before), l2, tolerance)
        if basis.features.dtype == torch.float32 and float(solved[2]) > tolerance:  # so it will for all weaker penalties
            basis, loss, point = basis.double(), loss.double(), point.double()
            solved = _minimum(loss, basis, solved[0].double(), l2, tolerance)
        before, point, last = point, solved[0], l2
        if place is not None:
            found[place] = solved[0].double(), *solved[1:]
    points, values, lefts = (torch.stack(each) for each in zip(*(found[i] for i in range(len(l2_penalties))), strict=True))
    weight, bias = basis.back(points.to(basis.axes.dtype))
    return Path(weight.to(features_NC), bias.to(features_NC), values, lefts, lefts <= tolerance)


def _descent(l2_penalties: Sequence[float]) -> Iterator[tuple[float, int | None]]:
    """Each L2 penalty with its place, from the strongest to the weakest, and others on the way (`None`), so that no step is a long one."""
    last = START
    for place in sorted(range(len(l2_penalties)), key=lambda i: -l2_penalties[i]):
        l2 = float(l2_penalties[place])
        while last > 1.01 * STEP * l2:
            last /= STEP
            yield last, None
        last = l2
        yield l2, place


class _Basis:
    """Features, less their mean, in the directions of their principal axes, in which a quadratic loss is diagonal; only those that the
    samples span, since a solution has no part outside of them.
    """

    def __init__(self, features: Tensor) -> None:
        n, c = features.shape
        self.mean = features.mean(dim=0)
        centred = features - self.mean
        double = centred.double()
        spread, axes = torch.linalg.eigh((double.T @ double if c <= n else double @ double.T) / n)
        kept = spread > NOTHING * spread[-1]
        spread, axes = spread[kept], axes[:, kept]
        if c > n:
            axes = double.T @ (axes / (spread * n).sqrt())
        self.axes = axes.to(features.dtype)
        self.features = centred @ self.axes
        self.spread = spread.to(features.dtype)  # mean square along each axis
        self.rank = len(spread)

    def double(self) -> "_Basis":
        """The same in float64."""
        finer = copy(self)
        finer.features, finer.spread = self.features.double(), self.spread.double()
        return finer

    def outputs(self, point: Tensor) -> Tensor:
        """Point (rank + 1, K) -> (N, K)."""
        return torch.addmm(point[-1], self.features, point[:-1])

    def back(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points (S, rank + 1, K) -> weights (S, K, C) and biases (S, K) for the features as they were given."""
        weights = (self.axes @ points[:, :-1]).transpose(1, 2)
        return weights, points[:, -1] - weights @ self.mean


def _ridge(basis: _Basis, signs: Tensor, l2_penalties: Sequence[float], like: Tensor) -> Path:
    """One eigendecomposition for all L2 penalties."""
    n = len(signs)
    mean, along = signs.mean(dim=0), basis.features.T @ signs / n
    points, values, lefts = [], [], []
    for l2 in l2_penalties:
        weight = along / (basis.spread + l2)[:, None]
        points.append(torch.cat([weight, mean[None]]))
        apart = basis.outputs(points[-1]) - signs
        values.append(0.5 * (apart.square().sum() / n + l2 * weight.square().sum()))
        gradient = basis.features.T @ apart / n + l2 * weight
        lefts.append(gradient.square().sum() / (2 * l2) / values[-1].clamp(min=torch.finfo(values[-1].dtype).tiny))
    weights, bias = basis.back(torch.stack(points))
    left = torch.stack(lefts)
    return Path(weights.to(like), bias.to(like), torch.stack(values), left, left <= TOLERANCE[like.dtype])


def _minimum(loss: LinearLoss, basis: _Basis, point: Tensor, l2: float, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Point (rank + 1, K) of the minimum, from `point` on, its value and what is left, relative to it, both () float64."""
    solved = point, torch.tensor(torch.inf), torch.tensor(torch.inf)
    ways = [_hinged, _descended] if basis.rank <= FEW_AXES else [_descended, _hinged]
    for way in ways if isinstance(loss, Svm) else [_descended]:
        other = way(loss, basis, solved[0], l2, tolerance)
        solved = min(solved, other, key=lambda found: float(found[2]))
        if float(solved[2]) <= tolerance:
            break
    return solved


def _descended(loss: LinearLoss, basis: _Basis, point: Tensor, l2: float, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `_minimum`; by L-BFGS."""
    left = torch.tensor(torch.inf)
    for again in range(1 + AGAIN):
        before = left
        within = tolerance / 4**again  # with the bias at its best the certificate is another one
        point, value, left = _certified(loss, basis, _minimised(loss, basis, point, l2, within), l2, tolerance)
        if float(left) <= tolerance or float(left) >= float(before):
            break
    return point, value, left


def _hinged(loss: LinearLoss, basis: _Basis, point: Tensor, l2: float, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `_minimum`; by Newton's method, one output after the other: between its bends a squared hinge is quadratic, so that a few
    steps end in the minimum (Chapelle 2007, section 2.2). Their price grows with the cube of the axes.
    """
    n, columns = len(basis.features), []
    rows = torch.cat([basis.features, basis.features.new_ones(n, 1)], dim=1)
    penalty = rows.new_full(rows.shape[1:], l2)
    penalty[-1] = 0

    def seen(own: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, slope = loss((rows @ own)[:, None], column)
        value = mean[0] + 0.5 * (penalty * own.square()).sum()
        return value, penalty * own + slope[:, 0] @ rows, slope[:, 0] != 0

    for own, column in zip(point.T, torch.arange(point.shape[1], device=point.device)[:, None], strict=True):
        value, gradient, active = seen(own, column)
        for _ in range(NEWTON_STEPS):
            if float(gradient.square().sum()) / (2 * l2) <= 0.1 * tolerance * float(value):
                break
            short = rows[active]
            hessian = 2 / n * short.T @ short + penalty.clamp(min=STEADY).diag()
            step, size = torch.linalg.solve(hessian, gradient), 1.0
            decrement = float(gradient @ step)
            new = seen(own - step, column)
            while float(new[0]) > float(value) - 1e-4 * size * decrement and size > LEAST_STEP:
                size /= 2
                new = seen(own - size * step, column)
            if float(new[0]) >= float(value):  # rounding hides the way down
                break
            own, (value, gradient, active) = own - size * step, new
        columns.append(own)
    return _certified(loss, basis, torch.stack(columns, dim=1), l2, tolerance)


def _certified(loss: LinearLoss, basis: _Basis, point: Tensor, l2: float, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `_minimum`; the bias is taken to its best by Newton's method, which needs no further product with the features."""
    outputs, columns = basis.outputs(point), torch.arange(point.shape[1], device=point.device)
    size = 0.5 * l2 * point[:-1].square().sum(dtype=torch.float64)
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
    gradient = basis.features.T @ slope + l2 * point[:-1]
    total = value.sum() + size
    left = gain + gradient.square().sum(dtype=torch.float64) / (2 * l2)
    point = torch.cat([point[:-1], (point[-1] + bias)[None]])
    return point, total, left / total.clamp(min=torch.finfo(torch.float64).tiny)


def _minimised(loss: LinearLoss, basis: _Basis, point: Tensor, l2: float, tolerance: float) -> Tensor:
    """See `_minimum`; in coordinates where the curvature is near 1."""
    curvature = loss.curvature(basis.outputs(point)).clamp(min=SMALLEST * loss.largest)
    scale = torch.cat([1 / torch.sqrt(basis.spread[:, None] * curvature + l2), 1 / torch.sqrt(curvature)[None]])

    def at(scaled: Tensor, columns: Tensor) -> Seen:
        own = scale if scaled.shape[1] == scale.shape[1] else scale[:, columns]
        now = own * scaled
        mean, slope = loss(basis.outputs(now), columns)
        value = mean + 0.5 * l2 * by_problem(now[:-1].square(), len(mean))
        gradient = torch.cat([basis.features.T @ slope + l2 * now[:-1], slope.sum(dim=0, keepdim=True)])
        left = 0.5 * by_problem(torch.cat([gradient[:-1].square() / l2, (gradient[-1:] * own[-1:]).square()]), len(mean))
        return value, gradient.mul_(own), left

    return scale * minimise(at, point / scale, tolerance)
