"""The training examples that are nearest to others, by the features of one cut."""

import math
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ftlit.features.extract import Features
from ftlit.probes.cross_validation import scales

MAX_NUMBERS = 2**25  # that are kept of the features, 67 MB in float16
HALF_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class TrainVectors:
    """The features of the training examples at one cut.

    Args:
        cut: name of the layer.
        vectors: (N, C) float16.
    """

    cut: str
    vectors: Tensor = field(repr=False)

    @classmethod
    def of(cls, features: Features, cut: str) -> Self | None:
        """Those of stored features; `None` where they are more than `MAX_NUMBERS`."""
        rows = features[cut]
        if len(rows) * math.prod(rows.shape) > MAX_NUMBERS:
            return None
        return cls(cut, rows.read(range(len(rows))).clamp(-HALF_MAX, HALF_MAX).half())

    def nearest(self, queries: Tensor, number: int) -> Tensor:
        """Places (M, number) of the examples with the largest cosine similarity of standardised features to each of M queries (M, C), the
        nearest first; fewer where there are fewer examples.
        """
        vectors = self.vectors.float()
        mean, inverse = scales(vectors)
        similarity = normalize((queries.float() - mean) * inverse) @ normalize((vectors - mean) * inverse).T
        return similarity.topk(min(number, len(vectors)), dim=1).indices
