"""The optimum of a linear probe at one L2 penalty, by L-BFGS or Newton's method. Shapes as in `ftlit.probes.solver`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ftlit.probes.objectives import LinearLoss, Svm
from ftlit.probes.optimization.lbfgs import Evaluation, minimise, sum_by_problem
from ftlit.probes.optimization.principal_axes import PrincipalAxes

NEWTON_MAX_RANK = 512  # axes up to which Newton's method is faster than L-BFGS (2 to 26 times, on 64 and 512)
MAX_NEWTON_STEPS = 50
MIN_NEWTON_STEP = 1e-3  # relative to a full one
MIN_BIAS_CURVATURE = 1e-12  # of the squared hinge by the bias, where no sample is within its margin
MAX_BIAS_STEPS = 8
MAX_RESTARTS = 3  # of L-BFGS, with the curvature at its end, while the bound is above the tolerance
MIN_CURVATURE = 1e-3  # relative to the largest possible value: a lower bound of its estimate


@dataclass(frozen=True)
class Solution:
    """Point (rank + 1, K) whose last row is the bias; objective () and `left` (), see `RegularizationPath`, both float64."""

    point: Tensor
    objective: Tensor
    left: Tensor


def minimum(loss: LinearLoss, basis: PrincipalAxes, point: Tensor, l2: float, tolerance: float) -> Solution:
    """The minimum, searched from `point` on; for a hinge by the second method too where the first does not converge."""
    best = Solution(point, torch.tensor(torch.inf), torch.tensor(torch.inf))
    methods = [_newton, _lbfgs] if basis.rank <= NEWTON_MAX_RANK else [_lbfgs, _newton]
    for method in methods if isinstance(loss, Svm) else [_lbfgs]:
        best = min(best, method(loss, basis, best.point, l2, tolerance), key=lambda solution: float(solution.left))
        if float(best.left) <= tolerance:
            break
    return best


def _lbfgs(loss: LinearLoss, basis: PrincipalAxes, point: Tensor, l2: float, tolerance: float) -> Solution:
    """See `minimum`."""
    solution = Solution(point, torch.tensor(torch.inf), torch.tensor(torch.inf))
    for restart in range(1 + MAX_RESTARTS):
        before = solution.left
        within = tolerance / 4**restart  # at the best bias the bound is another one
        solution = _with_best_bias(loss, basis, _lbfgs_once(loss, basis, solution.point, l2, within), l2, tolerance)
        if float(solution.left) <= tolerance or float(solution.left) >= float(before):
            break
    return solution


def _newton(loss: LinearLoss, basis: PrincipalAxes, point: Tensor, l2: float, tolerance: float) -> Solution:
    """See `minimum`; one output after the other: between its kinks a squared hinge is quadratic, so that a few steps end in the minimum
    (Chapelle 2007, section 2.2). Their cost grows with the cube of the number of axes.
    """
    n, columns = len(basis.features), []
    rows = torch.cat([basis.features, basis.features.new_ones(n, 1)], dim=1)
    penalty = rows.new_full(rows.shape[1:], l2)
    penalty[-1] = 0

    def evaluate(weights: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Objective, gradient, and which samples are within their margin."""
        mean, slope = loss((rows @ weights)[:, None], column)
        value = mean[0] + 0.5 * (penalty * weights.square()).sum()
        return value, penalty * weights + slope[:, 0] @ rows, slope[:, 0] != 0

    for weights, column in zip(point.T, torch.arange(point.shape[1], device=point.device)[:, None], strict=True):
        value, gradient, active = evaluate(weights, column)
        for _ in range(MAX_NEWTON_STEPS):
            if float(gradient.square().sum()) / (2 * l2) <= 0.1 * tolerance * float(value):
                break
            short = rows[active]
            counted = short if loss.weights is None else loss.weights[active] * short
            hessian = 2 / n * counted.T @ short + penalty.clamp(min=MIN_BIAS_CURVATURE).diag()
            step, size = torch.linalg.solve(hessian, gradient), 1.0
            decrement = float(gradient @ step)
            new = evaluate(weights - step, column)
            while float(new[0]) > float(value) - 1e-4 * size * decrement and size > MIN_NEWTON_STEP:
                size /= 2
                new = evaluate(weights - size * step, column)
            if float(new[0]) >= float(value):  # rounding hides the descent
                break
            weights, (value, gradient, active) = weights - size * step, new
        columns.append(weights)
    return _with_best_bias(loss, basis, torch.stack(columns, dim=1), l2, tolerance)


def _with_best_bias(loss: LinearLoss, basis: PrincipalAxes, point: Tensor, l2: float, tolerance: float) -> Solution:
    """The point with its bias at the optimum, by Newton's method, which needs no further product with the features; and the bound."""
    outputs, columns = basis.outputs(point), torch.arange(point.shape[1], device=point.device)
    penalty = 0.5 * l2 * point[:-1].square().sum(dtype=torch.float64)
    bias = torch.zeros_like(point[-1])
    value, slope = loss(outputs, columns)
    for _ in range(MAX_BIAS_STEPS):
        along = slope.sum(dim=0, dtype=torch.float64)
        step = loss.newton(outputs + bias, along)
        gain = 0.5 * (along * step).sum()
        if float(gain) <= 0.01 * tolerance * float(value.sum() + penalty):
            break
        new_value, new_slope = loss(outputs + (bias - step.to(bias.dtype)), columns)
        if float(new_value.sum()) >= float(value.sum()):
            break
        bias, value, slope = bias - step.to(bias.dtype), new_value, new_slope
    gradient = basis.gradient(slope) + l2 * point[:-1]
    total = value.sum() + penalty
    left = gain + gradient.square().sum(dtype=torch.float64) / (2 * l2)
    point = torch.cat([point[:-1], (point[-1] + bias)[None]])
    return Solution(point, total, left / total.clamp(min=torch.finfo(torch.float64).tiny))


def _lbfgs_once(loss: LinearLoss, basis: PrincipalAxes, point: Tensor, l2: float, tolerance: float) -> Tensor:
    """The point after one run of L-BFGS, in coordinates where the curvature is near 1."""
    first = basis.outputs(point)
    curvature = loss.curvature(first).clamp(min=MIN_CURVATURE * loss.largest)
    scale = torch.cat([1 / torch.sqrt(basis.spread[:, None] * curvature + l2), 1 / torch.sqrt(curvature)[None]])
    start = point / scale

    def objective(scaled: Tensor, columns: Tensor) -> Evaluation:
        own = scale if scaled.shape[1] == scale.shape[1] else scale[:, columns]
        now = own * scaled
        mean, slope = loss(first if scaled is start else basis.outputs(now), columns)
        value = mean + 0.5 * l2 * sum_by_problem(now[:-1].square(), len(mean))
        gradient = torch.cat([basis.gradient(slope) + l2 * now[:-1], slope.sum(dim=0, keepdim=True)])
        left = 0.5 * sum_by_problem(torch.cat([gradient[:-1].square() / l2, (gradient[-1:] * own[-1:]).square()]), len(mean))
        return value, gradient.mul_(own), left

    return scale * minimise(objective, start, tolerance)
