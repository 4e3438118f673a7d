"""Read files of several bands (`.npy`, TIFF, and what Pillow opens) as tensors of their values.

8-bit values stay as they are, and become floats in [0, 1] with the normalisation, as those of photos do. All other values become float32
without any scaling: only mean and std of each band, which are measured on the training images, bring them to one scale.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ftlit.data.bad_image import BadImage, check_regular, unreadable
from ftlit.errors import UserError
from ftlit.formatting import count, shown
from ftlit.identity.code_identity import versioned

Array = np.ndarray[Any, Any]
ARRAY_SUFFIX = ".npy"
TIFF_SUFFIXES = (".tif", ".tiff")
UNIT_RATIO = 100  # between values of 8 bits, which are read as 0 to 1, and others
EMPTY = 1e-2  # largest value, after rounding, of an image without data


@versioned("to_bands", 1)
def to_bands(array: Array, channels: int, fill: tuple[float, ...] = (), *, name: str = "this image") -> Tensor:
    """Convert the values of an image to a tensor (channels, H, W): uint8 if they have 8 bits, else float32 of the same values.

    Args:
        array: (H, W, channels) or (channels, H, W); the former where both fit. (H, W) is one band.
        channels: number of bands.
        fill: replaces values of a band that are not finite, which mark pixels without data; empty: by 0.
        name: of the image, for errors.

    Raises:
        BadImage: another number of bands, or values that are no numbers.
    """
    bands = _channels_first(array, channels, name)
    if bands.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(bands))
    if bands.dtype.kind not in "uifb":
        raise BadImage(f"{name} has {array.dtype} values, but the values of a band must be real numbers: convert the image to float32")
    floats = np.ascontiguousarray(bands, dtype=np.float32)
    holes = ~np.isfinite(floats)
    if holes.all():
        raise BadImage(f"{name} has only NaN or infinite values: replace or remove this image")
    if holes.any():
        filled = np.array(fill or [0.0] * channels, np.float32)[:, None, None]
        floats = np.where(holes, filled, floats)
    return torch.from_numpy(floats)


def _channels_first(array: Array, channels: int, name: str) -> Array:
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim == 3 and array.size and array.shape[2] == channels:
        return np.moveaxis(array, 2, 0)
    if array.ndim == 3 and array.size and array.shape[0] == channels:
        return array
    raise BadImage(f"{name} has {describe_bands(array.shape)}, but backbone.in_chans={channels}: give images of {count(channels, 'band')}")


def describe_bands(shape: tuple[int, ...]) -> str:
    """The number of bands of an image that has this shape, as text.

    >>> describe_bands((64, 64, 3)), describe_bands((6, 64, 64)), describe_bands((64, 64))
    ('3 bands', '6 bands', '1 band')
    """
    if len(shape) not in (2, 3) or not all(shape):
        return f"the shape {'x'.join(map(str, shape))}"
    if len(shape) == 2:
        return "1 band"
    bands = shape[2] if shape[0] == shape[1] else shape[0] if shape[1] == shape[2] else min(shape[0], shape[2])
    return f"{bands} band{'s' if bands > 1 else ''}"


@versioned("read_bands", 1, uses=(to_bands,))
def read_bands(path: str | Path, channels: int, fill: tuple[float, ...] = ()) -> Tensor:
    """Read a file of several bands as a tensor (channels, H, W); see `to_bands`.

    Raises:
        BadImage: the file is missing, damaged, not an image, or has another number of bands; TIFF without the package tifffile.
    """
    check_regular(path)
    try:
        return to_bands(_values(Path(path)), channels, fill, name=shown(path))
    except BadImage:
        raise
    except FileNotFoundError as error:
        raise BadImage(f"there is no file {shown(path)}") from error
    except UserError as error:
        raise BadImage(str(error)) from error
    except Exception as error:  # decoders raise anything
        raise unreadable(path, error) from error


def shape_and_dtype(path: Path) -> tuple[tuple[int, ...], str]:
    """Shape of the values of a file and the name of their type, from its header. Raises what the decoder raises."""
    suffix = path.suffix.lower()
    if suffix == ARRAY_SUFFIX:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return array.shape, str(array.dtype)
    if suffix in TIFF_SUFFIXES:
        with tifffile_of(path).TiffFile(path) as file:
            return tuple(file.series[0].shape), str(file.series[0].dtype)
    with Image.open(path) as image:
        return (image.height, image.width, len(image.getbands())), str(np.asarray(image.resize((1, 1))).dtype)


def _values(path: Path) -> Array:
    suffix = path.suffix.lower()
    if suffix == ARRAY_SUFFIX:
        array: Array = np.load(path, allow_pickle=False)
        return array
    if suffix in TIFF_SUFFIXES:
        array = tifffile_of(path).imread(path)
        return array
    with Image.open(path) as image:
        return bands_of(image)


def bands_of(image: Image.Image) -> Array:
    """The values of a PIL image of any mode (H, W, bands), upright. Bands keep their meaning: no colours are converted."""
    return np.asarray(ImageOps.exif_transpose(image))


def other_units(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> str:
    """Why the values of normalised images cannot be in the units of the training images; empty where nothing shows it.

    Values of 8 bits are read as 0 to 1, all others as they are in the file. So images of 8 bits, for a network that was trained on 16 bits,
    or the reverse, are wrong by orders of magnitude, without an error.

    Args:
        images: (N, C, H, W), normalised with `mean` and `std`.
        mean: of each band, over the training images.
        std: of each band.
    """
    scale, offset = (torch.tensor(values, device=images.device)[:, None, None] for values in (std, mean))
    most, trained = (images.float() * scale + offset).amax(dim=(1, 2, 3)), max(mean)
    if trained >= UNIT_RATIO and bool(((most > EMPTY) & (most < 1 + EMPTY)).any()):
        given = "from 0 to 1, as images of 8 bits have after loading"
        return f"images have values {given}, but the network was trained on bands with a mean of up to {trained:,.4g}"
    if trained <= 1 and bool((most >= UNIT_RATIO).any()):
        return f"images have values of {UNIT_RATIO} or more, but the network was trained on bands with a mean of up to {trained:.4g}"
    return ""


def tifffile_of(path: Path) -> Any:
    """The package that reads TIFF files of any number of bands and any type. Raises `UserError` where it is not installed."""
    try:
        import tifffile
    except ImportError as error:
        raise UserError(f'reading the bands of {shown(path)} needs the package tifffile: pip install "ftlit[bands]"') from error
    return tifffile
