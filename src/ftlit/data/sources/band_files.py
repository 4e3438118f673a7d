"""Files of several bands: their headers, and mean and standard deviation of each band on the training images."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ftlit.data.bands import describe_bands, read_bands, shape_and_dtype
from ftlit.data.sources.image_headers import ImageHeader
from ftlit.errors import UserError, one_line
from ftlit.formatting import shown

MAX_MEASURED = 500  # images, evenly spaced in the list
DIGITS = 6  # of a mean or std: what the plan prints is what is used


def band_headers(paths: Sequence[Path], *, channels: int, decode: bool = False) -> list[ImageHeader]:
    """The header of each file, as `image_headers.read_headers` gives it, without its mode.

    Args:
        paths: of the files.
        channels: number of bands that each of them must have.
        decode: whether to decode all of each file, and take another number of bands as the fault of this file.

    Raises:
        UserError: another number of bands without `decode`; files of 8 bits beside others, which no common mean would fit; TIFF files
            without the package tifffile.
    """
    headers, first_of = [], dict[bool, Path]()
    for path in paths:
        try:
            shape, dtype = shape_and_dtype(path)
        except UserError:  # tifffile is missing
            raise
        except Exception as error:  # decoders raise anything
            headers.append(ImageHeader(one_line(error)))
            continue
        fault = None
        if not _has(shape, channels):
            if not decode:
                raise _other_bands(path, shape, channels)
            fault = f"{describe_bands(shape)} in place of {channels}"
        elif decode:
            fault = _fault_of(path, channels)
        if fault is None:
            first_of.setdefault(dtype == "uint8", path)
        headers.append(ImageHeader(fault))
    if len(first_of) > 1:
        raise UserError(
            f"{shown(first_of[True])} has uint8 values, which are divided by 255, but {shown(first_of[False])} has values of another type, "
            "which are not: save all files with the same type of values"
        )
    return headers


def _has(shape: tuple[int, ...], channels: int) -> bool:
    shape = (*shape, 1) if len(shape) == 2 else shape
    return len(shape) == 3 and channels in (shape[0], shape[2])


def _other_bands(path: Path, shape: tuple[int, ...], channels: int) -> UserError:
    found = describe_bands(shape)
    number = found.partition(" ")[0]
    give = f"give backbone.in_chans={number}, or " if number.isdigit() else "give "
    return UserError(f"{shown(path)} has {found}, but backbone.in_chans={channels}: {give}files of {channels} bands")


def _fault_of(path: Path, channels: int) -> str | None:
    try:
        read_bands(path, channels)
    except UserError:
        return "damaged"
    return None


class BandValues(NamedTuple):
    """The values of bands.

    Args:
        mean: of each band.
        std: of each band; 1 for one with a single value.
        images: number of images that were measured.
        constant: the bands with a single value, counted from 1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int
    constant: list[int]


def measure_bands(paths: Sequence[Path], channels: int) -> BandValues:
    """Measure mean and standard deviation of each band over the pixels of at most `MAX_MEASURED` files, without those that are not finite.

    Values of 8 bits are divided by 255, as they are in training; others are taken as they are.

    Raises:
        UserError: no file can be read.
    """
    step = -(-len(paths) // MAX_MEASURED) or 1
    with ThreadPoolExecutor(4) as pool:  # decoders release Python's lock
        sums = [found for found in pool.map(lambda path: _sums(path, channels), paths[::step]) if found is not None]
    if not sums:
        raise UserError(f"none of the training images can be read, such as {shown(paths[0])}: replace the damaged files")
    counts, totals, squares = (np.sum(parts, axis=0) for parts in zip(*sums, strict=True))
    counts = counts.clip(1)
    mean = totals / counts
    std = np.sqrt((squares / counts - mean**2).clip(0))
    constant = std <= 1e-7 * np.abs(mean)  # rounding of the sums leaves a little
    std = np.where(constant, 1.0, std)
    return BandValues(_rounded(mean), _rounded(std), len(sums), [int(band) + 1 for band in np.flatnonzero(constant)])


def _sums(path: Path, channels: int) -> tuple[Any, Any, Any] | None:
    """Number, sum and sum of squares of the values of each band; `None` for a file that cannot be read."""
    try:
        bands = read_bands(path, channels, (np.nan,) * channels).numpy()
    except UserError:
        return None
    values = bands.reshape(channels, -1).astype(np.float64) / (255 if bands.dtype == np.uint8 else 1)
    return np.isfinite(values).sum(axis=1), np.nansum(values, axis=1), np.nansum(values**2, axis=1)


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values)
