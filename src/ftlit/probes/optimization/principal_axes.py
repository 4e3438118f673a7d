"""Principal axes of features: the coordinates in which linear probes are fitted."""

from copy import copy

import torch
from torch import Tensor

RANK_TOLERANCE = 1e-12  # relative to the largest mean square along an axis: below is rounding error


class PrincipalAxes:
    """Centred features in the directions of their principal axes, in which a quadratic loss is diagonal; only the axes that the samples
    span, since a solution has no part outside of them.

    Args:
        features: (N, C), float32 or float64.
        weights: of the samples (N, 1) float64, above 0, of mean 1; the mean and the axes are those of the weighted samples.

    Attributes:
        features: (N, rank), centred, along the axes.
        axes: (C, rank), orthonormal.
        mean: (C,), of the weighted features.
        spread: (rank,), mean square along each axis.
        rank: number of axes.
    """

    def __init__(self, features: Tensor, weights: Tensor | None = None) -> None:
        n, c = features.shape
        self.mean = features.mean(dim=0) if weights is None else (weights * features).mean(dim=0).to(features.dtype)
        centred = features - self.mean
        double = centred.double() if weights is None else weights.sqrt() * centred
        spread, axes = torch.linalg.eigh((double.T @ double if c <= n else double @ double.T) / n)
        kept = spread > RANK_TOLERANCE * spread[-1]
        spread, axes = spread[kept], axes[:, kept]
        if c > n:
            axes = double.T @ (axes / (spread * n).sqrt())
        self.axes = axes.to(features.dtype)
        self.features = centred @ self.axes
        self.spread = spread.to(features.dtype)
        self.rank = len(spread)

    def double(self) -> "PrincipalAxes":
        """The same in float64."""
        finer = copy(self)
        finer.features, finer.spread = self.features.double(), self.spread.double()
        return finer

    def outputs(self, point: Tensor) -> Tensor:
        """Point (rank + 1, K) -> (N, K), whose columns are contiguous: products with few columns take half the time."""
        outputs_KN = torch.addmm(point[-1][:, None], point[:-1].T, self.features.T)
        return outputs_KN.T

    def gradient(self, slope: Tensor) -> Tensor:
        """Slope of a loss by each output (N, K) -> by the weights along the axes (rank, K)."""
        gradient_KR: Tensor = slope.T @ self.features
        return gradient_KR.T

    def back(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points (S, rank + 1, K) -> weights (S, K, C) and biases (S, K) for the original features."""
        weights = (self.axes @ points[:, :-1]).transpose(1, 2)
        return weights, points[:, -1] - weights @ self.mean
