"""Split a data set by a hash of each image, so that an image keeps its split when others are added or removed."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate

from ftlit.data.dataset import SPLITS, Split

NO_LABEL = -1  # the class of an image without labels
ORDER: tuple[Split, ...] = ("test", "val")  # in which the lowest hashes are allotted


@dataclass(frozen=True)
class Parts:
    """The images of each split.

    Args:
        places: split -> indices, ascending.
        moved: split -> the classes of which an image was moved there, because they had none in it. Only these images may change their
            split when others are added.
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

    The hash of (seed, unit), as a number in [0, 1), decides: below the fraction of test the unit goes to test, below the sum of both
    fractions to val, otherwise to train. Then every class that has none gets a unit in train, one in test if it has two or more units,
    and one in val if it has three or more.

    Args:
        units: the hash of each image, or the name of its group. Images of one unit stay together.
        labels: class numbers of each image.
        fractions: of val and test, or of one of them.
        seed: of the hashes.
        known: unit -> split, of units that keep the split they have.
    """
    splits = [split for split in ORDER if split in fractions]
    bounds = list(accumulate(fractions[split] for split in splits))
    hashes = {unit: unit_hash(seed, unit) for unit in dict.fromkeys(units)}
    side = {unit: [*splits, "train"][bisect_right(bounds, value)] for unit, value in hashes.items()}
    side |= {unit: split for unit, split in (known or {}).items() if unit in side and split in (*splits, "train")}
    allotment = _Allotment(side, _members(units, labels, hashes), frozenset(known or ()))
    for split in ("train", *splits):
        allotment.fill(split, least={"train": 1, **{split: 2 + i for i, split in enumerate(splits)}}[split])
    allotment.fill_empty(splits)
    places = {split: [i for i, unit in enumerate(units) if side[unit] == split] for split in SPLITS if split in ("train", *splits)}
    return Parts(places, allotment.moved)


def unit_hash(seed: int, unit: str) -> float:
    """The hash of (seed, unit) as a number in [0, 1)."""
    return int.from_bytes(sha256(f"{seed} {unit}".encode()).digest()[:8], "big") / 2**64


def _members(units: Sequence[str], labels: Sequence[tuple[int, ...]], hashes: Mapping[str, float]) -> dict[int, list[str]]:
    """Class -> its units, those with the lowest hashes first; classes in ascending order."""
    found: dict[int, set[str]] = {}
    for unit, numbers in zip(units, labels, strict=True):
        for number in numbers or (NO_LABEL,):
            found.setdefault(number, set()).add(unit)
    return {number: sorted(found[number], key=lambda unit: (hashes[unit], unit)) for number in sorted(found)}


class _Allotment:
    """The split of each unit while classes are given what they lack.

    Args:
        side: unit -> split; changed in place.
        members: class -> units, ascending by hash.
        kept: units that are not moved.
    """

    def __init__(self, side: dict[str, Split], members: Mapping[int, Sequence[str]], kept: frozenset[str]) -> None:
        self.side, self.members, self.kept = side, members, set(kept)
        self.moved: dict[Split, list[int]] = {}
        self.classes: dict[str, list[int]] = {}
        for number, units in members.items():
            for unit in units:
                self.classes.setdefault(unit, []).append(number)
        self.counts = Counter((side[unit], number) for number, units in members.items() for unit in units)

    def fill(self, split: Split, least: int) -> None:
        """Move a unit to `split` from each class of at least this many units that has none there."""
        for number, units in self.members.items():
            if self.counts[split, number] or len(units) < least:
                continue
            order = reversed(units) if split == "train" else units
            unit = next((unit for unit in order if self._may_move(unit, split)), None)
            if unit is not None:
                self._move(unit, split)
                self.moved.setdefault(split, []).append(number)

    def fill_empty(self, splits: Sequence[Split]) -> None:
        """Give a unit of another split to one that is empty: with one or two units of each class, val gets none."""
        for split in splits:
            spare = [unit for unit, other in self.side.items() if other in splits and other != split and unit not in self.kept]
            if split not in self.side.values() and len(spare) > 1:
                unit = max(spare)
                self.moved.setdefault(split, []).extend(self.classes[unit])
                self._move(unit, split)

    def _may_move(self, unit: str, split: Split) -> bool:
        """Whether no class loses its last unit in train, nor, for the sake of val, in test."""
        source = self.side[unit]
        last = source == "train" or (source == "test" and split == "val")
        return unit not in self.kept and not (last and any(self.counts[source, number] == 1 for number in self.classes[unit]))

    def _move(self, unit: str, split: Split) -> None:
        for number in self.classes[unit]:
            self.counts[self.side[unit], number] -= 1
            self.counts[split, number] += 1
        self.side[unit] = split
        if split == "train":
            self.kept.add(unit)
