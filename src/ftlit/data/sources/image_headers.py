"""Headers of image files: whether PIL opens a file, and which part of its content is not read."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from PIL import Image, UnidentifiedImageError

from ftlit.data.images import has_wide_greys, read_image
from ftlit.errors import UserError, one_line, shorten
from ftlit.formatting import count, shown

# formats in which further frames are not separate images, but previews, depth maps or layers
ONE_IMAGE = ("MPO", "PSD")
SAMPLES_PER_PIXEL = 277  # tag of TIFF
DEEP_COLOUR = re.compile(r"^(RGB|LA|CMYK)[A-Za-z]*;16")  # PIL's raw modes of which it keeps the upper 8 bits


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header of an image file.

    Args:
        fault: why PIL does not open the file; empty for a file that is not an image, `None` if it opens.
        mode: of PIL.
        frames: pages or frames.
        bands: bands in the file, if there are more than in the mode; otherwise 0.
        alpha_band: whether the fourth band of a TIFF file is read as transparency.
        deep_colour: whether a colour has 16 bits.
    """

    fault: str | None = None
    mode: str = ""
    frames: int = 1
    bands: int = 0
    alpha_band: bool = False
    deep_colour: bool = False

    @property
    def wide_greys(self) -> bool:
        """Whether it holds greys of more than 8 bits, or floats."""
        return has_wide_greys(self.mode)


UNREAD: dict[str, Callable[[ImageHeader], bool]] = {
    "several pages or frames, of which only the first is read": lambda header: header.frames > 1,
    "more than three channels, of which only the first three are read": lambda header: header.bands > 3,
    "a fourth channel, which is read as transparency on a white background": lambda header: header.alpha_band,
    "16 bits per channel, of which only the upper 8 are read": lambda header: header.deep_colour,
}


def read_header(path: Path) -> ImageHeader:
    """Read the header of a file; nothing is decoded."""
    try:
        if not S_ISREG(path.stat().st_mode):  # reading from a pipe would wait
            return ImageHeader("not a regular file")
        with Image.open(path) as image:
            frames = 1 if image.format in ONE_IMAGE else getattr(image, "n_frames", 1)
            alpha_band = image.format == "TIFF" and image.mode == "RGBA"
            return ImageHeader(None, image.mode, frames, _more_bands(image), alpha_band, any(map(_is_deep, image.tile)))
    except UnidentifiedImageError:
        return ImageHeader("")
    except Exception as error:  # decoders raise anything
        return ImageHeader(one_line(error))


def read_one(path: Path, *, decode: bool = False) -> ImageHeader:
    """Read the header of a file; with `decode`, all of it. A JPEG is decoded at an eighth of its size: every byte is read, in a third of
    the time.
    """
    header = read_header(path)
    if decode and header.fault is None:
        try:
            read_image(path, at_least=1)
        except UserError:
            return ImageHeader("damaged")
    return header


def read_headers(paths: Sequence[Path], *, decode: bool = False) -> list[ImageHeader]:
    """The header of each file; see `read_one`."""
    return [read_one(path, decode=decode) for path in paths]


def header_notes(paths: Sequence[Path], headers: Sequence[ImageHeader]) -> list[str]:
    """A note for each kind of content that is not read, and one on a mixture of bit depths.

    Args:
        paths: of the files.
        headers: of each file.
    """
    notes = []
    for text, holds in UNREAD.items():
        if found := [place for place, header in enumerate(headers) if holds(header)]:
            notes.append(f"{count(len(found), 'file')} with {text}: {shorten((shown(paths[place]) for place in found), most=3)}")
    wide = sum(header.wide_greys for header in headers)
    if 0 < wide < len(headers):
        notes.append(
            f"{wide:,} of {len(headers):,} images have more than 8 bits per channel and the others have 8; each image is scaled by its own "
            "bit depth"
        )
    return notes


def _more_bands(image: Image.Image) -> int:
    """Return the number of bands of a TIFF file, if it has more than its mode; otherwise 0."""
    if image.format != "TIFF":
        return 0
    tags: Any = getattr(image, "tag_v2", {})
    bands = int(tags.get(SAMPLES_PER_PIXEL, 1))
    return bands if bands > len(image.getbands()) else 0


def _is_deep(tile: Any) -> bool:
    """Whether a part of a file is decoded from 16 bits per colour to 8."""
    arguments = tile[3]
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return isinstance(raw, str) and DEEP_COLOUR.match(raw) is not None
