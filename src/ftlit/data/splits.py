"""Splits of a data set that are fair: drawn by seed and stratified, each class trained, no image on both sides."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ftlit.data.dataset import SPLITS, Collection, Examples, Split
from ftlit.data.images import shown
from ftlit.errors import UserError, shorten

T = TypeVar("T")
Content = Path | np.ndarray[Any, Any]
Located = tuple[Split, int, Content]  # split, place in it, file or array


def assemble(
    found: Mapping[Split, Examples], class_names: list[str], *, fractions: Mapping[Split, float], split_seed: int, multilabel: bool = False
) -> Collection:
    """A checked collection. Val and test are split off train where they are not found.

    Args:
        found: the splits that the data have; train always.
        class_names: class number -> name.
        fractions: part of the training images that val and test get where they are missing.
        split_seed: draws them.
        multilabel: whether images have several labels.

    Raises:
        UserError: fewer than two classes, too few images to split, fractions out of range, a class in val or test that train lacks.
    """
    if len(class_names) < 2 and not multilabel:
        raise UserError(f"the data have {len(class_names)} class ({shorten(class_names)}): at least two are needed")
    missing = {split: fractions[split] for split in SPLITS if split not in found}
    drawn = _drawn(found["train"], missing, split_seed)
    splits = {split: found["train"].subset(drawn[split]) if split in drawn else found[split] for split in SPLITS}
    notes = [_draw_note(missing, found["train"], class_names, split_seed)] if missing else []
    collection = Collection(splits, class_names, multilabel, notes)
    notes += [*_class_notes(collection), *_duplicate_notes(splits)]
    return collection


def _drawn(train: Examples, missing: Mapping[Split, float], seed: int) -> dict[Split, list[int]]:
    if not missing:
        return {}
    if min(missing.values()) <= 0 or sum(missing.values()) >= 1:
        given = ", ".join(f"{split}_fraction={fraction}" for split, fraction in missing.items())
        raise UserError(f"{given}: each must be above 0 and all together below 1")
    drawn = _learnable(split_off(strata(train.labels), missing, seed), train.labels)
    if empty := [split for split in drawn if not drawn[split]]:
        raise UserError(f"{len(train)} images are too few to split off {' and '.join(missing)}: no image is left for {' and '.join(empty)}")
    return drawn


def _learnable(drawn: dict[Split, list[int]], labels: Sequence[tuple[int, ...]]) -> dict[Split, list[int]]:
    """The same, images with a label that train lacks moved there: among several labels, only the rarest is sure to be in train."""
    known = {label for place in drawn["train"] for label in labels[place]}
    moved: set[int] = set()
    for place in sorted(place for split in drawn if split != "train" for place in drawn[split]):
        if not known.issuperset(labels[place]):
            known.update(labels[place])
            moved.add(place)
    kept = {split: [place for place in places if place not in moved] for split, places in drawn.items()}
    return {**kept, "train": sorted([*drawn["train"], *moved])}


def split_off(strata: Sequence[int], fractions: Mapping[Split, float], seed: int) -> dict[Split, list[int]]:
    """Places 0 .. N-1 dealt out to train and the splits of `fractions`, each in rising order.

    Law: of a class of n images a split gets n * fraction, rounded up or down; train gets at least one, so a single image is train's.
    What rounding owes to a split is carried over to the next class, so that many small classes are fair as well.
    """
    parts: dict[Split, float] = {"train": 1 - sum(fractions.values()), **fractions}
    owed = dict.fromkeys(parts, 0.0)
    dealt: dict[Split, list[int]] = {split: [] for split in parts}
    for members in _shuffled_by_stratum(strata, seed):
        for split, seats in _seats(len(members), parts, owed).items():
            dealt[split] += members[:seats]
            members = members[seats:]
    return {split: sorted(places) for split, places in dealt.items()}


def _seats(n: int, parts: Mapping[Split, float], owed: dict[Split, float]) -> dict[Split, int]:
    """How many of n images each split gets. `owed` is brought up to date in place."""
    if n == 1:
        return {"train": 1}
    seats = {split: int(n * part + 1e-9) for split, part in parts.items()}
    left = {split: n * part - seats[split] for split, part in parts.items()}
    for split in parts:
        owed[split] += left[split]
    rounded = [split for split in parts if left[split] > 1e-9]  # what comes out even is owed no more by this class
    first = sorted(rounded, key=lambda split: (split == "train" and seats[split] == 0, owed[split]), reverse=True)
    for split in first[: n - sum(seats.values())]:
        seats[split] += 1
        owed[split] -= 1
    return seats


def draw_per_class(labels: Sequence[tuple[int, ...]], k: int, seed: int) -> list[int]:
    """Places of k images of each class (all where it has fewer), in rising order. A larger k with the same seed holds the smaller."""
    return sorted(place for members in _shuffled_by_stratum(strata(labels), seed) for place in members[:k])


def draw_share(labels: Sequence[tuple[int, ...]], share: float, seed: int) -> list[int]:
    """Places of this share of the images of each class, of two at least (all where it has fewer), in rising order."""
    groups = _shuffled_by_stratum(strata(labels), seed)
    return sorted(place for members in groups for place in members[: max(2, round(share * len(members)))])


def strata(labels: Sequence[tuple[int, ...]]) -> list[int]:
    """The class by which an image is stratified: its label, the rarest of several, -1 for none."""
    counts = Counter(label for several in labels for label in several)
    return [min(several, key=lambda label: (counts[label], label), default=-1) for several in labels]


def _shuffled_by_stratum(strata: Sequence[int], seed: int) -> Iterator[list[int]]:
    # RandomState: numpy promises that its stream never changes between versions
    random = np.random.RandomState(seed)
    for members in _grouped(sorted(range(len(strata)), key=strata.__getitem__), strata.__getitem__):
        yield [members[i] for i in random.permutation(len(members))]


def _draw_note(missing: Mapping[Split, float], train: Examples, class_names: list[str], seed: int) -> str:
    parts = " and ".join(f"{split} ({fraction:.0%} of the images)" for split, fraction in missing.items())
    counts = Counter(strata(train.labels))
    single = [class_names[number] for number, count in sorted(counts.items()) if count == 1 and number >= 0]
    rest = f"; the only image of {shorten(single, most=5)} stays in train" if single else ""
    return f"split off train, stratified, by split_seed={seed}: {parts}{rest}"


def _class_notes(collection: Collection) -> list[str]:
    """A note for each split that lacks classes. Raises `UserError` where train lacks one that another split has."""
    counts = collection.counts
    notes = []
    for split in SPLITS[1:]:
        if strange := [name for name, count in counts[split].items() if count and not counts["train"][name]]:
            raise UserError(f"{split} has classes that train lacks: {shorten(strange, most=10)}")
        if absent := [name for name, count in counts["train"].items() if count and not counts[split][name]]:
            notes.append(f"{split} has no image of {shorten(absent, most=5)}")
    return notes


def _duplicate_notes(splits: Mapping[Split, Examples]) -> list[str]:
    contents = {split: examples.contents for split, examples in splits.items() if examples.contents is not None}
    if len(contents) < len(splits):
        return ["duplicates across splits were not looked for: the images of this data set cannot be told apart without decoding"]
    groups = find_duplicates(contents)
    if not groups:
        return []
    names = [" = ".join(map(_name, group)) for group in groups]
    return [f"duplicates across splits, byte for byte ({len(groups)}): {shorten(names, most=3)}"]


def _name(located: Located) -> str:
    split, place, content = located
    return shown(content) if isinstance(content, Path) else f"{split}[{place}]"


def find_duplicates(contents: Mapping[Split, Sequence[Content]]) -> list[list[Located]]:
    """Groups of images of the same bytes that lie in more than one split. Only those of one size are read, none is decoded."""
    everything = [(split, place, content) for split, several in contents.items() for place, content in enumerate(several)]
    same_size = filter(_crosses, _grouped(everything, lambda located: _size(located[2])))
    return [group for several in same_size for group in _grouped(several, lambda located: _digest(located[2])) if _crosses(group)]


def _crosses(group: Sequence[Located]) -> bool:
    return len({split for split, _, _ in group}) > 1


def _size(content: Content) -> int:
    return content.stat().st_size if isinstance(content, Path) else content.nbytes


def _digest(content: Content) -> bytes:
    if isinstance(content, Path):
        with content.open("rb") as file:
            return file_digest(file, "sha256").digest()
    return sha256(content.tobytes()).digest()


def _grouped(items: Sequence[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items of equal key together, in the order of their first."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
