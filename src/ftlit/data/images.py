"""Read image files of any format and mode as upright RGB, or, for networks of other than 1 or 3 channels, as their bands."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from ftlit.data.bad_image import BadImage as BadImage
from ftlit.data.bad_image import check_regular, unreadable
from ftlit.data.bands import bands_of, read_bands, to_bands
from ftlit.data.input_spec import InputSpec
from ftlit.formatting import shown
from ftlit.identity.code_identity import versioned

GreyRange = tuple[float, float]  # the values of black and of white
PHOTO_SIDE = 64  # pixels of the shorter side of a photo, at least
PHOTO_COLOUR = 10  # mean difference of the largest and the smallest channel of a photo, at least, of 255


@versioned("to_rgb", 1)
def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any PIL image to upright RGB: apply the EXIF orientation, blend transparency with white, scale 16 bits to 8."""
    ImageOps.exif_transpose(image, in_place=True)
    if has_wide_greys(image.mode):
        image = _grey_8_bits(image)
    if image.getbands()[-1] in ("A", "a") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _grey_8_bits(image: Image.Image) -> Image.Image:
    """Scale greys to 8 bits: integers from 16 bits, floats from the narrowest of [0, 1], [0, 255] and [0, 65535] that contains them; where
    none does, the largest value becomes white.
    """
    values = np.nan_to_num(_finite_somewhere(image)).clip(0)
    tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    white = next((top for top in tops if values.max() <= top), values.max())
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def _finite_somewhere(image: Image.Image) -> np.ndarray[Any, Any]:
    """Return the values of an image as float64; NaN may mark pixels without data. Raises `BadImage` if no value is finite."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).any():
        raise BadImage("this image has only NaN or infinite pixels")
    return values


@versioned("to_rgb_in_range", 1, uses=(to_rgb,))
def to_rgb_in_range(image: Image.Image, grey_range: GreyRange) -> Image.Image:
    """Convert as `to_rgb` does, but scale greys of more than 8 bits and floats by one range for all images, and clip them to it."""
    ImageOps.exif_transpose(image, in_place=True)
    if has_wide_greys(image.mode):
        black, white = grey_range
        values = np.nan_to_num(_finite_somewhere(image), nan=black).clip(black, white)
        image = Image.fromarray(((values - black) * (255 / (white - black))).round().astype(np.uint8))
    return to_rgb(image)


def has_wide_greys(mode: str) -> bool:
    """Whether an image of this mode holds one integer of more than 8 bits, or one float, per pixel."""
    return mode.startswith(("I", "F"))


@versioned("read_image", 1, uses=(to_rgb,))
def read_image(path: str | Path, at_least: int | None = None) -> Image.Image:
    """Read an image file as an upright PIL image (RGB).

    Args:
        path: a file of any format and mode that PIL decodes; see `to_rgb`.
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides keep this many pixels. A photo of
            12 megapixels is then read in a quarter of the time.

    Raises:
        BadImage: the file is missing, truncated or not an image.
    """
    return _read(path, at_least, to_rgb)


@versioned("read_image_in_range", 1, uses=(to_rgb_in_range,))
def read_image_in_range(path: str | Path, at_least: int | None, grey_range: GreyRange) -> Image.Image:
    """Read as `read_image` does, with one range of grey values for all images; see `to_rgb_in_range`."""
    return _read(path, at_least, partial(to_rgb_in_range, grey_range=grey_range))


def _read(path: str | Path, at_least: int | None, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    check_regular(path)
    try:
        with Image.open(path) as image:
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            return convert(image)
    except FileNotFoundError as error:
        raise BadImage(f"there is no file {shown(path)}") from error
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
        raise unreadable(path, error) from error


def image_reader(spec: InputSpec) -> Callable[[str | Path], Image.Image | Tensor]:
    """Return `read_image` for a network with this input, or `read_bands` if it takes bands. Training, evaluation and prediction all read
    with it and get the same pixels.

    A JPEG is decoded at no less than twice the size to which the shorter side is resized. The result then differs by 0.2 of 255 on
    average, and a random crop of a third of the area is never enlarged.
    """
    if spec.takes_bands:
        return partial(read_bands, channels=spec.channels, fill=spec.mean)
    at_least = 2 * (spec.resize or spec.size)
    if spec.grey_range is None:
        return partial(read_image, at_least=at_least)
    return partial(read_image_in_range, at_least=at_least, grey_range=spec.grey_range)


def as_read(image: Image.Image, spec: InputSpec) -> Image.Image | Tensor:
    """Convert a PIL image as `image_reader` converts an image file. Raises `BadImage` for another number of bands."""
    if spec.takes_bands:
        return to_bands(bands_of(image), spec.channels, spec.mean)
    return to_rgb(image) if spec.grey_range is None else to_rgb_in_range(image, spec.grey_range)


def looks_like_photo(path: Path) -> bool:
    """Whether an image file is large and colourful, as photos are, and drawings, scans and small images mostly are not; false where it
    cannot be read.
    """
    try:
        with Image.open(path) as image:
            large = min(image.size) >= PHOTO_SIDE
            image.draft("RGB", (PHOTO_SIDE, PHOTO_SIDE))  # decodes a JPEG faster
            values = np.asarray(image.convert("RGB").resize((32, 32)), dtype=np.int16)
    except Exception:  # PIL raises errors of many kinds; the image is reported where it is needed
        return False
    return large and float((values.max(axis=2) - values.min(axis=2)).mean()) >= PHOTO_COLOUR
