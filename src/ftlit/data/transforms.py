"""What a network wants as input, and the transforms that bring an image there.

An `InputSpec` travels with the weights; nothing here is typed a second time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode

from ftlit.errors import UserError, unknown

Transform = Callable[[Any], Tensor]  # of a PIL image (RGB), or of a text


@dataclass(frozen=True)
class InputSpec:
    """The input that pretrained weights expect: RGB images, resized, cropped, scaled to [0, 1] and normalised.

    Args:
        size: side of the square that the network sees, in pixels.
        resize: shorter side that an image is brought to before the centre crop of `size` (evaluation); `None` means `size`.
        mean: per channel, in [0, 1].
        std: per channel, above 0.
        interpolation: one of torchvision's `InterpolationMode` values: `nearest`, `bilinear`, `bicubic`, ...

    Raises:
        UserError: a field out of its range.
    """

    size: int = 224
    resize: int | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _channels("mean", self.mean))
        object.__setattr__(self, "std", _channels("std", self.std))
        if self.interpolation not in (modes := [m.value for m in InterpolationMode]):
            raise unknown("interpolation", self.interpolation, modes)
        for name in ("size", "resize"):
            if not isinstance(getattr(self, name), int | None) or isinstance(getattr(self, name), bool):
                raise UserError(f"input {name} {getattr(self, name)!r}: give a whole number of pixels")
        if self.size < 1 or (self.resize or self.size) < self.size:
            raise UserError(f"input size {self.size} with resize {self.resize}: size is at least 1 and resize at least size")
        if min(self.std) <= 0:
            raise UserError(f"input std {self.std}: every value must be above 0")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's tensor."""
        return 3, self.size, self.size

    noun = "images"  # what a data set has of it

    @property
    def pixels(self) -> int:
        """What an image counts as where it is decided how many run together."""
        return self.size**2

    @property
    def inputs(self) -> str:
        """What it is, in a few words."""
        return f"images of {self.size} px"

    @property
    def told(self) -> str:
        """The input in words, for the plan."""
        return f"{self.size}x{self.size}, mean {_numbers(self.mean)}, std {_numbers(self.std)}, {self.interpolation}"

    def views(self, augment: str = "none") -> tuple[Transform, Transform]:
        """The transforms of training, see `train_transform`, and of evaluation."""
        return train_transform(self, augment), eval_transform(self)


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in dict.fromkeys(values))


def _channels(what: str, values: object) -> tuple[float, float, float]:
    """One number serves all three channels; a list holds three."""
    numbers = [float(v) for v in values] if hasattr(values, "__iter__") else [float(values)] * 3  # type: ignore[arg-type]
    if len(numbers) != 3:
        raise UserError(f"input {what} {numbers}: give one number or three (red, green, blue)")
    return numbers[0], numbers[1], numbers[2]


def eval_transform(spec: InputSpec) -> Transform:
    """PIL image (RGB) -> float32 (3, size, size): resize the shorter side, centre crop, normalise. Deterministic."""
    resize = v2.Resize(spec.resize or spec.size, interpolation=_mode(spec), antialias=True)
    return v2.Compose([resize, v2.CenterCrop(spec.size), *_to_normalised(spec)])  # type: ignore[no-any-return]


def dense_transform(spec: InputSpec, size: int) -> Transform:
    """PIL image (RGB) -> float32 (3, H, W), all of it: the shorter side brought to `size` pixels, normalised."""
    return v2.Compose([v2.Resize(size, interpolation=_mode(spec), antialias=True), *_to_normalised(spec)])  # type: ignore[no-any-return]


def train_transform(spec: InputSpec, augment: str = "photo", *, min_scale: float = 0.35) -> Transform:
    """PIL image (RGB) -> float32 (3, size, size), augmented with torch's global random state.

    Args:
        spec: what the weights expect.
        augment: `none` (the evaluation view), `photo` (random resized crop and horizontal flip), `trivial_augment`
            (photo, then TrivialAugment Wide, Mueller and Hutter 2021) or `rand_augment` (photo, then RandAugment, Cubuk et al. 2020).
        min_scale: the smallest part of the image's area that a random crop keeps, in (0, 1]. The default is fastai's 0.35
            rather than torchvision's 0.08: pretrained features need less variety, and a crop of 8 % often misses the subject.

    Raises:
        UserError: an unknown `augment`.
    """
    if augment not in AUGMENTS:
        raise unknown("augment", augment, AUGMENTS)
    if augment == "none":
        return eval_transform(spec)
    crop = v2.RandomResizedCrop(spec.size, scale=(min_scale, 1.0), interpolation=_mode(spec), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *AUGMENTS[augment](_mode(spec)), *_to_normalised(spec)])  # type: ignore[no-any-return]


AUGMENTS: dict[str, Callable[[InterpolationMode], list[torch.nn.Module]]] = {
    "none": lambda mode: [],
    "photo": lambda mode: [],
    # these two warp with nearest or bilinear only
    "trivial_augment": lambda mode: [v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)],
    "rand_augment": lambda mode: [v2.RandAugment(interpolation=InterpolationMode.BILINEAR)],
}


def _mode(spec: InputSpec) -> InterpolationMode:
    return InterpolationMode(spec.interpolation)


def _to_normalised(spec: InputSpec) -> list[torch.nn.Module]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor(), v2.Normalize(spec.mean, spec.std)]
