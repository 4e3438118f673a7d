"""Inputs unlike those of training: the angle between their features and the subspace of the training features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ftlit.formats import DamagedFile, JsonObject, upgraded, with_format

KEY = "feature_subspace"  # in a checkpoint, beside the record
DIRECTIONS = 16  # of the subspace, at most: measured by benchmarks/novelty.py
MAX_IMAGES = 500  # whose features span it
FOLDS = 5
FLAGGED = 0.01  # the share of new images like the known ones that the threshold is meant to flag
TAIL = 0.25  # of the distances of known images, the largest, from which the threshold is computed
SMALLEST = 1e-6  # threshold: smaller distances are rounding errors of float32
LEAST = 10  # images; of fewer, the largest distances say nothing


@dataclass(frozen=True)
class FeatureSubspace:
    """The main directions of the features of known images (residual of Wang et al. 2022, "ViM", section 4, of features of length 1).

    Args:
        basis: (D, C) float32, orthonormal rows.
        threshold: the distance that about 1 in 100 new images like the known ones exceeds, see `feature_subspace`.
    """

    basis: Tensor
    threshold: float

    def distances(self, features: Tensor) -> Tensor:
        """The squared sine of the angle between features (N, C) and the subspace, in [0, 1] (N,); 1 for features that are all 0."""
        return _distances(features, self.basis.to(features.device))

    def relative_distances(self, features: Tensor) -> Tensor:
        """`distances` (N,) divided by the threshold: above 1 is unlike known images."""
        return self.distances(features) / max(self.threshold, SMALLEST)

    def record(self) -> JsonObject:
        """Plain values and tensors for a checkpoint."""
        return with_format({"basis": self.basis, "threshold": self.threshold})


def feature_subspace(features: Tensor) -> FeatureSubspace | None:
    """The subspace of pooled features (N, C); `None` of fewer than `LEAST`, or where one is not finite.

    The threshold follows from the distances of the images, each from the subspace of others, see `_threshold`.
    """
    known = features.detach().float().cpu()
    if len(known) < LEAST or not bool(known.isfinite().all()):
        return None
    fold = torch.arange(len(known)) % FOLDS
    parts = [_distances(known[fold == i], _basis(known[fold != i])) for i in range(FOLDS)]
    return FeatureSubspace(_basis(known), _threshold(torch.cat(parts)))


def some_places(*numbers: int) -> list[list[int]]:
    """Places of at most `MAX_IMAGES` images of several data sets together, evenly spaced: their classes may come one after the other.

    Args:
        numbers: of images of each set.

    Returns:
        The places in each set, from 0.
    """
    total = sum(numbers)
    chosen = torch.linspace(0, total - 1, min(total, MAX_IMAGES)).long()
    begins = [sum(numbers[:i]) for i in range(len(numbers))]
    return [(chosen[(chosen >= begin) & (chosen < begin + number)] - begin).tolist() for begin, number in zip(begins, numbers, strict=True)]


def read_subspace(checkpoint: Mapping[str, Any], file: object) -> FeatureSubspace | None:
    """The subspace in a checkpoint; `None` where there is none. Raises `UserError` for a damaged one, or one of a newer program."""
    if KEY not in checkpoint:
        return None
    found = upgraded(checkpoint[KEY], str(file))
    basis, threshold = found.get("basis"), found.get("threshold")
    if not isinstance(basis, Tensor) or basis.ndim != 2 or not bool(basis.isfinite().all()) or not isinstance(threshold, float):
        raise DamagedFile(str(file), "its subspace of features is not valid", "restore it from a copy, or train again")
    return FeatureSubspace(basis, threshold)


def _threshold(distances: Tensor) -> float:
    """The distance that a new one exceeds with a probability of `FLAGGED`, from those of known images (N,).

    The empirical quantile of fewer than 100 is their largest value, which 1 of N + 1 new images exceeds. So the largest quarter is taken as
    an exponential tail (peaks over threshold, Davison and Smith 1990), and its mean as uncertain: with the density 1/mean as prior, the
    probability that a new excess is above x is (1 + x / (k mean)) ** -k. A new distance exceeds the (k + 1)-th largest of N, where the tail
    begins, with probability (k + 1) / (N + 1).
    """
    largest = distances.double().sort(descending=True).values
    k = max(3, round(TAIL * len(largest)))
    excess = (largest[:k] - largest[k]).mean() * k * (((k + 1) / ((len(largest) + 1) * FLAGGED)) ** (1 / k) - 1)
    return float(largest[k] + excess)


def _basis(features: Tensor) -> Tensor:
    directions: Tensor = torch.linalg.svd(normalize(features, dim=1), full_matrices=False).Vh
    return directions[: min(DIRECTIONS, len(features) // 2)].contiguous()


def _distances(features: Tensor, basis: Tensor) -> Tensor:
    return (1 - (normalize(features.float(), dim=1) @ basis.T).square().sum(dim=1)).clamp(0, 1)
