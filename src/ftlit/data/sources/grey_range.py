"""Measure the grey values of a data set whose files hold more than 8 bits: one range for all images, so that they stay comparable."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ftlit.data.images import GreyRange

MAX_MEASURED = 500  # images, evenly spaced in the list; more would hardly widen the range
OUTLIERS = 0.001  # share of the values of an image, at either end, that are left out: dead pixels and burned-in marks
# ranges of the usual formats: where the values fill enough of one, further images do not change the range
USUAL: tuple[GreyRange, ...] = ((0, 1), (-1, 1), (0, 255), (0, 1023), (0, 4095), (0, 16383), (0, 65535))
LEAST_FILLED = 0.25


class GreyValues(NamedTuple):
    """The grey values of files.

    Args:
        read_as: the values that are read as black and as white.
        found: the lowest and the highest finite value.
        measured: number of the files that were decoded.
        not_finite: number of these with NaN or infinite values.
    """

    read_as: GreyRange
    found: GreyRange
    measured: int
    not_finite: int


def measure_grey_range(paths: Sequence[Path]) -> GreyValues | None:
    """Measure the grey values of files.

    Returns:
        `None` if there is no finite value. The range in which to read the files is the narrowest of `USUAL` that contains the values, if
        they fill a quarter of it, otherwise that of the values. Values a little below 0 are clipped to 0.
    """
    step = -(-len(paths) // MAX_MEASURED) or 1
    with ThreadPoolExecutor(4) as pool:  # decoders release Python's lock
        read = [found for found in pool.map(_ends, paths[::step]) if found is not None]
    ends = [found for found, _ in read if found is not None]
    if not ends:
        return None
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    counts = len(read), sum(hole for _, hole in read)
    if -LEAST_FILLED * high < low < 0:  # overshoot of a filter: clipped
        low = 0.0
    for black, white in USUAL:
        if black <= low and high <= white:
            fits = high - low >= LEAST_FILLED * (white - black)
            return GreyValues((black, white) if fits else _own(low, high), (low, high), *counts)
    return GreyValues(_own(low, high), (low, high), *counts)


def _own(low: float, high: float) -> GreyRange:
    return low, high if high > low else low + 1


def _ends(path: Path) -> tuple[GreyRange | None, bool] | None:
    """The lowest and the highest finite value of an image, without outliers, and whether others are not finite; `None` for a file that
    cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            values = np.asarray(image, dtype=np.float64).ravel()
    except Exception:  # decoders raise anything
        return None
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None, True
    low, high = np.quantile(finite, (OUTLIERS, 1 - OUTLIERS), method="nearest")
    return (float(low), float(high)), finite.size < values.size
