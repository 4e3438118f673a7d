"""Assemble a data set in three splits: missing splits are made from train, and every class of val and test is in train."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ftlit.data.dataset import SPLITS, Collection, Examples, Split
from ftlit.data.splitting.duplicates import AskedOnce, Hashes, content_hashes, duplicate_notes
from ftlit.data.splitting.hash_split import ORDER, Parts, split_by_hash, unit_hash
from ftlit.data.splitting.stored_split import StoredSplit
from ftlit.errors import UserError, shorten
from ftlit.formatting import count, shown


@dataclass(frozen=True)
class SplitRule:
    """How images are distributed to the splits that a data set lacks.

    Args:
        fractions: of the training images, for val and test.
        seed: of the hashes; see `ftlit.data.splitting.hash_split`.
        stored: the split of a run: images of the run keep it.
        hashes: called with examples, returns the hash of each image, which identifies it under any name.
    """

    fractions: Mapping[Split, float]
    seed: int = 0
    stored: StoredSplit | None = None
    hashes: Hashes = content_hashes


def assemble(found: Mapping[Split, Examples], class_names: list[str], rule: SplitRule, *, multilabel: bool = False) -> Collection:
    """Assemble a checked collection. Missing val and test splits are made from train.

    Args:
        found: the splits of the data; train is required.
        class_names: class number -> name.
        rule: for missing val and test splits.
        multilabel: whether images have several labels.

    Raises:
        UserError: fewer than two classes, too few images to split, fractions out of range, a class in val or test that train lacks, a
            stored split that does not fit.
    """
    rule = replace(rule, hashes=AskedOnce(rule.hashes))
    if rule.stored is not None and rule.stored.is_whole:
        restored = rule.stored.restored(Collection(found, class_names, multilabel), rule.hashes)
        about_splits = _class_notes(restored)
        restored.notes.extend([*about_splits, *duplicate_notes(restored.splits, rule.hashes)])
        return replace(restored, split_notes=about_splits)
    if len(class_names) < 2 and not multilabel:
        raise UserError(f"the data have only {len(class_names)} class ({shorten(class_names)}): give at least two classes")
    missing = {split: rule.fractions[split] for split in ORDER if split not in found}
    if rule.stored is not None and not missing and not rule.stored.only_if_missing:
        raise UserError("data.split_from has no effect, because the data have val and test already: leave data.split_from out")
    splits, notes = ({split: found[split] for split in SPLITS}, []) if not missing else _with_missing(found, missing, rule, class_names)
    collection = Collection(splits, class_names, multilabel, notes, list(missing))
    notes += [*_class_notes(collection), *_group_notes(splits)]
    about_splits = list(notes)
    notes += duplicate_notes(splits, rule.hashes)
    return replace(collection, split_notes=about_splits)


def _too_few(empty: Sequence[Split], examples: int, different: int, classes: int, *, grouped: bool, stored: bool) -> UserError:
    """The error where splits that are made from train stay empty."""
    unit, copies = "group" if grouped else "example", different < examples and not grouped
    if grouped:
        why = [f"the {count(examples, 'example')} form only {count(different, 'group')}"]
    elif copies:
        only = "one" if different == 1 else f"only {different:,} different ones"
        why = [f"the {examples:,} examples are copies of {only}"]
    else:
        why = [f"the data have only {count(examples, 'example')}"]
    if classes and not stored:
        why.append(f"train needs one {unit} of each of the {classes:,} classes")
    reasons = ", and ".join(why)
    more = f"{'different ' if copies else ''}{unit}s{' of each class' if classes else ''}"
    return UserError(f"nothing is left for {' and '.join(empty)}, because {reasons}: add {more}")


def _with_missing(
    found: Mapping[Split, Examples], missing: Mapping[Split, float], rule: SplitRule, class_names: Sequence[str]
) -> tuple[dict[Split, Examples], list[str]]:
    """Return the splits of the data, with missing ones made from train, and notes."""
    if min(missing.values()) <= 0 or sum(missing.values()) >= 1:
        given = ", ".join(f"data.{split}_fraction={missing[split]}" for split in SPLITS if split in missing)
        raise UserError(f"{given}: each must be above 0, and their sum below 1")
    train = found["train"]
    hashes = rule.hashes(train)
    units = list(hashes) if train.groups is None else [group or image for group, image in zip(train.groups, hashes, strict=True)]
    known = {} if rule.stored is None else rule.stored.known(units, hashes)
    parts = split_by_hash(units, train.labels, missing, rule.seed, known)
    if empty := [split for split in SPLITS if split in parts.places and not parts.places[split]]:
        if rule.stored is not None and not (rule.stored.images["val"] or rule.stored.images["test"]):
            raise UserError(
                f"nothing is left for {' and '.join(empty)}, because all examples of the run {shown(rule.stored.folder)} were in train "
                "(final=true), and they stay there: add new examples, or give final=true to train on all of them again"
            )
        raise _too_few(
            empty, len(train), len(set(units)), len(class_names), grouped=train.groups is not None, stored=rule.stored is not None
        )
    splits = {split: train.subset(parts.places[split]) if split in parts.places else found[split] for split in SPLITS}
    by_hash = _split_note(parts, missing, train, class_names, rule.seed)
    if rule.stored is None:
        source = "train" if len(found) > 1 else f"the {len(train):,} examples"  # which may not lie in a folder `train`
        made = " and ".join(split for split in SPLITS if split in missing)
        return splits, [f"{made} taken from {source} by {by_hash}"]
    note = f"the split is that of the run {shown(rule.stored.folder)}; new examples are split by {by_hash}"
    others = {image for split, examples in found.items() if split not in parts.places for image in rule.hashes(examples)}
    return splits, [note, *rule.stored.notes(hashes, parts.places, others, grouped=train.groups is not None)]


def _split_note(parts: Parts, missing: Mapping[Split, float], train: Examples, class_names: Sequence[str], seed: int) -> str:
    shares = {split: len(parts.places[split]) / len(train) for split in SPLITS if split in missing}
    sizes = " and ".join(f"{split} {share:.0%} (asked: {missing[split]:.0%})" for split, share in shares.items())
    unit = "example" if train.groups is None else "group"
    counts = Counter(label for labels in train.labels for label in labels)
    single = [class_names[number] for number, count in sorted(counts.items()) if count == 1]
    rest = f"; classes with only one example keep it in train: {shorten(single, most=5)}" if single else ""
    moved = sorted({number for split, numbers in parts.moved.items() for number in numbers if number >= 0 and counts[number] > 1})
    if moved:
        named = shorten((class_names[number] for number in moved), most=5)
        rest += (
            f"; one {unit} of each of these classes was moved to a split that would lack the class, and may move again when data are "
            f"added: {named}"
        )
    return f"a hash of each {unit} (split_seed={seed}): {sizes}; {unit}s stay in their split when others are added{rest}"


def draw_per_class(examples: Examples, hashes: Sequence[str], k: int, seed: int) -> list[int]:
    """Return the indices of k images of each class (all if it has fewer), ascending.

    The images with the lowest hash of (seed, image) are chosen. An added image changes the choice only if its hash is lower than that of a
    chosen image of its class. A larger k with the same seed includes the images of a smaller one.

    Args:
        examples: the images.
        hashes: of each of them.
        k: images of each class.
        seed: of the hashes; they differ from the hashes that decide the split.
    """
    return sorted(place for members in _by_class(examples.labels, hashes, seed) for place in members[:k])


def draw_share(examples: Examples, hashes: Sequence[str], share: float, seed: int) -> list[int]:
    """Return the indices of this share of each class, at least two images (all if it has fewer), ascending; see `draw_per_class`."""
    groups = _by_class(examples.labels, hashes, seed)
    return sorted(place for members in groups for place in members[: max(2, round(share * len(members)))])


def _strata(labels: Sequence[tuple[int, ...]]) -> list[int]:
    """Return the class by which each image is stratified: its label, the rarest of several, -1 without labels."""
    counts = Counter(label for several in labels for label in several)
    return [min(several, key=lambda label: (counts[label], label), default=-1) for several in labels]


def _by_class(labels: Sequence[tuple[int, ...]], hashes: Sequence[str], seed: int) -> list[list[int]]:
    """Return the indices of the images of each class, in ascending order of the hash of (seed, image)."""
    members: dict[int, list[int]] = {}
    for place, number in enumerate(_strata(labels)):
        members.setdefault(number, []).append(place)
    return [sorted(places, key=lambda place: (unit_hash(seed, f"draw {hashes[place]}"), place)) for places in members.values()]


def _class_notes(collection: Collection) -> list[str]:
    """Return a note for each split that lacks classes. Raises `UserError` if train lacks a class of another split."""
    counts = collection.counts
    trained = [name for name, count in counts["train"].items() if count]
    notes = []
    for split in SPLITS[1:]:
        if unexpected := [name for name, count in counts[split].items() if count and name not in trained]:
            if alike := [name for name in trained if name.casefold() == unexpected[0].casefold()]:
                raise UserError(f"the class {unexpected[0]} of {split} is named {alike[0]} in train: give it one name in all splits")
            lost = shorten(unexpected, most=10)
            raise UserError(f"{split} has classes that train lacks ({lost}): add examples of them to train, or remove them from {split}")
        if absent := [name for name in trained if not counts[split][name]]:
            notes.append(f"{split} has no example of {shorten(absent, most=5)}")
    return notes


def _group_notes(splits: Mapping[Split, Examples]) -> list[str]:
    """Return a note on groups that have images in more than one split."""
    found: dict[str, list[Split]] = {}
    for split, examples in splits.items():
        for group in dict.fromkeys(filter(None, examples.groups or ())):
            found.setdefault(group, []).append(split)
    divided = [f"{group} ({', '.join(several)})" for group, several in found.items() if len(several) > 1]
    return [f"groups are in more than one split ({len(divided)}): {shorten(divided, most=3)}"] if divided else []
