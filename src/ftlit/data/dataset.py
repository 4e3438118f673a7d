"""Labelled images or texts that are not read yet (`Examples`), in three splits (`Collection`), and the data set that reads them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ftlit.data.file_paths import taken
from ftlit.data.pixels import Normalization, SplitView
from ftlit.data.transforms import Transform

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Examples:
    """Images, or texts, of one split, not yet read, with their labels.

    Args:
        sources: the argument of `load` for each image.
        labels: the class numbers of each image: one, or any number of them in a multi-label data set.
        load: source -> PIL image (RGB), or text. Must pickle, for worker processes.
        contents: file or array of each image, which identifies the image without decoding; `None` if unknown. A source that is neither
            this file or array nor a number identifies a part of it, such as a page.
        groups: name of the group of each image (patient, video, site), which a split keeps together; `None` for an image without one.
        hashes: of the contents (N,) that are a list of files, as they were when the files were listed, or first asked for; kept in place by
            `ftlit.features.image_hashes`, which keeps those of `FilePaths` there.
    """

    sources: Sequence[Any]
    labels: Sequence[tuple[int, ...]]
    load: Callable[[Any], Any]
    contents: Sequence[Path | np.ndarray[Any, Any]] | None = None
    groups: Sequence[str | None] | None = None
    hashes: np.ndarray[Any, np.dtype[np.bytes_]] | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.sources)

    def subset(self, indices: Sequence[int]) -> "Examples":
        """The images at these indices, in this order."""
        sources = taken(self.sources, indices)
        contents = sources if self.contents is self.sources else None if self.contents is None else taken(self.contents, indices)
        groups = None if self.groups is None else taken(self.groups, indices)
        hashes = None if self.hashes is None else self.hashes[list(indices)]
        return Examples(sources, taken(self.labels, indices), self.load, contents, groups, hashes)


@dataclass(frozen=True)
class Collection:
    """A data set in three splits.

    Args:
        splits: train, val and test, each with at least one image.
        class_names: class number -> name.
        multilabel: whether an image has any number of labels rather than one.
        notes: warnings about the data, one sentence each, printed before training.
        split_off: the splits that were made from train, because the data had none.
        split_notes: those of `notes` that are about the splits.
    """

    splits: Mapping[Split, Examples]
    class_names: list[str]
    multilabel: bool = False
    notes: list[str] = field(default_factory=list)
    split_off: Sequence[Split] = ()
    split_notes: Sequence[str] = ()

    @property
    def counts(self) -> dict[Split, dict[str, int]]:
        """Images of each class in each split; with several labels an image counts for each of them."""
        numbers = {split: Counter(label for labels in self.splits[split].labels for label in labels) for split in SPLITS}
        return {split: {name: numbers[split][i] for i, name in enumerate(self.class_names)} for split in SPLITS}

    def targets(self, split: Split) -> Tensor:
        """Class numbers, int64 (N,); with several labels multi-hot, float32 (N, num_classes)."""
        labels = self.splits[split].labels
        if not self.multilabel:
            return torch.tensor([label for (label,) in labels])
        hot = torch.zeros(len(labels), len(self.class_names))
        for row, numbers in zip(hot, labels, strict=True):
            row[list(numbers)] = 1
        return hot


def wrong_class_names(names: Sequence[Any]) -> list[str]:
    """The class names that are no texts, and those that several classes share, as Python writes them. A prediction names its class."""
    times = Counter(repr(name) for name in names)
    return list(dict.fromkeys(repr(name) for name in names if type(name) is not str or times[repr(name)] > 1))


class LabelledImages(Dataset[Batch]):
    """One split of a collection as (image float32 (3, S, S), or token ids int64 (T,), target) pairs.

    Args:
        collection: the images, or texts.
        split: one of its splits.
        transform: image -> tensor.
        as_pixels: give images before their normalisation, where `transform` can be split into these two parts.

    Raises:
        BadImage: while reading, an image that cannot be decoded.
    """

    def __init__(self, collection: Collection, split: Split, transform: Transform, *, as_pixels: bool = False) -> None:
        self.examples = collection.splits[split]
        self.targets = collection.targets(split)
        view = SplitView.of(transform) if as_pixels else None
        self.transform = view.pixels if view else transform
        self.normalization: Normalization | None = view.normalization if view else None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Batch:
        return self.transform(self.examples.load(self.examples.sources[i])), self.targets[i]
