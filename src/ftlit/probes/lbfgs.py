"""L-BFGS for several functions side by side, on any device.

Shapes: G functions of (rows, K) numbers in all: each of a column of its own (G = K), or one of all columns (G = 1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 10  # pairs of steps and changes that are kept
MOST_STEPS = 1000

Seen = tuple[Tensor, Tensor, Tensor]  # values (G,) float64, gradients (rows, columns), what is left (G,)
At = Callable[[Tensor, Tensor], Seen]


def minimise(at: At, point: Tensor, tolerance: float) -> Tensor:
    """Minimise G functions side by side (Nocedal and Wright 2006, algorithms 7.4 and 7.5): points (rows, K). Those that are done, or where
    rounding hides every way down, stay where they are, and are left out once they are half.

    Args:
        at: points (rows, columns) and which of the K columns these are -> values float64, gradients (rows, columns), and what is left.
        point: to begin at.
        tolerance: of the sum of the values: what may be left.
    """
    columns = torch.arange(point.shape[1], device=point.device)
    value, gradient, left = at(point, columns)
    problems, pairs, failures = len(value), list[_Pair](), torch.zeros_like(value)
    points, values = point, value
    for _ in range(MOST_STEPS):
        direction = _direction(gradient, pairs)
        slope = by_problem(gradient * direction, len(value))
        points, values = _put(points, point, columns), _put(values, value, columns)
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
    return _put(points, point, columns)


def by_problem(values: Tensor, problems: int) -> Tensor:
    """(rows, K) -> sums (G,) in float64."""
    sums = values.sum(dim=0, dtype=torch.float64)
    return sums if problems == len(sums) else sums.sum(dim=0, keepdim=True)


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
        product, square = by_problem(step * change, problems), by_problem(change * change, problems)
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
        factors.append(pair.inverse * by_problem(pair.step * direction, len(pair.inverse)))
        direction = direction - factors[-1].to(gradient.dtype) * pair.change
    if pairs:
        direction = direction * pairs[-1].size.to(gradient.dtype)
    for pair, factor in zip(pairs, reversed(factors), strict=True):
        again = pair.inverse * by_problem(pair.change * direction, len(pair.inverse))
        direction = direction + (factor - again).to(gradient.dtype) * pair.step
    return direction


def _step(at: At, columns: Tensor, point: Tensor, value: Tensor, direction: Tensor, slope: Tensor) -> tuple[Tensor, Seen, Tensor]:
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
