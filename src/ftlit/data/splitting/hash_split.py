"""Split a data set by a hash of each image, so that an image keeps its split when others are added or removed."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate

from ftlit.data.dataset import SPLITS, Split

NO_LABEL = -1  # the class of an image without labels
ORDER: tuple[Split, ...] = ("test", "val")  # in which the lowest hashes are assigned


@dataclass(frozen=True)
class Parts:
    """The images of each split.

    Args:
        places: split -> indices, ascending.
        moved: split -> classes that had no image in this split, so that one was moved there. Only these images may change their split when
            others are added.
    """

    places: dict[Split, list[int]]
    moved: dict[Split, list[int]] = field(default_factory=dict)


def split_by_hash(
    units: Sequence[str],
    labels: Sequence[tuple[int, ...]],
    fractions: Mapping[Split, float],
    seed: int,
    known: Mapping[str, Split] | None = None,
) -> Parts:
    """Distribute images to train and the splits of `fractions`.

    The hash of (seed, unit) is a number in [0, 1). A unit goes to test if its hash is below the fraction of test, to val if it is below the
    sum of both fractions, and otherwise to train. Then units are moved, so that every class has one in train, one in test if it has two or
    more units, and one in val if it has three or more.

    Args:
        units: the hash of each image, or the name of its group. Images of one unit stay together.
        labels: class numbers of each image.
        fractions: of val and test, or of one of them.
        seed: of the hashes.
        known: unit -> split, for units whose split is given.
    """
    splits = [split for split in ORDER if split in fractions]
    bounds = list(accumulate(fractions[split] for split in splits))
    hashes = {unit: unit_hash(seed, unit) for unit in dict.fromkeys(units)}
    split_of = {unit: [*splits, "train"][bisect_right(bounds, value)] for unit, value in hashes.items()}
    split_of |= {unit: split for unit, split in (known or {}).items() if unit in split_of and split in (*splits, "train")}
    assignment = _Assignment(split_of, _members(units, labels, hashes), frozenset(known or ()))
    for split in ("train", *splits):
        assignment.fill(split, least={"train": 1, **{split: 2 + i for i, split in enumerate(splits)}}[split])
    assignment.fill_empty(splits)
    places = {split: [i for i, unit in enumerate(units) if split_of[unit] == split] for split in SPLITS if split in ("train", *splits)}
    return Parts(places, assignment.moved)


def unit_hash(seed: int, unit: str) -> float:
    """The hash of (seed, unit) as a number in [0, 1)."""
    return int.from_bytes(sha256(f"{seed} {unit}".encode()).digest()[:8], "big") / 2**64


def _members(units: Sequence[str], labels: Sequence[tuple[int, ...]], hashes: Mapping[str, float]) -> dict[int, list[str]]:
    """Return class -> units in ascending order of their hashes; classes in ascending order."""
    found: dict[int, set[str]] = {}
    for unit, numbers in zip(units, labels, strict=True):
        for number in numbers or (NO_LABEL,):
            found.setdefault(number, set()).add(unit)
    return {number: sorted(found[number], key=lambda unit: (hashes[unit], unit)) for number in sorted(found)}


class _Assignment:
    """The split of each unit, while units are moved to splits in which a class has none.

    Args:
        split_of: unit -> split; changed in place.
        members: class -> units, ascending by hash.
        kept: units that are not moved.
    """

    def __init__(self, split_of: dict[str, Split], members: Mapping[int, Sequence[str]], kept: frozenset[str]) -> None:
        self.split_of, self.members, self.kept = split_of, members, set(kept)
        self.moved: dict[Split, list[int]] = {}
        self.classes: dict[str, list[int]] = {}
        for number, units in members.items():
            for unit in units:
                self.classes.setdefault(unit, []).append(number)
        self.counts = Counter((split_of[unit], number) for number, units in members.items() for unit in units)

    def fill(self, split: Split, least: int) -> None:
        """Move a unit to `split` from each class that has at least `least` units, and none in this split."""
        for number, units in self.members.items():
            if self.counts[split, number] or len(units) < least:
                continue
            order = reversed(units) if split == "train" else units
            unit = next((unit for unit in order if self._may_move(unit, split)), None)
            if unit is not None:
                self._move(unit, split)
                self.moved.setdefault(split, []).append(number)

    def fill_empty(self, splits: Sequence[Split]) -> None:
        """Move a unit to each empty split: val is empty if each class has one or two units."""
        for split in splits:
            spare = [unit for unit, other in self.split_of.items() if other in splits and other != split and unit not in self.kept]
            if split not in self.split_of.values() and len(spare) > 1:
                unit = max(spare)
                self.moved.setdefault(split, []).extend(self.classes[unit])
                self._move(unit, split)

    def _may_move(self, unit: str, split: Split) -> bool:
        """Whether a unit may move: it is not the last one of a class in train, nor, on the way to val, in test."""
        source = self.split_of[unit]
        last = source == "train" or (source == "test" and split == "val")
        return unit not in self.kept and not (last and any(self.counts[source, number] == 1 for number in self.classes[unit]))

    def _move(self, unit: str, split: Split) -> None:
        for number in self.classes[unit]:
            self.counts[self.split_of[unit], number] -= 1
            self.counts[split, number] += 1
        self.split_of[unit] = split
        if split == "train":
            self.kept.add(unit)
