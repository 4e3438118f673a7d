"""Stored pixels: images as they are before the first layer, decoded and resized, as rows of 8-bit integers.

An evaluation view is stored as it is, and read to the bit. Of a view that crops at random the whole image is stored, brought to a square
whatever its shape, with its width and height: a crop then has the box and the flip that the view would draw in the image itself, and only
its resampling differs. Mean, standard deviation and weights do not count, so all networks of one geometry share the rows.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ftlit.data.dataset import Examples
from ftlit.data.file_paths import are_files
from ftlit.data.pixels import SplitView
from ftlit.data.transforms import Transform
from ftlit.errors import UserError
from ftlit.features.spec import FeatureSpec, ImageHashes
from ftlit.features.table import FeatureKey, FeatureTable, Rows, Writer
from ftlit.identity.code_identity import versioned
from ftlit.identity.fingerprint import fingerprint, software

FORMAT = 1  # raised when stored pixels can no longer be used although no component of their key changed
PIXELS = FeatureSpec("pixels", None)  # the cut below the first layer
SIDE_STEP = 32  # the side of a stored square is a multiple of this
SIZE_BYTES = 8  # width and height at the end of a row, int32
CROP_MODES = {InterpolationMode.NEAREST: "nearest-exact", InterpolationMode.BICUBIC: "bicubic"}  # else bilinear


@versioned("whole_image", 1)
@dataclass(frozen=True)
class WholeImage:
    """Image -> its pixels resized to (side, side, 3), flat, and its width and height.

    Raises:
        UserError: an image that has not three channels of 8 bits.
    """

    side: int
    interpolation: InterpolationMode

    def __call__(self, image: Any) -> Tensor:
        """Store one image."""
        height, width = F.get_size(image)
        pixels = F.to_image(F.resize(image, [self.side, self.side], interpolation=self.interpolation, antialias=True))
        if pixels.dtype != torch.uint8 or len(pixels) != 3:
            kind = f"{len(pixels)} channels of {str(pixels.dtype).removeprefix('torch.')}"
            raise UserError(f"cache.pixels stores only RGB images of 8 bits per channel, not {kind}: give cache.pixels=false")
        return torch.cat([pixels.permute(1, 2, 0).reshape(-1), torch.tensor([width, height], dtype=torch.int32).view(torch.uint8)])


@dataclass(frozen=True)
class StoredCrop:
    """Row of a `WholeImage` -> the crop (3, S, S) that a view would make of the image, with the same random numbers.

    torch resamples integers about three times as fast as `roi_align` floats; it takes whole boxes, so the box is rounded to the stored
    pixels. The pixels differ by 2.4 of 255 on average from those of the view, and the features of a network about as little as if the
    view resampled with bicubic in place of bilinear interpolation.

    Args:
        crop: of the view.
        flip: of the view.
        side: of the stored square.
    """

    crop: v2.RandomResizedCrop
    flip: v2.RandomHorizontalFlip
    side: int

    def __call__(self, row: Tensor) -> Tensor:
        """Draw box and flip from torch's global random state, as the view does, and crop."""
        width, height = row[-SIZE_BYTES:].view(torch.int32).tolist()
        box = self.crop.make_params([torch.empty((3, height, width), device="meta")])
        flipped = bool(torch.rand(1) < self.flip.p)
        top, bottom = _span(box["top"], box["height"], self.side / height)
        left, right = _span(box["left"], box["width"], self.side / width)
        pixels_HWC = row[:-SIZE_BYTES].view(self.side, self.side, 3)[top:bottom, left:right]
        mode = CROP_MODES.get(self.crop.interpolation, "bilinear")
        antialias = mode in ("bilinear", "bicubic")
        cropped: Tensor = interpolate(pixels_HWC.permute(2, 0, 1)[None], self.crop.size, mode=mode, antialias=antialias)[0]
        return cropped.flip(-1) if flipped else cropped


def _span(begin: int, length: int, scale: float) -> tuple[int, int]:
    """Begin and end of a box along one side in stored pixels, at least one of them."""
    first = math.floor(begin * scale + 0.5)
    return first, max(first + 1, math.floor((begin + length) * scale + 0.5))


def _as_stored(row: Tensor) -> Tensor:
    return row


@dataclass(frozen=True)
class StoredPixels:
    """How the pixels of a view are stored and read.

    Args:
        write: image -> row.
        shape: of a row.
        view: row -> image of 8 bits (3, S, S), and its normalisation.
        summary: description for the plan.
    """

    write: Transform
    shape: tuple[int, ...]
    view: SplitView
    summary: str

    @classmethod
    def of(cls, view: Any) -> "StoredPixels | None":
        """Of the evaluation view, or of one that crops and flips, of RGB images; `None` for another view."""
        split = SplitView.of(view)
        if split and len(split.normalization.mean) != 3:  # bands may have more than 8 bits
            return None
        steps = split.pixels.transforms[:-2] if split else []  # type: ignore[attr-defined]
        kinds = [*map(type, steps)]
        if split and kinds == [v2.Resize, v2.CenterCrop]:
            return cls(split.pixels, (3, *steps[1].size), SplitView(_as_stored, split.normalization), "stored pixels")
        if not split or kinds != [v2.RandomResizedCrop, v2.RandomHorizontalFlip]:
            return None
        crop, flip = steps
        side = SIDE_STEP * math.ceil(max(crop.size) / math.sqrt(crop.scale[0]) / SIDE_STEP)  # then no crop is enlarged
        is_nearest = crop.interpolation == InterpolationMode.NEAREST
        write = WholeImage(side, crop.interpolation if is_nearest else InterpolationMode.BICUBIC)  # bilinear would blur twice
        read = SplitView(StoredCrop(crop, flip, side), split.normalization)
        return cls(write, (3 * side**2 + SIZE_BYTES,), read, f"crops of stored pixels, {side} px")

    @property
    def row_bytes(self) -> int:
        """Size of a row in bytes."""
        return math.prod(self.shape)

    def key(self, load: Callable[[Any], Any]) -> FeatureKey:
        """What identifies the rows of images that `load` reads."""
        view = "evaluation" if len(self.shape) == 3 else "whole images"
        about = {"cut": PIXELS.cut, "pooling": None, "shape": list(self.shape), "dtype": "uint8", "view": view, "weights": "any"}
        digest = fingerprint("pixels", FORMAT, self.write, load, self.shape, software())
        return FeatureKey(digest, torch.uint8, self.shape, {**about, "software": software()})


@dataclass(frozen=True)
class StoredImages:
    """Stored pixels in place of the images of a split.

    Args:
        examples: as those of the split, but loaded from rows.
        transform: row -> tensor.
    """

    examples: Examples
    transform: Transform

    @classmethod
    def of(cls, examples: Examples, rows: Rows, stored: StoredPixels) -> "StoredImages":
        """The images of `examples`, whose rows are in the same order."""
        return cls(replace(examples, sources=range(len(examples)), load=rows.view), stored.view)


def write_pixels(table: FeatureTable, batches: Iterable[tuple[ImageHashes, Tensor]]) -> None:
    """Write the rows of images that the table lacks."""
    writer = Writer(table)
    for hashes, rows in batches:
        if rows.dtype != torch.uint8 or tuple(rows.shape[1:]) != tuple(table.shape):
            raise UserError("cache.pixels stores only RGB images of 8 bits per channel: give cache.pixels=false")
        writer.add(hashes, rows)
    writer.flush()


def reads_files(examples: Examples) -> bool:
    """Whether each image is in a file, which is decoded each time that it is read."""
    contents = examples.contents
    return are_files(contents) or (contents is not None and not any(hasattr(content, "dtype") for content in contents))
