"""Data sets of torch, as a function of the user returns them: their images, or texts, and labels, read once and checked item by item."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from ftlit.data.dataset import SPLITS, Collection, Examples, Split
from ftlit.data.sources.label_notes import label_notes
from ftlit.data.sources.torch_items import LABELS, Items, item_name, kind_of, pair_at
from ftlit.data.splitting.split_names import split_named
from ftlit.data.splitting.splits import SplitRule, assemble
from ftlit.errors import UserError, shorten
from ftlit.formatting import count

ACCEPTED = (
    "torch Datasets, as a pair (train, test), a triple (train, val, test), or a mapping such as "
    "{'train': ..., 'test': ..., 'class_names': [...]}"
)
CLASS_NAMES = "class_names"
NAMES_OF_DATASETS = (CLASS_NAMES, "classes", "categories")  # attributes of a data set that hold its class names
Report = Callable[[int], None]  # called with the number of items before they are read


@dataclass(frozen=True)
class TorchData:
    """Splits that were read.

    Args:
        found: split -> its images or texts.
        class_names: class number -> name.
        multilabel: whether an item has several labels.
        texts: whether the items are texts.
    """

    found: Mapping[Split, Examples]
    class_names: list[str]
    multilabel: bool
    texts: bool

    def collection(self, rule: SplitRule) -> Collection:
        """The checked collection, see `assemble`, which makes the splits that are missing."""
        collection = assemble(self.found, self.class_names, rule, multilabel=self.multilabel)
        collection.notes[:0] = label_notes(self.class_names)
        return collection


def splits_in(made: object, source: str) -> tuple[dict[Split, Any], list[str] | None] | None:
    """The data sets that a function returned, by split, and the class names, if it gave them; `None` for an object of another kind.

    Args:
        made: what the function returned.
        source: its name, for messages.

    Raises:
        UserError: a number or names of splits that are not known, a loader or a stream in place of a data set, no class names.
    """
    names: Any = None
    if isinstance(made, Mapping):
        given = dict(made)
        names = given.pop(CLASS_NAMES, None)
        parts = {split_named(str(key)): value for key, value in given.items()}
        if None in parts or len(parts) < len(given) or "train" not in parts:
            keys = shorten(map(repr, made))
            raise UserError(f"{source} returned a mapping with the keys {keys}: give train, and optionally val, test and class_names")
    elif isinstance(made, tuple | list) and made and all(_is_data_set(part) for part in made):
        if all(map(_is_sample, made)):
            raise UserError(
                f"{source} returned a {type(made).__name__} of {count(len(made), 'sample')}: give samples by split, such as "
                "{'train': samples} (val and test are taken from them) or {'train': ..., 'test': ...}"
            )
        if len(made) > len(SPLITS):
            raise UserError(f"{source} returned {len(made)} data sets: give {ACCEPTED}")
        order: Sequence[Split] = SPLITS if len(made) == len(SPLITS) else ("train", "test")
        parts = dict(zip(order, made, strict=False))
    elif isinstance(made, Dataset | DataLoader):
        parts = {"train": made}
    else:
        return None
    for split, part in parts.items():
        if isinstance(part, DataLoader):
            raise UserError(f"{source} gives a DataLoader as {split}: give its data set (loader.dataset); ftlit makes the batches")
        if isinstance(part, IterableDataset) or not hasattr(part, "__len__") or not hasattr(part, "__getitem__"):
            raise UserError(
                f"{source} gives {kind_of(part)} as {split}: give a Dataset with __len__ and __getitem__, which gives (image, label)"
            )
        if not len(part):
            raise UserError(f"{source} gives an empty Dataset as {split}: return one with items, or leave {split} out")
    found = {split: parts[split] for split in SPLITS if split in parts}
    if names is None:
        names = next(filter(None, map(_names_of, found.values())), None)
    if names is not None and (isinstance(names, str) or not all(isinstance(name, str) for name in names)):
        raise UserError(f"{source} gives class_names={names!r}: give a list of texts, one for each class number")
    return found, None if names is None else list(names)


def _is_data_set(part: object) -> bool:
    return isinstance(part, Dataset | DataLoader) or (isinstance(part, Sequence) and not isinstance(part, str | bytes))


def _is_sample(part: Any) -> bool:
    """Whether this is an (image or text, label) pair rather than a data set of two such pairs."""
    if not isinstance(part, tuple | list) or len(part) != 2:
        return False
    return isinstance(part[0], str) or not isinstance(part[0], Sequence | Mapping | Dataset | DataLoader)


def _names_of(dataset: Any) -> Any:
    """The class names that a data set has as an attribute; of a subset those of the whole."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return next((value for name in NAMES_OF_DATASETS if (value := getattr(dataset, name, None))), None)


def read_splits(splits: Mapping[Split, Any], class_names: list[str] | None, source: str, report: Report = lambda items: None) -> TorchData:
    """Read every item once: its label, and the digest that identifies it.

    Args:
        splits: split -> a data set of (image or text, label) pairs, see `IMAGES` and `LABELS`.
        class_names: class number -> name; `None`: the names that are labels, or the numbers.
        source: name of the function that made them, for messages.
        report: called before the items are read.

    Raises:
        UserError: an item that is no such pair, that differs when it is read again, or whose label fits no class.
    """
    report(sum(map(len, splits.values())))
    texts = isinstance(pair_at(splits["train"], 0, "train", source)[0], str)
    read = {split: Items(dataset, split, source, texts) for split, dataset in splits.items()}
    given = [label for items in read.values() for label in items.labels]
    kinds = Counter(type(label).__name__ for label in given)
    if len(kinds) > 1:
        raise UserError(f"{source} gives labels of several kinds ({', '.join(kinds)}): give each item {LABELS}")
    numbers: dict[str, int] = {}
    if isinstance(given[0], str):
        names = class_names or sorted(set(read["train"].labels))
        numbers = {name: number for number, name in enumerate(names)}
    elif isinstance(given[0], tuple):
        names = class_names or [str(number) for number in range(len(given[0]))]
        _check_lengths(read, names, source)
    else:
        names = class_names or _numbered(read, source)
    found: dict[Split, Examples] = {}
    for split, items in read.items():
        labels: list[tuple[int, ...]] = []
        for place, label in enumerate(items.labels):
            if isinstance(label, tuple):
                labels.append(tuple(number for number, own in enumerate(label) if own))
                continue
            number = numbers.get(label, -1) if isinstance(label, str) else label
            if not 0 <= number < len(names):
                raise UserError(
                    f"{item_name(place, split, source)} has the label {label!r}, which is none of the {len(names)} classes "
                    f"({shorten(names)}): give a class name, or a class number from 0 to {len(names) - 1}"
                )
            labels.append((number,))
        found[split] = Examples(items.sources, labels, items.load, items.contents)
    return TorchData(found, names, isinstance(given[0], tuple), texts)


def _check_lengths(read: Mapping[Split, Items], names: Sequence[str], source: str) -> None:
    for split, items in read.items():
        for place, label in enumerate(items.labels):
            if len(label) != len(names):
                raise UserError(
                    f"{item_name(place, split, source)} has a label vector of length {len(label)}, but there are {len(names)} classes "
                    f"({shorten(names)}): give each item a vector of length {len(names)}"
                )


def _numbered(read: Mapping[Split, Items], source: str) -> list[str]:
    """The numbers of the classes as their names. Raises `UserError` if train has no item of one of them."""
    there = set(read["train"].labels)
    names = [str(number) for number in range(max(there) + 1)]
    if absent := [number for number in names if int(number) not in there]:
        raise UserError(
            f"{source} gives labels up to {max(there)} in train, but none is {shorten(absent, most=5)}: number the classes from 0 without "
            "gaps, or give class_names"
        )
    return names
