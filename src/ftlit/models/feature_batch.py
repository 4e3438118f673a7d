"""A batch of features in place of a batch of images."""

from collections.abc import Mapping

import torch
from torch import Tensor


class FeatureBatch:
    """A batch of features at one or several cuts. A backbone that takes it runs only the layers above the highest of them.

    Like a tensor it has a length N and a shape, and moves to a device; it does not support arithmetic.

    Args:
        features: cut -> the features there, (N, ...), the lowest cut first; at least one.
    """

    def __init__(self, features: Mapping[str, Tensor]) -> None:
        self.features = dict(features)
        *_, self.cut = self.features

    @property
    def values(self) -> Tensor:
        """The features at the highest cut."""
        return self.features[self.cut]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> torch.Size:
        """The shape of the values."""
        return self.values.shape

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "FeatureBatch":
        """Move the features to a device, as Lightning does with a batch."""
        return FeatureBatch({cut: values.to(device, non_blocking=non_blocking) for cut, values in self.features.items()})
