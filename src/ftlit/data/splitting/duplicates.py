"""Hashes of the contents of images, and notes on images with equal bytes: in several splits, or with several labels."""

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ftlit.data.bad_image import BadImage, unreadable
from ftlit.data.dataset import Examples, Split
from ftlit.data.file_paths import are_files, texts_of
from ftlit.errors import shorten
from ftlit.formatting import shown
from ftlit.identity.fingerprint import of_array, of_bytes

Content = Path | np.ndarray[Any, Any]
Image = tuple[Split, int]  # split, and place in it
Hashes = Callable[[Examples], Sequence[str]]  # the hash of each image


@dataclass(frozen=True, slots=True)
class Copy:
    """An image of a split, to be compared with others."""

    split: Split
    place: int
    content: Content
    labels: tuple[int, ...]

    def __str__(self) -> str:
        return shown(self.content) if isinstance(self.content, Path) else f"{self.split}[{self.place}]"


def content_hash(content: Content) -> str:
    """Return 32 hexadecimal digits for the bytes of a file or the values of an array. Raises `BadImage` if a file cannot be read."""
    if not isinstance(content, Path):
        return of_array(content)
    try:
        return of_bytes(content.read_bytes())
    except FileNotFoundError as error:
        raise BadImage(f"there is no file {shown(content)}") from error
    except OSError as error:
        raise unreadable(content, error) from error


def content_hashes(examples: Examples) -> list[str]:
    """Return the hash of each image, or its number in the data set if the contents are not known."""
    if examples.contents is None:
        return [f"number {source}" if isinstance(source, int) else f"place {place}" for place, source in enumerate(examples.sources)]
    return [content_hash(content) for content in examples.contents]


class AskedOnce:
    """A function that gives hashes of images, which is asked for the hash of each file only once.

    Args:
        hashes: the function.
    """

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = hashes
        self.known: dict[str, str] = {}

    def __call__(self, examples: Examples) -> Sequence[str]:
        """The hash of each image."""
        if not are_files(examples.contents):
            return self.hashes(examples)
        files = texts_of(examples.contents)
        if new := [place for place, file in enumerate(files) if file not in self.known]:
            asked = examples if len(new) == len(files) else examples.subset(new)  # it may keep them
            self.known.update(zip((files[place] for place in new), self.hashes(asked), strict=True))
        return [self.known[file] for file in files]

    def knows(self, examples: Examples) -> bool:
        """Whether the images are files whose hashes are known."""
        return are_files(examples.contents) and all(file in self.known for file in texts_of(examples.contents))


def duplicate_notes(splits: Mapping[Split, Examples], hashes: Hashes = content_hashes) -> list[str]:
    """Notes on images with equal bytes in several splits, or with different labels.

    Args:
        splits: split -> its images.
        hashes: gives the hash of each image, as `content_hashes` does.
    """
    if any(examples.contents is None for examples in splits.values()):
        return ["the splits are not checked for duplicates, because the examples of this data set cannot be compared without loading them"]
    groups = find_copies(splits, hashes)
    across = [group for group in groups if _crosses(group)]
    contradictory = [group for group in groups if _contradicts(group)]
    notes = [f"exact duplicates are in several splits ({len(across)}): {_names(across)}"] if across else []
    if contradictory:
        notes.append(f"exact duplicates have different labels ({len(contradictory)}): {_names(contradictory)}")
    return notes


def find_copies(splits: Mapping[Split, Examples], hashes: Hashes = content_hashes) -> list[list[Copy]]:
    """Find groups of images with equal bytes, in more than one split or with different labels. Only images of equal size are hashed."""
    places: Mapping[Split, Sequence[int]] = {split: range(len(examples)) for split, examples in splits.items()}
    if not (isinstance(hashes, AskedOnce) and all(map(hashes.knows, splits.values()))):  # otherwise there is nothing to save
        same_size = _copies(splits, places, {split: _sizes(examples.contents) for split, examples in splits.items()})
        places = {split: [place for group in same_size for other, place in group if other == split] for split in splits}
    found = {split: hashes(examples.subset(places[split])) for split, examples in splits.items()}
    return [
        [Copy(split, place, (splits[split].contents or ())[place], splits[split].labels[place]) for split, place in group]
        for group in _copies(splits, places, found)
    ]


def _copies(
    splits: Mapping[Split, Examples], places: Mapping[Split, Sequence[int]], keys: Mapping[Split, Sequence[Hashable]]
) -> list[list[Image]]:
    """Group images by key, in the order of first occurrence, and keep groups in more than one split or with different labels.

    Args:
        splits: split -> its images.
        places: split -> those that are looked at.
        keys: split -> the key of each of these.
    """
    times = Counter(chain.from_iterable(keys.values()))  # most keys occur once
    groups: dict[Hashable, list[Image]] = {}
    for split, own in places.items():
        for place, key in zip(own, keys[split], strict=True):
            if times[key] > 1:
                groups.setdefault(key, []).append((split, place))
    return [
        group
        for group in groups.values()
        if len({split for split, _ in group}) > 1 or len({splits[split].labels[place] for split, place in group}) > 1
    ]


def _crosses(group: Sequence[Copy]) -> bool:
    return len({copy.split for copy in group}) > 1


def _contradicts(group: Sequence[Copy]) -> bool:
    return len({copy.labels for copy in group}) > 1


def _names(groups: Iterable[Sequence[Copy]]) -> str:
    return shorten((" = ".join(map(str, group)) for group in groups), most=3)


def _sizes(contents: Sequence[Content] | None) -> list[int]:
    if are_files(contents):
        return [os.stat(path).st_size for path in texts_of(contents)]
    return [content.stat().st_size if isinstance(content, Path) else content.nbytes for content in contents or ()]
