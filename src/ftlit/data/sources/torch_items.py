"""Items of a data set of torch: (image or text, label) pairs of a user, read once, checked and identified by their content."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ftlit.data.images import BadImage, to_rgb
from ftlit.data.sources.text_files import read_text
from ftlit.errors import UserError, one_line
from ftlit.identity.code_identity import versioned
from ftlit.identity.fingerprint import of_array

IMAGES = "a PIL image, or an array or tensor of 8-bit integers or of floats from 0 to 1, of shape (H, W), (3, H, W) or (H, W, 3)"
LABELS = "a class number from 0, a class name, or for several labels a vector of 0 and 1"


@versioned("read_item", 1, uses=(to_rgb,))
class ReadItem(Dataset[Image.Image]):  # a data set, so that `fingerprint` does not look into the images
    """Place -> picture, of a data set of (image, label) pairs. The digests of the pictures identify them, not the code that gives them.

    Args:
        dataset: the pairs.
        name: of the split, in messages.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self.held = (dataset,)  # in a tuple: a data set that is callable would count as code
        self.names = (name,)

    def __call__(self, place: int) -> Image.Image:
        """The picture. Raises `BadImage` if the item cannot be read."""
        try:
            return picture_of(self.held[0][place][0])
        except Exception as error:  # a user's code raises anything
            raise BadImage(
                f"item {place} of {self.names[0]} cannot be read: correct the code of the data set ({one_line(error)})"
            ) from error


class Items:
    """The items of a split, read once.

    Attributes:
        labels: numbers, names, or vectors of 0 and 1.
        contents: bytes that identify each item.
        sources: the arguments of `load`.
        load: source -> image or text.

    Raises:
        UserError: an item that is no pair of input and label, or that differs when it is read again.
    """

    def __init__(self, dataset: Any, split: str, source: str, texts: bool) -> None:
        self.labels: list[Any] = []
        self.contents: list[np.ndarray[Any, Any]] = []
        self.sources: Sequence[Any] = range(len(dataset))
        self.load: Callable[[Any], Any] = read_text if texts else ReadItem(dataset, f"the {split} split of {source}")
        found: list[str] = []
        for place in range(len(dataset)):
            value, label = pair_at(dataset, place, split, source)
            where = item_name(place, split, source)
            self.labels.append(label_of(label, where))
            if texts != isinstance(value, str):
                raise UserError(
                    f"{where} is {kind_of(value)}, but item 0 of train is {'a text' if texts else 'an image'}: give either texts only or "
                    "images only"
                )
            if texts:
                found.append(value)
            self.contents.append(content_of(value, where))
        for place in {0, len(dataset) - 1}:
            again = content_of(pair_at(dataset, place, split, source)[0], item_name(place, split, source))
            if not np.array_equal(again, self.contents[place]):
                raise UserError(
                    f"{item_name(place, split, source)} changes when it is read again: remove random transforms from the data set, and "
                    "give data.augment=photo, trivial_augment or rand_augment"
                )
        if texts:
            self.sources = found


def item_name(place: int, split: str, source: str) -> str:
    """The name of an item in messages."""
    return f"item {place} of the {split} split of {source}"


def pair_at(dataset: Any, place: int, split: str, source: str) -> tuple[Any, Any]:
    """Input and label of an item. Raises `UserError` if it cannot be read, or is no pair."""
    where = item_name(place, split, source)
    try:
        item = dataset[place]
    except Exception as error:  # a user's code raises anything
        raise UserError(f"{where} cannot be read: correct the code of the data set ({type(error).__name__}: {one_line(error)})") from error
    if not isinstance(item, tuple | list) or len(item) != 2:
        what = f"{kind_of(item)} of {len(item)} values" if isinstance(item, tuple | list) else kind_of(item)
        raise UserError(f"{where} is {what}: give a pair (image, label), or (text, label)")
    return item[0], item[1]


def content_of(value: Any, where: str) -> "np.ndarray[Any, Any]":
    """The bytes that identify an image, or a text. Raises `UserError` for another value."""
    if isinstance(value, str):
        return np.frombuffer(value.encode(), np.uint8)
    try:
        picture = picture_of(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} is {one_line(error)}") from error
    return np.frombuffer(bytes.fromhex(of_array(np.asarray(picture))), np.uint8)


def picture_of(value: Any) -> Image.Image:
    """An image of a data set as RGB: see `IMAGES`. Raises `TypeError` or `ValueError` with what was given, and what is accepted."""
    if isinstance(value, Image.Image):
        return to_rgb(value)
    if not isinstance(value, Tensor | np.ndarray):
        raise TypeError(f"{kind_of(value)}: give {IMAGES}")
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    given = f"{kind_of(value)} of shape {tuple(array.shape)}"
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    elif array.ndim == 3 and isinstance(value, Tensor) and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or not array.size:
        raise ValueError(f"{given}: give {IMAGES}")
    if array.dtype == bool:
        array = array.astype(np.float32)
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # also where a value is NaN
            has = "NaN values" if np.isnan(low) else f"floats from {low:.3g} to {high:.3g}"
            raise ValueError(f"{given} with {has}: give floats from 0 to 1, because ftlit normalises the images")
        array = (array * 255).round()
    elif array.min() < 0 or array.max() > 255:
        raise ValueError(f"{given} with values from {array.min()} to {array.max()}: give {IMAGES}")
    return Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8)).convert("RGB")


def label_of(value: Any, where: str) -> int | str | tuple[int, ...]:
    """The label of an item as plain values, see `LABELS`. Raises `UserError` for another value."""
    plain = value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value
    if isinstance(plain, list) and len(plain) == 1:  # a tensor of one number
        plain = plain[0]
    if isinstance(plain, str | Integral):
        return plain if isinstance(plain, str) else int(plain)
    if isinstance(plain, list | tuple) and plain and all(number in (0, 1) for number in plain):
        return tuple(map(int, plain))
    raise UserError(f"the label of {where} is {value!r:.80}: give {LABELS}")


def kind_of(value: object) -> str:
    """A value by its type, in words."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
