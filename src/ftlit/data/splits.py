"""Split a data set by seed, stratified, with every class in train; report duplicates across splits."""

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
ContentInSplit = tuple[Split, int, Content]  # split, index in it, file or array


def assemble(
    found: Mapping[Split, Examples], class_names: list[str], *, fractions: Mapping[Split, float], split_seed: int, multilabel: bool = False
) -> Collection:
    """A checked collection. Missing val and test splits are split off train.

    Args:
        found: the splits of the data; train is required.
        class_names: class number -> name.
        fractions: of the training images for missing val and test splits.
        split_seed: of this random split.
        multilabel: whether images have several labels.

    Raises:
        UserError: fewer than two classes, too few images to split, fractions out of range, a class in val or test that train lacks.
    """
    if len(class_names) < 2 and not multilabel:
        raise UserError(f"the data have {len(class_names)} class ({shorten(class_names)}): at least two are needed")
    missing = {split: fractions[split] for split in SPLITS if split not in found}
    parts = _split_missing(found["train"], missing, split_seed)
    splits = {split: found["train"].subset(parts[split]) if split in parts else found[split] for split in SPLITS}
    notes = [_split_note(missing, found["train"], class_names, split_seed)] if missing else []
    collection = Collection(splits, class_names, multilabel, notes)
    notes += [*_class_notes(collection), *_duplicate_notes(splits)]
    return collection


def _split_missing(train: Examples, missing: Mapping[Split, float], seed: int) -> dict[Split, list[int]]:
    if not missing:
        return {}
    if min(missing.values()) <= 0 or sum(missing.values()) >= 1:
        given = ", ".join(f"{split}_fraction={fraction}" for split, fraction in missing.items())
        raise UserError(f"{given}: each must be above 0 and all together below 1")
    parts = _with_all_classes_in_train(split_off(strata(train.labels), missing, seed), train.labels)
    if empty := [split for split in parts if not parts[split]]:
        raise UserError(f"{len(train)} images are too few to split off {' and '.join(missing)}: no image is left for {' and '.join(empty)}")
    return parts


def _with_all_classes_in_train(parts: dict[Split, list[int]], labels: Sequence[tuple[int, ...]]) -> dict[Split, list[int]]:
    """Move images with a label that train lacks to train: of several labels of an image, only the rarest is sure to be in train."""
    known = {label for place in parts["train"] for label in labels[place]}
    moved: set[int] = set()
    for place in sorted(place for split in parts if split != "train" for place in parts[split]):
        if not known.issuperset(labels[place]):
            known.update(labels[place])
            moved.add(place)
    kept = {split: [place for place in places if place not in moved] for split, places in parts.items()}
    return {**kept, "train": sorted([*parts["train"], *moved])}


def split_off(strata: Sequence[int], fractions: Mapping[Split, float], seed: int) -> dict[Split, list[int]]:
    """Distribute indices 0 .. N-1 to train and the splits of `fractions`, each in ascending order.

    Of a class of n images a split gets n * fraction, rounded up or down; train gets at least one, so a single image goes to train.
    The rounding error of a split is carried over to the next class, so that its total is right with many small classes too.
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
    """The number of n images that each split gets. `owed` is updated in place."""
    if n == 1:
        return {"train": 1}
    seats = {split: int(n * part + 1e-9) for split, part in parts.items()}
    left = {split: n * part - seats[split] for split, part in parts.items()}
    for split in parts:
        owed[split] += left[split]
    rounded = [split for split in parts if left[split] > 1e-9]  # without those that need no rounding
    first = sorted(rounded, key=lambda split: (split == "train" and seats[split] == 0, owed[split]), reverse=True)
    for split in first[: n - sum(seats.values())]:
        seats[split] += 1
        owed[split] -= 1
    return seats


def draw_per_class(labels: Sequence[tuple[int, ...]], k: int, seed: int) -> list[int]:
    """Indices of k images of each class (all if it has fewer), ascending. A larger k with the same seed includes those of a smaller one."""
    return sorted(place for members in _shuffled_by_stratum(strata(labels), seed) for place in members[:k])


def draw_share(labels: Sequence[tuple[int, ...]], share: float, seed: int) -> list[int]:
    """Indices of this share of the images of each class, at least two (all if it has fewer), ascending."""
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


def _split_note(missing: Mapping[Split, float], train: Examples, class_names: list[str], seed: int) -> str:
    parts = " and ".join(f"{split} ({fraction:.0%} of the images)" for split, fraction in missing.items())
    counts = Counter(strata(train.labels))
    single = [class_names[number] for number, count in sorted(counts.items()) if count == 1 and number >= 0]
    rest = f"; the only image of {shorten(single, most=5)} stays in train" if single else ""
    return f"split off train, stratified, by split_seed={seed}: {parts}{rest}"


def _class_notes(collection: Collection) -> list[str]:
    """A note for each split that lacks classes. Raises `UserError` if train lacks a class of another split."""
    counts = collection.counts
    notes = []
    for split in SPLITS[1:]:
        if unexpected := [name for name, count in counts[split].items() if count and not counts["train"][name]]:
            raise UserError(f"{split} has classes that train lacks: {shorten(unexpected, most=10)}")
        if absent := [name for name, count in counts["train"].items() if count and not counts[split][name]]:
            notes.append(f"{split} has no image of {shorten(absent, most=5)}")
    return notes


def _duplicate_notes(splits: Mapping[Split, Examples]) -> list[str]:
    contents = {split: examples.contents for split, examples in splits.items() if examples.contents is not None}
    if len(contents) < len(splits):
        return ["no search for duplicates across splits: the images of this data set cannot be compared without decoding"]
    groups = find_duplicates(contents)
    if not groups:
        return []
    names = [" = ".join(map(_name, group)) for group in groups]
    return [f"duplicates across splits, byte for byte ({len(groups)}): {shorten(names, most=3)}"]


def _name(entry: ContentInSplit) -> str:
    split, place, content = entry
    return shown(content) if isinstance(content, Path) else f"{split}[{place}]"


def find_duplicates(contents: Mapping[Split, Sequence[Content]]) -> list[list[ContentInSplit]]:
    """Groups of images with equal bytes in more than one split. Only images of equal size are read, none is decoded."""
    everything = [(split, place, content) for split, several in contents.items() for place, content in enumerate(several)]
    same_size = filter(_crosses, _grouped(everything, lambda entry: _size(entry[2])))
    return [group for several in same_size for group in _grouped(several, lambda entry: _digest(entry[2])) if _crosses(group)]


def _crosses(group: Sequence[ContentInSplit]) -> bool:
    return len({split for split, _, _ in group}) > 1


def _size(content: Content) -> int:
    return content.stat().st_size if isinstance(content, Path) else content.nbytes


def _digest(content: Content) -> bytes:
    if isinstance(content, Path):
        with content.open("rb") as file:
            return file_digest(file, "sha256").digest()
    return sha256(content.tobytes()).digest()


def _grouped(items: Sequence[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Group items by key, in the order of first occurrence."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
