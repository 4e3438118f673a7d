"""Transforms from a PIL image, or a tensor of bands, to the tensor that a network takes, for training and for evaluation.

They consist of torchvision's classes. The classes and their arguments identify a transform, so that it needs no version
(`ftlit.identity.code_identity`).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode

from ftlit.errors import UserError, invalid

if TYPE_CHECKING:  # an InputSpec makes its own transforms
    from ftlit.data.input_spec import InputSpec

Transform = Callable[[Any], Tensor]  # of a PIL image (RGB), of a tensor of bands (C, H, W), or of a text
COLOUR_AUGMENTS = ("trivial_augment", "rand_augment")  # they change colours, which bands do not have


def eval_transform(spec: "InputSpec") -> Transform:
    """PIL image (RGB) or bands (C, H, W) -> float32 (C, size, size): resize the shorter side, centre crop, normalise. Deterministic."""
    resize = v2.Resize(spec.resize or spec.size, interpolation=_mode(spec), antialias=True)
    return v2.Compose([resize, v2.CenterCrop(spec.size), *_to_normalised(spec)])  # type: ignore[no-any-return]


def dense_transform(spec: "InputSpec", size: int) -> Transform:
    """PIL image (RGB) or bands (C, H, W) -> float32 (C, H, W): resize the shorter side to `size` pixels, normalise; no crop."""
    return v2.Compose([v2.Resize(size, interpolation=_mode(spec), antialias=True), *_to_normalised(spec)])  # type: ignore[no-any-return]


def train_transform(spec: "InputSpec", augment: str = "photo", *, min_scale: float = 0.35) -> Transform:
    """PIL image (RGB) or bands (C, H, W) -> float32 (C, size, size), augmented with torch's global random state.

    Args:
        spec: the input that the weights expect.
        augment: `none` (the evaluation view), `photo` (random resized crop and horizontal flip), `trivial_augment`
            (photo, then TrivialAugment Wide, Mueller and Hutter 2021) or `rand_augment` (photo, then RandAugment, Cubuk et al. 2020).
        min_scale: the smallest part of the image's area that a random crop keeps, in (0, 1]. The default is fastai's 0.35
            rather than torchvision's 0.08: pretrained features need less variety, and a crop of 8 % often misses the subject.

    Raises:
        UserError: an unknown `augment`, or one that changes colours, for bands.
    """
    if augment not in AUGMENTS:
        raise invalid("data.augment", augment, AUGMENTS)
    if spec.takes_bands and augment in COLOUR_AUGMENTS:
        raise UserError(
            f"data.augment={augment} changes colours, which needs images of 1 or 3 channels, but backbone.in_chans={spec.channels}: "
            "give data.augment=photo (crops and flips), or none"
        )
    if augment == "none":
        return eval_transform(spec)
    crop = v2.RandomResizedCrop(spec.size, scale=(min_scale, 1.0), interpolation=_mode(spec), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *AUGMENTS[augment](_mode(spec)), *_to_normalised(spec)])  # type: ignore[no-any-return]


AUGMENTS: dict[str, Callable[[InterpolationMode], list[torch.nn.Module]]] = {
    "none": lambda mode: [],
    "photo": lambda mode: [],
    # these two support nearest and bilinear only
    "trivial_augment": lambda mode: [v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)],
    "rand_augment": lambda mode: [v2.RandAugment(interpolation=InterpolationMode.BILINEAR)],
}


def _mode(spec: "InputSpec") -> InterpolationMode:
    return InterpolationMode(spec.interpolation)


def _to_normalised(spec: "InputSpec") -> list[torch.nn.Module]:
    grey = [v2.Grayscale()] if spec.channels == 1 else []
    return [*grey, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor(), v2.Normalize(spec.mean, spec.std)]


def check_image_tensor(image: Tensor, spec: "InputSpec") -> None:
    """Raise `UserError` unless `image` is a tensor (C, H, W) with the channels of the spec, uint8 or float: in [0, 1], of bands finite."""
    if image.ndim != 3 or len(image) != spec.channels:
        kind = {1: "a grey image", 3: "an RGB image"}.get(spec.channels, "an image")
        raise UserError(f"this image tensor has the shape {tuple(image.shape)}: give {kind} of shape ({spec.channels}, H, W)")
    if not image.numel():
        raise UserError(f"this image tensor has the shape {tuple(image.shape)}: give an image of at least 1 x 1 pixels")
    if image.dtype == torch.uint8:
        return
    if spec.takes_bands:
        if not image.is_floating_point():
            raise UserError(f"this tensor of bands has the type {image.dtype}: give finite floats, or uint8")
        if not image.isfinite().all():
            raise UserError("this tensor of bands has NaN or infinite values: replace them by finite values")
        return
    if not image.is_floating_point():
        raise UserError(f"this image tensor has the type {image.dtype}: give floats from 0 to 1, or uint8")
    least, most = image.min().item(), image.max().item()
    if not (least >= 0 and most <= 1):  # true for NaN too
        raise UserError(
            f"this image tensor has values from {least:.4g} to {most:.4g}: give floats from 0 to 1 or uint8, not a normalised image, "
            "because the network normalises"
        )
