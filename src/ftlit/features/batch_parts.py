"""Batches of any loader: the images in them, and what else they hold for each image."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ftlit.errors import UserError, shorten

TARGETS = ("targets", "target", "labels", "label")  # names of the targets in a batch that is a mapping
COMPARED = 16  # items that are read twice, at least: a flip of each at random goes unnoticed once in 2 ** 16


@dataclass(frozen=True)
class BatchParts:
    """The parts of a batch: a tensor of images, a tuple (images, ...), or a mapping of which one tensor has images.

    Args:
        key: position or name of the images; `None`: the batch is the tensor.
        images: (N, ...).
        others: position or name -> tensor (N, ...), or list of N values.
    """

    key: Hashable
    images: Tensor
    others: Mapping[Any, Tensor | list[Any]]

    @classmethod
    def of(cls, batch: Any) -> "BatchParts":
        """The parts of a batch. Raises `UserError` for a batch of another form."""
        if isinstance(batch, Tensor):
            return cls(None, batch, {})
        fields = dict(batch) if isinstance(batch, Mapping) else dict(enumerate(batch)) if isinstance(batch, list | tuple) else {}
        key = _image_key(fields) if isinstance(batch, Mapping) else 0
        images = fields.pop(key, None)
        if not isinstance(images, Tensor) or not images.ndim:
            raise UserError(
                f"a batch must be a tensor of images, a tuple (images, targets, ...) of tensors, or a mapping, not {_described(batch)}"
            )
        rows = {name: value for name, value in fields.items() if _is_rows(value, len(images))}
        others = {name: value if isinstance(value, Tensor) else list(value) for name, value in rows.items()}
        if wrong := [name for name in fields if name not in others]:
            raise UserError(
                f"entry {wrong[0]!r} of the batch is {_described(fields[wrong[0]])}, but the batch has {len(images)} images: give a tensor "
                f"or list of length {len(images)}"
            )
        return cls(key, images, others)

    @property
    def targets(self) -> Tensor | None:
        """What follows the images, or is named so; `None` where it is no tensor."""
        names = (1,) if isinstance(self.key, int) else TARGETS
        return next((value for name in names if isinstance(value := self.others.get(name), Tensor)), None)


def joined(parts: Sequence[BatchParts]) -> dict[Any, Tensor | list[Any]]:
    """Everything beside the images, of several batches one after the other."""
    found: dict[Any, Tensor | list[Any]] = {}
    for name, first in parts[0].others.items():
        values: list[Any] = [part.others[name] for part in parts]
        found[name] = torch.cat(values) if isinstance(first, Tensor) else [value for part in values for value in part]
    return found


def batch_of(key: Hashable, images: Any, others: Mapping[Any, Tensor | list[Any]], places: Sequence[int]) -> Any:
    """A batch of the form of `BatchParts` from these rows of `others`, with `images` in place of the images."""
    if key is None:
        return images
    own = {name: rows[list(places)] if isinstance(rows, Tensor) else [rows[place] for place in places] for name, rows in others.items()}
    return [images, *own.values()] if key == 0 else {**own, key: images}


def check_items(items: Any, collate: Callable[[list[Any]], Any], name: str) -> None:
    """Read some items twice. Raises `UserError` where they differ: features that are stored once cannot follow augmentation.

    Args:
        items: a data set with a length.
        collate: of its loader: items -> batch.
        name: of the loader, for the message.
    """
    number = len(items)
    places = sorted({number * i // COMPARED for i in range(COMPARED)})
    for _ in range(-(-COMPARED // len(places))):
        one, two = (BatchParts.of(collate([items[place] for place in places])) for _ in range(2))
        differing = [name for name in one.others if not _equal(one.others[name], two.others[name])]
        if not _equal(one.images, two.images) or differing:
            what = f"values of entry {differing[0]!r}" if differing else "images"
            raise UserError(
                f"{name} gives different {what} each time that the same items are read, but features are stored once: give FeatureData "
                "a data module without random augmentation"
            )


def _image_key(fields: Mapping[Any, Any]) -> Any:
    found = [name for name, value in fields.items() if isinstance(value, Tensor) and value.ndim >= 4]
    if len(found) != 1:
        raise UserError(f"a batch with the entries {shorten(fields)} has {len(found)} tensors of images (N, C, H, W): it must have one")
    return found[0]


def _is_rows(value: Any, images: int) -> bool:
    return isinstance(value, Tensor | list | tuple) and (not isinstance(value, Tensor) or value.ndim > 0) and len(value) == images


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and one.shape == two.shape and bool(torch.equal(one.nan_to_num(), two.nan_to_num()))
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(_equal, one, two))
    return bool(one == two)


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
