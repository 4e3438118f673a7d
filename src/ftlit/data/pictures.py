"""Pictures, in red, green and blue, of the images that a network takes."""

import torch
from torch import Tensor

from ftlit.data.input_spec import InputSpec

SHOWN_DEVIATIONS = 2  # black is the mean of a band minus this number of its standard deviations, white the mean plus it


def picture_of(images: Tensor, spec: InputSpec) -> Tensor:
    """Normalised images (..., C, H, W) -> pictures (..., 3, H, W) in [0, 1]: of bands the first three, or the first of two in grey."""
    if spec.takes_bands:
        shown = images[..., :3, :, :] if spec.channels > 3 else images[..., :1, :, :]
        shown = shown / (2 * SHOWN_DEVIATIONS) + 0.5
    else:
        mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
        shown = images * std + mean
    return shown.clamp(0, 1).expand(*shown.shape[:-3], 3, *shown.shape[-2:])


def describe_pictures(spec: InputSpec) -> str:
    """How bands are shown in pictures; empty for grey and RGB images."""
    if not spec.takes_bands:
        return ""
    which = f"the first three of {spec.channels} bands as red, green and blue" if spec.channels > 3 else "the first of 2 bands"
    return f"{which}, from mean - {SHOWN_DEVIATIONS} std to mean + {SHOWN_DEVIATIONS} std"
