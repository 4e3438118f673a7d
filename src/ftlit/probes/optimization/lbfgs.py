"""L-BFGS for several functions side by side, on any device.

Shapes: G functions of (rows, K) numbers in all: each function has a column of its own (G = K), or one function has all columns (G = 1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 10  # pairs of steps and gradient changes that are kept
MAX_STEPS = 1000

Evaluation = tuple[
    Tensor, Tensor, Tensor
]  # values (G,) float64, gradients (rows, columns), bounds (G,) on how far the values can still fall
Objective = Callable[[Tensor, Tensor], Evaluation]


def minimise(objective: Objective, point: Tensor, tolerance: float) -> Tensor:
    """Minimise G functions side by side (Nocedal and Wright 2006, algorithms 7.4 and 7.5). Functions that have converged, or where rounding
    hides the descent, stay where they are; once they are half of all, they are no longer evaluated.

    Args:
        objective: points (rows, columns) and which of the K columns these are -> see `Evaluation`.
        point: (rows, K), the start.
        tolerance: the bound at which a function has converged, relative to the mean of the values.

    Returns:
        Points (rows, K).
    """
    columns = torch.arange(point.shape[1], device=point.device)
    value, gradient, left = objective(point, columns)
    problems, pairs, failures = len(value), list[_Pair](), torch.zeros_like(value)
    points, values = point, value
    for _ in range(MAX_STEPS):
        direction = _direction(gradient, pairs)
        slope = sum_by_problem(gradient * direction, len(value))
        points, values = _with_columns(points, point, columns), _with_columns(values, value, columns)
        live = (left > tolerance * values.sum() / problems) & (failures < 2)
        if not bool(live.any()):
            break
        if problems > 1 and 2 * int(live.sum()) <= len(live):
            columns, value, point, gradient = columns[live], value[live], point[:, live], gradient[:, live]
            direction, slope, failures = direction[:, live], slope[live], failures[live]
            pairs, live = [pair.only(live) for pair in pairs], live[live]
        step, (new_value, new_gradient, left), moved = _step(objective, columns, point, value, direction * live, slope * live)
        failures = torch.where(moved, 0.0, failures + live)
        pair = _Pair.of(step, new_gradient - gradient, len(value))
        pairs = [one.unless(failures > 0) for one in (*pairs[1 - MEMORY :], pair)]  # a failure may come from misleading pairs
        point, value, gradient = point + step, new_value, new_gradient
    return _with_columns(points, point, columns)


def sum_by_problem(values: Tensor, problems: int) -> Tensor:
    """(rows, K) -> sums (G,) in float64."""
    sums = values.sum(dim=0, dtype=torch.float64)
    return sums if problems == len(sums) else sums.sum(dim=0, keepdim=True)


def _with_columns(all_of: Tensor, some: Tensor, columns: Tensor) -> Tensor:
    """`all_of` with these columns replaced by `some`; a single problem has all columns."""
    if some.shape == all_of.shape:
        return some
    all_of = all_of.clone()
    all_of[..., columns] = some
    return all_of


@dataclass(frozen=True)
class _Pair:
    """A step, the change of the gradient along it, 1 / their product (G,) (0: the pair is not used), and product / change^2."""

    step: Tensor
    change: Tensor
    inverse: Tensor
    size: Tensor

    @classmethod
    def of(cls, step: Tensor, change: Tensor, problems: int) -> "_Pair":
        product, square = sum_by_problem(step * change, problems), sum_by_problem(change * change, problems)
        sound = product > 1e-10 * square
        one = torch.ones_like(product)
        inverse = torch.where(sound, 1 / torch.where(sound, product, one), 0 * one)
        return cls(step, change, inverse, torch.where(sound, product / torch.where(sound, square, one), one))

    def only(self, problems: Tensor) -> "_Pair":
        """The pair, for these problems only."""
        return _Pair(self.step[:, problems], self.change[:, problems], self.inverse[problems], self.size[problems])

    def unless(self, problems: Tensor) -> "_Pair":
        """The pair, not used for these problems."""
        if not bool(problems.any()):
            return self
        return _Pair(self.step, self.change, torch.where(problems, 0.0, self.inverse), torch.where(problems, 1.0, self.size))


def _direction(gradient: Tensor, pairs: Sequence[_Pair]) -> Tensor:
    """Minus the inverse Hessian, estimated from the last pairs, times the gradient."""
    direction, factors = -gradient, []
    for pair in reversed(pairs):
        factors.append(pair.inverse * sum_by_problem(pair.step * direction, len(pair.inverse)))
        direction = direction - factors[-1].to(gradient.dtype) * pair.change
    if pairs:
        direction = direction * pairs[-1].size.to(gradient.dtype)
    for pair, factor in zip(pairs, reversed(factors), strict=True):
        again = pair.inverse * sum_by_problem(pair.change * direction, len(pair.inverse))
        direction = direction + (factor - again).to(gradient.dtype) * pair.step
    return direction


def _step(
    objective: Objective, columns: Tensor, point: Tensor, value: Tensor, direction: Tensor, slope: Tensor
) -> tuple[Tensor, Evaluation, Tensor]:
    """Backtracking line search (Armijo's rule): a full step, halved until each value falls enough; no step where that does not help, or
    where rounding would hide the fall.

    Returns:
        The step, the evaluation after it, and which problems moved (G,).
    """
    size = (slope < 0).to(value)
    rounding = torch.finfo(point.dtype).eps * value.abs()
    while True:
        step = size.to(point.dtype) * direction
        after = objective(point + step, columns)
        short = (after[0] > value + 1e-4 * size * slope) & (size > 0)
        if not bool(short.any()):
            return step, after, size > 0
        size = torch.where(short, torch.where((size > 1e-4) & (-size * slope > rounding), size / 2, 0.0), size)
