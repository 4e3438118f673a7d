"""Decide whether the stages that train on images read stored pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from ftlit.errors import UserError
from ftlit.features.stage_input import StageInput
from ftlit.features.stored_pixels import StoredPixels
from ftlit.formatting import sizes_in_words

PixelChoice = bool | Literal["auto"]
PIXEL_CHOICES = ("auto", "true", "false")
MIN_READINGS = 2  # of each image; storing takes about as long as reading once


@dataclass(frozen=True)
class StorablePixels:
    """The images of a run, as they would be stored.

    Args:
        forms: split -> how its pixels are stored; train and val only, for test images are read once.
        images: split -> number of images.
        in_files: whether images are decoded from files; those in memory are read as fast as stored pixels.
    """

    forms: Mapping[str, StoredPixels]
    images: Mapping[str, int]
    in_files: bool

    @property
    def bytes(self) -> int:
        """Size of the pixels of all images on disk."""
        return sum(form.row_bytes * self.images[split] for split, form in self.forms.items())


def with_pixels(
    inputs: Sequence[StageInput], readings: Sequence[float], pixels: StorablePixels | None, choice: PixelChoice, max_bytes: float
) -> list[StageInput]:
    """Return the inputs of all stages; those that train on images read stored pixels where that is chosen.

    Args:
        inputs: of each stage, as the features decide.
        readings: how often each stage reads a training image.
        pixels: as they would be stored; `None`: these images cannot be stored.
        choice: `True` and `False` are orders; `auto` stores images in files that are read at least `MIN_READINGS` times, if they fit.
        max_bytes: of features and pixels together.

    Raises:
        UserError: pixels that are wanted do not fit.
    """
    stages = [i for i, stage_input in enumerate(inputs) if not stage_input.specs]
    if pixels is None or choice is False or not stages:
        return list(inputs)
    if choice == "auto" and (not pixels.in_files or sum(readings[i] for i in stages) < MIN_READINGS):
        return list(inputs)
    features = sum({stage_input.specs: stage_input.bytes for stage_input in inputs}.values())
    left, summary = max_bytes - features, pixels.forms["train"].summary
    if pixels.bytes <= left:
        return [
            replace(
                given,
                reason=f"{given.reason}; {summary} (cache.pixels=false decodes the images in each epoch)",
                bytes=pixels.bytes,
                pixels=True,
            )
            if not given.specs
            else given
            for given in inputs
        ]
    size, room = sizes_in_words(pixels.bytes, left)
    if choice is True:
        raise UserError(
            f"cache.pixels=true needs {size}, but cache.max_gb leaves room for only {room}: "
            f"give cache.max_gb={ceil((pixels.bytes + features) / 1e9)}, or cache.pixels=auto"
        )
    too_large = f"; {summary} would need {size}, but cache.max_gb leaves room for only {room}"
    return [replace(given, reason=given.reason + too_large) if not given.specs else given for given in inputs]
