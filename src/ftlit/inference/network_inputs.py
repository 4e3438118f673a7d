"""The inputs of a network: tensors of images or texts, from whatever a user gives."""

from collections.abc import Mapping
from functools import cache
from io import IOBase
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ftlit.data.images import as_rgb, image_reader
from ftlit.data.input_spec import InputSpec
from ftlit.data.pixels import SplitView
from ftlit.data.tokens import TextSpec
from ftlit.data.transforms import check_rgb_tensor
from ftlit.errors import UserError

ImageOrText = str | Path | Image.Image | Tensor
CONVERSIONS: dict[Any, str] = {  # types of images that are not taken -> how to make one that is
    bytes | bytearray | memoryview: "PIL.Image.open(io.BytesIO(data)) of the bytes of an image file",
    IOBase: "PIL.Image.open(file)",
    np.ndarray: "PIL.Image.fromarray(array) of each array (H, W, 3) of uint8",
}
NOT_SEVERAL = (bytes, bytearray, memoryview, IOBase, Mapping)  # of which each can be iterated, but not over examples


def tensor_of(example: ImageOrText, spec: InputSpec | TextSpec) -> Tensor:
    """The tensor of one image (3, S, S), as in evaluation, or text (T,). Raises `UserError` for an unsuitable input."""
    return spec.views()[1](_readable(example, spec))


def pixels_of(example: ImageOrText, spec: InputSpec | TextSpec) -> Tensor:
    """As `tensor_of`, but an image of 8 bits is not normalised: `normalized` does that, faster, on the network's device."""
    view = _split_view(spec)
    if view is None:
        return tensor_of(example, spec)
    (pixels,) = view.normalization.of_one_type([view.pixels(_readable(example, spec))])
    return pixels


def normalized(inputs: Tensor, spec: InputSpec | TextSpec) -> Tensor:
    """A batch from `pixels_of` or `tensor_of` as the network takes it."""
    view = _split_view(spec) if inputs.ndim == 4 else None
    return view.normalization.of_pixels(inputs) if view else inputs


@cache  # its constants are copied to a device once, not for each batch
def _split_view(spec: InputSpec | TextSpec) -> SplitView | None:
    """The evaluation view in two parts; `None` for texts."""
    return SplitView.of(spec.views()[1])


def cannot_take(given: object, spec: InputSpec | TextSpec, within: object = None) -> UserError:
    """The error for an input of another type; `within` is what held it, if anything did."""
    kinds = "strings" if isinstance(spec, TextSpec) else "paths, PIL images or RGB tensors (3, H, W)"
    place = "" if within is None else f" in a {type(within).__name__}"
    ways = () if isinstance(spec, TextSpec) else (way for kind, way in CONVERSIONS.items() if isinstance(given, kind))
    text = f"the network of this run takes {spec.noun} ({kinds}), either one or a list, not {type(given).__name__}{place}"
    return UserError("; ".join([text, *(f"give {way}" for way in ways)]))


def _readable(example: ImageOrText, spec: InputSpec | TextSpec) -> Any:
    """What a view takes: an RGB image, or a text."""
    if isinstance(spec, TextSpec):
        if not isinstance(example, str):
            raise cannot_take(example, spec)
        return example
    if isinstance(example, str | Path):
        return image_reader(spec)(example)
    if isinstance(example, Image.Image):
        return as_rgb(example, spec)
    if not isinstance(example, Tensor):
        raise cannot_take(example, spec)
    check_rgb_tensor(example)
    return example
