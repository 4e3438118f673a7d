"""Fit linear classifiers on vectors: the whole regularization path, from the strongest L2 penalty to the weakest.

Shapes: N samples, C features, K outputs (one per class; a single one for two classes), S L2 penalties. G problems are minimised side by
side: the K outputs where they are independent of each other (svm), else one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, log

import torch
from torch import Tensor

from ftlit.models.precision import kept_matmul_precision
from ftlit.probes.objectives import LinearLoss, Logistic, LossName, Softmax, Svm, signs_of, weighted
from ftlit.probes.optimization.minimum import Solution, minimum
from ftlit.probes.optimization.principal_axes import PrincipalAxes
from ftlit.threads import threads_for

FIRST_L2 = 1.0  # L2 penalty at which 0 is near the solution: the path begins here
MAX_L2_RATIO = 10.0  # between neighbours on the path
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-6}  # what the objective may still fall by, relative to it
FLOAT32_MIN_SIZE = 500_000  # numbers in the features from which on float32 is worth trying; for a coarser tolerance always
FLOAT32_MIN_L2 = 1e-4  # of fewer numbers: below, the gradient is too small for float32
MAX_NUMBERS = 2**18  # outputs of ridge that are computed together: 2 MB, near the processor
Ended = Callable[[Tensor, Tensor], bool]
INTERMEDIATE_TOLERANCE = 3e-2  # at penalties that were not asked for: their solutions are only where the next search starts


@dataclass(frozen=True)
class RegularizationPath:
    """Solutions for S L2 penalties, in the order of the request.

    Args:
        weight: (S, K, C)
        bias: (S, K)
        objective: (S,) float64, mean loss + L2 penalty / 2 * |weight|^2.
        left: (S,) float64, an upper bound on what the objective can still fall by, relative to it: |gradient|^2 / (2 L2 penalty) by the
            weights, since at the best bias it is strongly convex in them (Boyd and Vandenberghe 2004, section 9.1.2), plus half of Newton's
            squared decrement by the bias, which has no penalty (section 9.5.1).
        converged: (S,) bool, whether `left` is within the tolerance.
    """

    weight: Tensor
    bias: Tensor
    objective: Tensor
    left: Tensor
    converged: Tensor


def solve(
    features_NC: Tensor,
    labels_N: Tensor,
    classes: int,
    l2_penalties: Sequence[float],
    kind: LossName,
    *,
    class_weights: Sequence[float] | None = None,
    tolerance_factor: float = 1.0,
    ended: Ended | None = None,
) -> RegularizationPath:
    """Minimise mean loss + L2 penalty / 2 * |weight|^2; the bias has no penalty.

    `softmax`: cross-entropy; for two classes one weight vector and the logistic loss, as scikit-learn has it: C = 1 / (N L2 penalty).
    `svm`: squared hinge, one class against the rest, summed over the classes: C = 1 / (N L2 penalty).
    `ridge`: half the squared distance to +1 and -1, one class against the rest: alpha = N L2 penalty.

    Args:
        features_NC: float32 or float64, best standardised; on a device that has float64.
        labels_N: int64, 0 .. classes - 1.
        classes: number of classes, at least 2.
        l2_penalties: each above 0.
        kind: the loss.
        class_weights: factors above 0 of the losses of the samples of each class (K,), as scikit-learn's `sample_weight`: the mean is
            the sum of weight * loss, divided by N. `None`: all 1.
        tolerance_factor: of the tolerance, which is 3e-5 for float32 and 1e-6 for float64.
        ended: called with the weight (K, C) and the bias (K,) at each L2 penalty, from the strongest to the weakest, and says whether the
            path ends there: the result has the penalties up to this one, the strongest first. Not for `ridge`, which solves all at once.
    """
    tolerance = tolerance_factor * TOLERANCE[features_NC.dtype]
    with threads_for(features_NC.numel() * classes), kept_matmul_precision("highest"):  # TF32 would miss the tolerance
        if class_weights is None:
            return _solve(features_NC, labels_N, classes, l2_penalties, kind, tolerance, ended=ended)
        weights = labels_N.new_tensor(class_weights, dtype=torch.float64)[labels_N][:, None]
        mean = float(weights.mean())  # with weights of mean 1 the bounds of the curvature hold, and the path begins where it should
        path = _solve(features_NC, labels_N, classes, [l2 / mean for l2 in l2_penalties], kind, tolerance, weights / mean, ended)
        return replace(path, objective=mean * path.objective)


def _solve(
    features_NC: Tensor,
    labels_N: Tensor,
    classes: int,
    l2_penalties: Sequence[float],
    kind: LossName,
    tolerance: float,
    weights_N1: Tensor | None = None,
    ended: Ended | None = None,
) -> RegularizationPath:
    # float32 halves the time of a step, but rounding may hide the descent: no gain for few features, and harmful at the kinks of a hinge
    is_large = features_NC.numel() >= FLOAT32_MIN_SIZE
    in_float32 = kind == "softmax" and (is_large or tolerance > TOLERANCE[features_NC.dtype])
    features = features_NC if in_float32 else features_NC.double()
    basis = PrincipalAxes(features, weights_N1)
    signs = signs_of(labels_N, classes, basis.features.dtype)
    if kind == "ridge":
        return _ridge(basis, signs, weights_N1, l2_penalties, features_NC)
    weights = None if weights_N1 is None else weights_N1.to(basis.features.dtype)
    loss: LinearLoss = Svm(signs, weights) if kind == "svm" else Logistic(signs, weights) if classes == 2 else Softmax(labels_N, weights)
    point = before = basis.features.new_zeros(basis.rank + 1, signs.shape[1])
    found, last, step = dict[int, Solution](), inf, 0.0
    for l2, place in _descending(l2_penalties):
        last_step, step = step, log(last / l2) if last < inf else 0.0
        ahead = min(step / last_step, 2.0) if last_step and kind == "softmax" else 0.0  # extrapolated; a hinge bends too sharply for it
        within = max(tolerance, INTERMEDIATE_TOLERANCE) if place is None else tolerance
        start = point + ahead * (point - before)
        if basis.features.dtype == torch.float32 and not is_large and l2 < FLOAT32_MIN_L2:
            basis, loss, start = basis.double(), loss.double(), start.double()
        solution = minimum(loss, basis, start, l2, within)
        if basis.features.dtype == torch.float32 and float(solution.left) > within:  # it would be for all weaker penalties
            basis, loss = basis.double(), loss.double()
            solution = minimum(loss, basis, solution.point.double(), l2, within)
        before, point, last = point, solution.point, l2
        if place is not None:
            found[place] = solution
            if ended is not None and ended(*(values[0].to(features_NC) for values in basis.back(point.to(basis.axes.dtype)[None]))):
                return _as_path(basis, list(found.values()), features_NC, tolerance)
    return _as_path(basis, [found[i] for i in range(len(l2_penalties))], features_NC, tolerance)


def _as_path(basis: PrincipalAxes, solutions: Sequence[Solution], like: Tensor, tolerance: float) -> RegularizationPath:
    points = torch.stack([solution.point.double() for solution in solutions])
    left = torch.stack([solution.left for solution in solutions])
    weight, bias = basis.back(points.to(basis.axes.dtype))
    objective = torch.stack([solution.objective for solution in solutions])
    return RegularizationPath(weight.to(like), bias.to(like), objective, left, left <= tolerance)


def _descending(l2_penalties: Sequence[float]) -> Iterator[tuple[float, int | None]]:
    """Each L2 penalty with its place, from the strongest to the weakest, and intermediate ones (place `None`), so that no step is long."""
    last = FIRST_L2
    for place in sorted(range(len(l2_penalties)), key=lambda i: -l2_penalties[i]):
        l2 = float(l2_penalties[place])
        while last > 1.01 * MAX_L2_RATIO * l2:
            last /= MAX_L2_RATIO
            yield last, None
        last = l2
        yield l2, place


def _ridge(basis: PrincipalAxes, signs: Tensor, weights: Tensor | None, l2_penalties: Sequence[float], like: Tensor) -> RegularizationPath:
    """One eigendecomposition for all L2 penalties, and products with the features for several of them at a time."""
    n, counted = len(signs), weighted(signs, weights)
    mean, along = counted.mean(dim=0), basis.gradient(counted) / n
    points, values, lefts = [], [], []
    penalties = torch.as_tensor(l2_penalties, dtype=basis.spread.dtype, device=basis.spread.device)
    for some in torch.split(penalties, max(1, MAX_NUMBERS // signs.numel())):
        weight_SRK = along / (basis.spread[:, None] + some[:, None, None])
        point_SRK = torch.cat([weight_SRK, mean.expand(len(some), 1, -1)], dim=1)
        wide = point_SRK.transpose(0, 1).flatten(1)  # (rank + 1, S * K)
        residual = basis.outputs(wide).reshape(n, len(some), -1) - signs[:, None]
        every = None if weights is None else weights[:, None]
        values.append(0.5 * (weighted(residual.square(), every).sum(dim=(0, 2)) / n + some * weight_SRK.square().sum(dim=(1, 2))))
        along_RSK = basis.gradient(weighted(residual, every).flatten(1)).reshape(len(basis.spread), len(some), signs.shape[1])
        gradient_SRK = along_RSK.transpose(0, 1) / n + some[:, None, None] * weight_SRK
        lefts.append(gradient_SRK.square().sum(dim=(1, 2)) / (2 * some) / values[-1].clamp(min=torch.finfo(signs.dtype).tiny))
        points.append(point_SRK)
    weight, bias = basis.back(torch.cat(points))
    left = torch.cat(lefts)
    return RegularizationPath(weight.to(like), bias.to(like), torch.cat(values), left, left <= TOLERANCE[like.dtype])
