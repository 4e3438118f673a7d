"""Linear classifiers on vectors, solved: the whole path of strengths of an L2 penalty, from the strongest to the weakest.

Shapes: N samples, C features, K outputs (one for each class; one alone for two classes), S strengths. G problems are solved side by
side: the K outputs where they are independent of each other (svm), else one.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["softmax", "svm", "ridge"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MEMORY = 10  # pairs that L-BFGS keeps
MOST_STEPS = 1000
AGAIN = 2
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
        left: (S,) float64, what the objective can still fall by at most, relative to it: |gradient|^2 / (2 strength), since it is
            strongly convex in the weights (Boyd and Vandenberghe 2004, section 9.1.2), and the bias is near its optimum.
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
    basis = _Basis(codes_NC)
    signs = _signs(labels_N, classes, codes_NC.dtype)
    if kind == "ridge":
        return _ridge(basis, signs, strengths)
    loss: _Loss = _Svm(signs) if kind == "svm" else _Logistic(signs) if classes == 2 else _Softmax(labels_N)
    tolerance, finer = TOLERANCE[codes_NC.dtype], None
    guess = point = codes_NC.new_zeros(basis.rank + 1, signs.shape[1])  # the last row is the bias
    found = {}
    for i in sorted(range(len(strengths)), key=lambda i: -strengths[i]):
        found[i] = _minimised(loss, basis, guess, float(strengths[i]), tolerance)
        for _ in range(AGAIN):  # with the curvature there, which the bound of the bias rests on; ends at once where it holds
            found[i] = _minimised(loss, basis, found[i][0], float(strengths[i]), tolerance)
        if codes_NC.dtype == torch.float32 and float(found[i][2]) > tolerance:  # rounding hides the way down
            finer = finer or basis.double()
            found[i] = _minimised(loss.double(), finer, found[i][0].double(), float(strengths[i]), tolerance)
        before, point = point, found[i][0].to(codes_NC.dtype)
        guess = 2 * point - before if kind == "softmax" and len(found) > 1 else point  # along the path; a hinge bends too sharply for it
    points, values, lefts = (torch.stack(each) for each in zip(*(found[i] for i in range(len(strengths))), strict=True))
    return Path(*basis.back(points.to(codes_NC.dtype)), values, lefts, lefts <= tolerance)


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
        self.spread = spread.clamp(min=0).to(codes.dtype)  # mean square along each axis
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


def _ridge(basis: _Basis, signs: Tensor, strengths: Sequence[float]) -> Path:
    """One eigendecomposition for all strengths."""
    n = len(signs)
    mean, along = signs.mean(dim=0), basis.codes.T @ signs / n
    points = torch.stack([torch.cat([along / (basis.spread + strength)[:, None], mean[None]]) for strength in strengths])
    apart = [(basis.outputs(point) - signs).square().sum(dtype=torch.float64) / n for point in points]
    sizes = points[:, :-1].square().sum(dim=(1, 2), dtype=torch.float64)
    values = 0.5 * (torch.stack(apart) + torch.tensor(strengths, dtype=torch.float64, device=sizes.device) * sizes)
    return Path(*basis.back(points), values, torch.zeros_like(values), torch.ones_like(values, dtype=torch.bool))


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


class _Logistic:
    """Cross-entropy of two classes, by one output."""

    largest = 0.25

    def __init__(self, signs: Tensor) -> None:
        self.signs = signs

    def double(self) -> "_Logistic":
        return _Logistic(self.signs.double())

    def __call__(self, outputs: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        margin = self.signs * outputs
        mean = torch.nn.functional.softplus(-margin).mean(dim=0, dtype=torch.float64)
        return mean, self.signs * torch.sigmoid(-margin) / -len(outputs)

    def curvature(self, outputs: Tensor) -> Tensor:
        return (torch.sigmoid(outputs) * torch.sigmoid(-outputs)).mean(dim=0)


class _Svm:
    """Squared hinge of each output: K problems."""

    largest = 2.0

    def __init__(self, signs: Tensor) -> None:
        self.signs = signs

    def double(self) -> "_Svm":
        return _Svm(self.signs.double())

    def __call__(self, outputs: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        signs = self.signs if outputs.shape == self.signs.shape else self.signs[:, columns]
        short = torch.relu(1 - signs * outputs)
        return short.square().mean(dim=0, dtype=torch.float64), signs * short * (-2 / len(outputs))

    def curvature(self, outputs: Tensor) -> Tensor:
        return 2 * (self.signs * outputs < 1).to(outputs.dtype).mean(dim=0)


_Loss = _Softmax | _Logistic | _Svm
_Seen = tuple[Tensor, Tensor, Tensor]  # values (G,), gradients (rows, columns), what is left (G,)
_At = Callable[[Tensor, Tensor], _Seen]


def _signs(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """+1 for the class of an output, else -1, (N, K); for two classes +1 is the second."""
    if classes == 2:
        return (2 * labels - 1).to(dtype)[:, None]
    return torch.nn.functional.one_hot(labels, classes).to(dtype) * 2 - 1


def _minimised(loss: _Loss, basis: _Basis, point: Tensor, strength: float, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Point (rank + 1, K) of the minimum, its value and what is left, both () float64, from `point` on, in coordinates where the curvature
    is near 1.
    """
    curvature = loss.curvature(basis.outputs(point)).clamp(min=SMALLEST * loss.largest)
    scale = torch.cat([1 / torch.sqrt(basis.spread[:, None] * curvature + strength), 1 / torch.sqrt(curvature)[None]])

    def at(scaled: Tensor, columns: Tensor) -> _Seen:
        own = scale if scaled.shape[1] == scale.shape[1] else scale[:, columns]
        now = own * scaled
        mean, slope = loss(basis.outputs(now), columns)
        value = mean + 0.5 * strength * _by_problem(now[:-1].square(), len(mean))
        gradient = torch.cat([basis.codes.T @ slope + strength * now[:-1], slope.sum(dim=0, keepdim=True)])
        left = 0.5 * _by_problem(torch.cat([gradient[:-1].square() / strength, (gradient[-1:] * own[-1:]).square()]), len(mean))
        return value, gradient.mul_(own), left

    scaled, value, left = _lbfgs(at, point / scale, tolerance)
    return scale * scaled, value.sum(), left.sum() / value.sum().clamp(min=torch.finfo(torch.float64).tiny)


def _by_problem(values: Tensor, problems: int) -> Tensor:
    """(rows, K) -> sums (G,) in float64."""
    sums = values.sum(dim=0, dtype=torch.float64)
    return sums if problems == len(sums) else sums.sum(dim=0, keepdim=True)


def _lbfgs(at: _At, point: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise G functions side by side (Nocedal and Wright 2006, algorithms 7.4 and 7.5): points (rows, K), values (G,), what is left of
    each (G,). Those that are done, or where rounding hides every way down, stay where they are, and are left out once they are half.

    Args:
        at: points (rows, columns) and which of the K columns these are -> values float64, gradients (rows, columns), and what is left.
        point: to begin at.
        tolerance: of the sum of the values: what may be left.
    """
    columns = torch.arange(point.shape[1], device=point.device)
    value, gradient, left = at(point, columns)
    problems, pairs, failures = len(value), list[_Pair](), torch.zeros_like(value)
    points, values, lefts = point, value, torch.full_like(value, torch.inf)
    for _ in range(MOST_STEPS):
        direction = _direction(gradient, pairs)
        slope = _by_problem(gradient * direction, len(value))
        points, values, lefts = (_put(*each, columns) for each in ((points, point), (values, value), (lefts, left)))
        live = (left > tolerance * values.sum() / problems) & (failures < 2)
        if not bool(live.any()):
            break
        if problems > 1 and 2 * int(live.sum()) <= len(live):
            columns, value, point, gradient = columns[live], value[live], point[:, live], gradient[:, live]
            direction, slope, failures = direction[:, live], slope[live], failures[live]
            pairs, live = [pair.only(live) for pair in pairs], live[live]
        step, (new_value, new_gradient, left), moved = _step(at, columns, point, value, direction * live, slope * live)
        failures = torch.where(moved, 0.0, failures + live)
        pair = _Pair.of(step, new_gradient - gradient, len(value))
        pairs = [one.unless(failures > 0) for one in (*pairs[1 - MEMORY :], pair)]  # a failure may be for a memory that misleads
        point, value, gradient = point + step, new_value, new_gradient
    return points, values, lefts


def _put(all_of: Tensor, some: Tensor, columns: Tensor) -> Tensor:
    """`all_of` with `some` in these columns; for one problem these are all."""
    if some.shape == all_of.shape:
        return some
    all_of = all_of.clone()
    all_of[..., columns] = some
    return all_of


@dataclass(frozen=True)
class _Pair:
    """A step, the change of the gradient along it, 1 / their product (G,) (0: the pair tells nothing), and product / change^2."""

    step: Tensor
    change: Tensor
    inverse: Tensor
    size: Tensor

    @classmethod
    def of(cls, step: Tensor, change: Tensor, problems: int) -> "_Pair":
        product, square = _by_problem(step * change, problems), _by_problem(change * change, problems)
        sound = product > 1e-10 * square
        one = torch.ones_like(product)
        inverse = torch.where(sound, 1 / torch.where(sound, product, one), 0 * one)
        return cls(step, change, inverse, torch.where(sound, product / torch.where(sound, square, one), one))

    def only(self, problems: Tensor) -> "_Pair":
        """Of these problems."""
        return _Pair(self.step[:, problems], self.change[:, problems], self.inverse[problems], self.size[problems])

    def unless(self, problems: Tensor) -> "_Pair":
        """Telling nothing of these problems."""
        if not bool(problems.any()):
            return self
        return _Pair(self.step, self.change, torch.where(problems, 0.0, self.inverse), torch.where(problems, 1.0, self.size))


def _direction(gradient: Tensor, pairs: Sequence[_Pair]) -> Tensor:
    """Minus the inverse Hessian, as the last pairs tell it, times the gradient."""
    direction, factors = -gradient, []
    for pair in reversed(pairs):
        factors.append(pair.inverse * _by_problem(pair.step * direction, len(pair.inverse)))
        direction = direction - factors[-1].to(gradient.dtype) * pair.change
    if pairs:
        direction = direction * pairs[-1].size.to(gradient.dtype)
    for pair, factor in zip(pairs, reversed(factors), strict=True):
        again = pair.inverse * _by_problem(pair.change * direction, len(pair.inverse))
        direction = direction + (factor - again).to(gradient.dtype) * pair.step
    return direction


def _step(at: _At, columns: Tensor, point: Tensor, value: Tensor, direction: Tensor, slope: Tensor) -> tuple[Tensor, _Seen, Tensor]:
    """A step that lowers each value enough, halved from the full one (Armijo's rule), none where that does not help: step, what is seen
    there, which moved.
    """
    size = (slope < 0).to(value)
    while True:
        step = size.to(point.dtype) * direction
        seen = at(point + step, columns)
        short = (seen[0] > value + 1e-4 * size * slope) & (size > 0)
        if not bool(short.any()):
            return step, seen, size > 0
        size = torch.where(short, torch.where(size > 1e-4, size / 2, 0.0), size)
