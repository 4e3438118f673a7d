"""A view of an image in two parts: its pixels, integers of 8 bits, and their normalisation to the floats that a network takes.

Pixels are a quarter of the size of floats, and a batch is normalised in less time than its images one by one. The type tells the two
apart: an image of 8 bits is not normalised yet, one of floats is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ftlit.data.transforms import Transform


class Normalization:
    """The end of a view: images (..., C, H, W) -> normalised float32, to the bit as the view itself, on any device.

    Args:
        mean: per channel.
        std: per channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}  # copied to a device once: a copy waits for the device

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Normalization) and (self.mean, self.std) == (other.mean, other.std)

    def __hash__(self) -> int:
        return hash((self.mean, self.std))

    def __reduce__(self) -> tuple[type[Self], tuple[Sequence[float], Sequence[float]]]:
        return type(self), (self.mean, self.std)  # worker processes have no use for constants on a device

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images of integers, or of floats in [0, 1]."""
        if images.device not in self._constants:
            mean, std = (torch.tensor(values, dtype=torch.float32, device=images.device) for values in (self.mean, self.std))
            self._constants[images.device] = mean.view(-1, 1, 1), std.view(-1, 1, 1)
        mean, std = self._constants[images.device]
        floats: Tensor = F.to_dtype(images, torch.float32, scale=True)
        return floats.sub(mean).div_(std)

    def of_pixels(self, images: Tensor) -> Tensor:
        """Normalise images of 8 bits; others are normalised already."""
        return self(images) if images.dtype == torch.uint8 else images

    def of_one_type(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Images before normalisation as they are, if all are of 8 bits, so that they can be normalised later; else normalised."""
        return list(images) if all(image.dtype == torch.uint8 for image in images) else [self(image) for image in images]


@dataclass(frozen=True)
class SplitView:
    """A view in two parts: image -> pixels, and their normalisation."""

    pixels: Transform
    normalization: Normalization

    def __call__(self, image: Any) -> Tensor:
        """Image -> normalised image."""
        return self.normalization(self.pixels(image))

    @classmethod
    def of(cls, view: Transform) -> Self | None:
        """The parts of a view that ends as those of `ftlit.data.transforms`, or is split already; `None` for another one."""
        if isinstance(view, cls):
            return view
        steps = list(view.transforms) if isinstance(view, v2.Compose) else []
        if [*map(type, steps[-4:])] != [v2.ToImage, v2.ToDtype, v2.ToPureTensor, v2.Normalize]:
            return None
        to_floats, normalize = steps[-3], steps[-1]
        if to_floats.dtype != torch.float32 or not to_floats.scale or not len(normalize.mean) == len(normalize.std):
            return None
        return cls(v2.Compose([*steps[:-4], v2.ToImage(), v2.ToPureTensor()]), Normalization(normalize.mean, normalize.std))
