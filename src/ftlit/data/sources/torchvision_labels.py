"""Labels and class names of torchvision's data sets: as a data set gives them, whatever its options."""

from collections.abc import Mapping, Sequence
from itertools import count
from operator import index
from typing import Any

import numpy as np

from ftlit.errors import UserError, one_line, shorten

Arguments = Mapping[str, Any]
SPLIT_OPTIONS = {"QMNIST": ("what",)}  # data set -> arguments, besides those that ftlit gives, that choose the split
TARGET = "target"  # arguments that change the second item of a pair begin with it: target_type, target_types, target_transform


def check_options(name: str, options: Arguments, given: Mapping[str, Arguments]) -> None:
    """Reject options that choose the split: ftlit sets them for each split."""
    own = {argument for arguments in given.values() for argument in arguments} | set(SPLIT_OPTIONS.get(name, ()))
    if chosen := sorted(own & options.keys()):
        raise UserError(
            f"data.options.{chosen[0]} chooses a split of {name}, but ftlit already reads the splits {shorten(given)}: leave "
            f"data.options.{chosen[0]} out"
        )
    if misplaced := sorted({"root", "download"} & options.keys()):
        raise UserError(f"data.options.{misplaced[0]} has no effect: use data.{misplaced[0]}")


def changes_targets(options: Arguments) -> bool:
    """Whether the targets of a data set may differ from its list of labels."""
    return any(name.startswith(TARGET) for name in options)


def labels_of(dataset: Any, options: Arguments) -> list[tuple[int, ...]]:
    """Return class numbers from the attribute that holds them. Without one, or with options that change targets, read every pair.

    Raises:
        UserError: targets are not class numbers, or differ from the attribute.
    """
    listed = None if changes_targets(options) else _listed(dataset)
    if listed is None:
        return [(_number(dataset, place),) for place in range(len(dataset))]
    places = {0, len(dataset) // 2, len(dataset) - 1} if options and len(dataset) else ()
    if any(_number(dataset, place) != listed[place][0] for place in places):
        names = " or ".join(f"data.options.{name}" for name in options)
        raise UserError(
            f"{names} changes the labels of the items of {type(dataset).__name__}, but not its list of labels, so the two differ: "
            f"leave out {names}"
        )
    return listed


def _listed(dataset: Any) -> list[tuple[int, ...]] | None:
    for attribute in ("targets", "_labels", "labels", "y"):
        values = getattr(dataset, attribute, None)
        if values is not None and np.ndim(values) == 1 and len(values) == len(dataset):
            return [(int(value),) for value in values]
    for attribute in ("_samples", "samples"):
        if (pairs := getattr(dataset, attribute, None)) is not None:
            return [(int(pairs[place][1]),) for place in range(len(dataset))]
    return None


def _number(dataset: Any, place: int) -> int:
    try:
        target = dataset[place][1]
    except Exception as error:  # a damaged image, or a transform that does not fit
        raise UserError(f"image {place} of {type(dataset).__name__} cannot be read: {one_line(error)}") from error
    try:
        return index(target)
    except TypeError:
        gives = f"{type(dataset).__name__} gives a {type(target).__name__} as the target of image {place}"
        raise UserError(f"{gives}, not a class number: set data.options so that the targets are class numbers") from None


def class_names(dataset: Any, least: int, *, relabelled: bool) -> list[str]:
    """Return the class names of the data set, or numbers where it has none. Several names of one class (ImageNet) are joined.

    Args:
        dataset: the training split.
        least: number of classes that its labels need.
        relabelled: whether options changed its targets. Then names are used only if there are exactly `least`.
    """
    for attribute in ("classes", "categories", "bin_classes"):
        names = getattr(dataset, attribute, None) or []
        if len(names) == least or (len(names) > least and not relabelled):
            return _unique([", ".join(name) if isinstance(name, tuple) else str(name) for name in names])
    return [str(number) for number in range(least)]


def _unique(names: Sequence[str]) -> list[str]:
    """Number the names that several classes share: ImageNet has two classes `crane`."""
    unique: dict[str, None] = {}
    for name in names:
        numbered = (f"{name} ({number})" for number in count(2))
        unique[name if name not in unique else next(new for new in numbered if new not in unique)] = None
    return list(unique)
