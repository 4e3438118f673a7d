"""The inputs of a network: images or texts by the paths that name them, and their tensors, from whatever a user gives."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from io import IOBase
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ftlit.data.images import as_read, image_reader
from ftlit.data.input_spec import InputSpec
from ftlit.data.pixels import SplitView
from ftlit.data.sources.csv_files import read_csv
from ftlit.data.sources.folder_files import FolderImages
from ftlit.data.tokens import TextSpec
from ftlit.data.transforms import check_image_tensor
from ftlit.errors import UserError, closest, shorten

NamedInput = tuple[str, str]  # name of its row, as given by the user; path or text
ImageOrText = str | Path | Image.Image | Tensor
CONVERSIONS: dict[Any, str] = {  # types of images that are not taken -> how to make one that is
    bytes | bytearray | memoryview: "of the bytes of an image file, give PIL.Image.open(io.BytesIO(data))",
    IOBase: "of a file, give PIL.Image.open(file)",
    np.ndarray: "of each array (H, W, 3) of uint8, give PIL.Image.fromarray(array)",
}
OF_BANDS = {np.ndarray: "of each array (bands, H, W) of floats or uint8, give torch.from_numpy(array)"}
NOT_SEVERAL = (bytes, bytearray, memoryview, IOBase, Mapping)  # of which each can be iterated, but not over examples


def tensor_of(example: ImageOrText, spec: InputSpec | TextSpec) -> Tensor:
    """The tensor of one image (C, S, S), as in evaluation, or text (T,). Raises `UserError` for an unsuitable input."""
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
    kinds = "strings" if isinstance(spec, TextSpec) else f"paths, PIL images or {spec.tensors}"
    place = "" if within is None else f" in a {type(within).__name__}"
    conversions = {} if isinstance(spec, TextSpec) else {**CONVERSIONS, **(OF_BANDS if spec.takes_bands else {})}
    ways = (way for kind, way in conversions.items() if isinstance(given, kind))
    text = f"cannot read an input of the type {type(given).__name__}{place}: give {kinds}, one or a list"
    return UserError("; ".join([text, *ways]))


def _readable(example: ImageOrText, spec: InputSpec | TextSpec) -> Any:
    """What a view takes: an RGB image, a tensor of bands, or a text."""
    if isinstance(spec, TextSpec):
        if not isinstance(example, str):
            raise cannot_take(example, spec)
        return example
    if isinstance(example, str | Path):
        return image_reader(spec)(example)
    if isinstance(example, Image.Image):
        return as_read(example, spec)
    if not isinstance(example, Tensor):
        raise cannot_take(example, spec)
    check_image_tensor(example, spec)
    return example


class NamedInputs(Collection[NamedInput]):
    """The images or texts of paths, in order; those of a folder by name, recursively; those of a csv file by a column.

    Args:
        paths: image files, folders of them, csv files with a column of paths or texts. A missing image becomes a row with the reason.
        spec: of the network that takes them.
        column: of csv files; `None`: `path`, or `text` of texts.

    Raises:
        UserError: a folder without images, a csv file that cannot be read, an image for a network of texts.
    """

    def __init__(self, paths: Sequence[str], spec: InputSpec | TextSpec, *, column: str | None = None) -> None:
        texts, arrays = isinstance(spec, TextSpec), isinstance(spec, InputSpec) and spec.takes_bands
        self._parts = [_part(Path(path), column or ("text" if texts else "path"), texts=texts, arrays=arrays) for path in paths]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[NamedInput]:
        for part in self._parts:
            for example in part:
                yield example if isinstance(example, tuple) else (str(example), str(example))

    def __contains__(self, example: object) -> bool:
        return any(example == other for other in self)

    def folders(self) -> Iterator[str | None]:
        """Of each input, in order, the sub-folder of the given folder that holds it, at any depth; `None` for one in no sub-folder."""
        for part in self._parts:
            if not isinstance(part, FolderImages):
                yield from repeat(None, len(part))
                continue
            above = len(part.tree.path.parts)
            for path in part:
                yield path.parts[above] if len(path.parts) > above + 1 else None


def _part(path: Path, column: str, *, texts: bool, arrays: bool) -> Collection[NamedInput | Path]:
    """The examples of one path."""
    if path.suffix.lower() == ".csv":
        return list(_column(path, column, texts=texts))
    if texts:
        raise UserError(f"{path} is not a csv file, but the network of this run takes texts: give csv files with a column text")
    return FolderImages(path, arrays=arrays) if path.is_dir() else [path]


def _column(path: Path, name: str, *, texts: bool) -> Iterator[NamedInput]:
    known, rows = read_csv(path)
    if name not in known:
        near = closest(name, known)
        meant = f"did you mean --column {near}? The" if near else "give --column NAME; the"
        raise UserError(f"{path} has no column {name!r}: {meant} file has the columns {shorten(known)}")
    for _, row in rows:
        yield row[name], row[name] if texts else str(path.parent / row[name])
