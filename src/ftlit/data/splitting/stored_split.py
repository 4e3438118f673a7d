"""The split of a run: hashes of the images that were in train, val and test."""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftlit.data.dataset import SPLITS, Collection, Examples, Split
from ftlit.data.file_paths import are_files, texts_of
from ftlit.data.splitting.gathered import gathered
from ftlit.errors import UserError, shorten
from ftlit.formats import read_json, reading, write_json
from ftlit.formatting import count, printable, shown

FILE = "split.json"
REMEDY = "give the folder of another run as data.split_from=..., or start a new run"
Place = tuple[Split, int]  # where an image is in the data


class StoredSplit:
    """The split that a run stored in its folder.

    Args:
        folder: of the run.
        class_names: class number -> name.
        images: split -> hash, class numbers and name of each image.
        is_whole: whether the data set must consist of exactly these images, as in a resumed run; otherwise new images are split by their
            hashes.
        may_change: of a resumed run, the splits whose files may have another content now: those that training has not read.
        grouped: whether the run kept groups of images together.
        only_if_missing: whether data that come in three splits may do without this one; otherwise it is an error that it has no effect.
    """

    def __init__(
        self,
        folder: Path,
        class_names: list[str],
        images: Mapping[Split, Sequence[tuple[str, tuple[int, ...], str]]],
        *,
        is_whole: bool,
        may_change: Sequence[Split] = (),
        grouped: bool = False,
        only_if_missing: bool = False,
    ) -> None:
        self.folder, self.class_names, self.images, self.only_if_missing = folder, class_names, images, only_if_missing
        self.is_whole, self.may_change, self.grouped = is_whole, may_change, grouped
        # copies in several splits count as train: the run has trained on this content
        self.split_of: dict[str, Split] = {image: split for split in reversed(SPLITS) for image, _, _ in images[split]}

    def known(self, units: Sequence[str], hashes: Sequence[str]) -> dict[str, Split]:
        """Return unit -> split for units (see `hash_split`) with an image of the run; train if the images were in several splits."""
        known: dict[str, Split] = {}
        for unit, image in zip(units, hashes, strict=True):
            if image in self.split_of:
                split = self.split_of[image]
                known[unit] = split if known.get(unit, split) == split else "train"
        return known

    def notes(self, hashes: Sequence[str], places: Mapping[Split, Sequence[int]], given: Set[str], *, grouped: bool) -> list[str]:
        """Describe how many images keep the split of the run, how many have another one, and how many are gone; and lost groups.

        Args:
            hashes: of the images.
            places: split -> indices of the images that were split off to it.
            given: hashes of the images in the splits that the data give.
            grouped: whether these images have groups.
        """
        lost = (
            f"the run {shown(self.folder)} kept groups of examples together, but these data have no groups, so a new example may be in "
            "another split than the rest of its group: give that run's data.group_pattern, data.layout or data.group_column too"
        )
        return [self._counts(hashes, places, given), *([lost] if self.grouped and not grouped else [])]

    def _counts(self, hashes: Sequence[str], places: Mapping[Split, Sequence[int]], given: Set[str]) -> str:
        splits = [(split, self.split_of.get(hashes[place])) for split, several in places.items() for place in several]
        kept, moved = (sum(old is not None and (old == new) is same for new, old in splits) for same in (True, False))
        gone = len(self.split_of.keys() - {*hashes, *given})
        if gone == len(self.split_of):
            return (
                f"none of the {gone:,} examples of the run {shown(self.folder)} are in these data, so nothing of its split is kept, and a "
                "head is fitted on these data alone: to continue with old and new examples, put both into one data set"
            )
        are = "is" if moved == 1 else "are"
        rest = f"; {moved:,} {are} in another split now, because the data give that split, or a group is kept together" if moved else ""
        rest += f"; {count(gone, 'example')} of that run {'is' if gone == 1 else 'are'} not in the data" if gone else ""
        new = len(splits) - kept - moved
        added = f"{new:,} {'is' if new == 1 else 'are'} new"
        return f"{kept:,} of {len(hashes):,} examples are in the same split as in the run {shown(self.folder)}, {added}{rest}"

    def restored(self, found: Collection, hashes: Callable[[Examples], Sequence[str]]) -> Collection:
        """Return the images of the run, in its splits and order. New images are left out, with a note; so is, where that may be, that the
        content of a file has changed.

        Raises:
            UserError: images of the run are gone or changed, or have other labels now.
        """
        pool: dict[tuple[str, frozenset[str]], deque[Place]] = defaultdict(deque)
        for split, examples in found.splits.items():
            for place, image in enumerate(hashes(examples)):
                pool[image, frozenset(found.class_names[label] for label in examples.labels[place])].append((split, place))
        kept = {split: [self._taken(pool, *entry) for entry in self.images[split]] for split in SPLITS}
        changed = self._take_changed(found, kept, pool)
        self._check_gone(kept, pool)
        splits = {split: self._examples(found, split, kept[split]) for split in SPLITS}
        new = [_shown(split, _name(found.splits[split], place)) for places in pool.values() for split, place in places]
        notes = (
            [f"the resumed run keeps the examples that it began with; new ones are ignored ({len(new)}): {shorten(new, most=3)}"]
            if new
            else []
        )
        if changed:
            names = shorten(changed, most=3)
            notes.append(f"files have changed since the run began ({len(changed)}), but training has not used any of them so far: {names}")
        return Collection(splits, self.class_names, found.multilabel, notes)

    def _taken(self, pool: "Mapping[Any, deque[Place]]", image: str, labels: tuple[int, ...], _: str) -> "Place | None":
        places = pool.get((image, frozenset(self.class_names[label] for label in labels)))
        return places.popleft() if places else None

    def _take_changed(self, found: Collection, kept: Mapping[Split, list[Any]], pool: Mapping[Any, "deque[Place]"]) -> list[str]:
        """Take the files of `may_change` that have another content now, by name; not one with the content of another image of the run."""
        left: dict[tuple[str, frozenset[str]], tuple[deque[Place], Place]] = {}
        for (image, labels), places in pool.items() if self.may_change else ():
            for origin, place in places if image not in self.split_of else ():
                contents = found.splits[origin].contents
                if contents is not None and isinstance(contents[place], Path):
                    left[_name(found.splits[origin], place), labels] = places, (origin, place)
        changed = []
        for split in self.may_change:
            for i, (_, numbers, name) in enumerate(self.images[split]):
                key = name, frozenset(self.class_names[label] for label in numbers)
                if kept[split][i] is None and key in left:
                    places, kept[split][i] = left.pop(key)
                    places.remove(kept[split][i])
                    changed.append(name)
        return changed

    def _check_gone(self, kept: Mapping[Split, Sequence[Any]], pool: Mapping[tuple[str, frozenset[str]], Any]) -> None:
        """Raise `UserError` if images of the run are gone or have other labels."""
        gone = [
            (image, _shown(split, name))
            for split in SPLITS
            for (image, _, name), place in zip(self.images[split], kept[split], strict=True)
            if place is None
        ]
        if not gone:
            return
        left = {image for (image, _), places in pool.items() if places}
        relabelled = [name for image, name in gone if image in left]
        lost = [name for image, name in gone if image not in left]
        parts = [f"{count(len(lost), 'example')} missing or changed ({shorten(lost, most=3)})"] if lost else []
        parts += [f"{count(len(relabelled), 'example')} with other labels ({shorten(relabelled, most=3)})"] if relabelled else []
        raise UserError(
            f"resume=true needs the examples and labels that the run began with, but found {' and '.join(parts)}: restore them, or start a "
            f"new run with data.split_from={shown(self.folder)} to keep the split"
        )

    def _examples(self, found: Collection, split: Split, places: Sequence[Any]) -> Examples:
        """Return the examples of a split, from their present places, with the class numbers of the run."""
        origins = list(found.splits)
        examples = gathered([*found.splits.values()], [(origins.index(origin), place) for origin, place in places])
        return replace(examples, labels=[numbers for _, numbers, _ in self.images[split]])


def write_split(folder: str | Path, collection: Collection, hashes: Mapping[Split, Sequence[str]]) -> None:
    """Write the split of a run into its folder."""
    splits = {
        split: {
            "hashes": [str(image) for image in hashes[split]],
            "labels": [list(labels) for labels in examples.labels],
            "names": _names(examples),
        }
        for split, examples in collection.splits.items()
    }
    grouped = any(examples.groups is not None for examples in collection.splits.values())
    write_json(Path(folder, FILE), {"class_names": collection.class_names, "grouped": grouped, "splits": splits}, indent=None)


def read_split(
    folder: str | Path,
    *,
    is_whole: bool = False,
    may_change: Sequence[Split] = (),
    only_if_missing: bool = False,
    name: str | None = None,
) -> StoredSplit:
    """Read the split that a run stored, see `StoredSplit`.

    Args:
        folder: of the run, or a copy of it.
        is_whole: see `StoredSplit`.
        may_change: see `StoredSplit`.
        only_if_missing: see `StoredSplit`.
        name: of the run in messages; `None`: the folder.

    Raises:
        UserError: there is none, or it is damaged or written by a newer program.
    """
    path = Path(folder).expanduser() / FILE
    if not path.is_file():
        raise UserError(f"data.split_from={shown(folder)} has no {FILE}: give the folder of a run")
    with reading(path, REMEDY):
        content = read_json(path, remedy=REMEDY)
        images = {split: _entries(content["splits"][split]) for split in SPLITS}
        names, grouped = [str(name) for name in content["class_names"]], bool(content.get("grouped"))  # earlier versions did not write it
        how: dict[str, Any] = {"is_whole": is_whole, "may_change": may_change, "grouped": grouped, "only_if_missing": only_if_missing}
        return StoredSplit(path.parent if name is None else Path(name), names, images, **how)


def _entries(stored: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...], str]]:
    columns = stored["hashes"], [tuple(map(int, labels)) for labels in stored["labels"]], stored["names"]
    return list(zip(*columns, strict=True))


def _shown(split: Split, name: str) -> str:
    """The name of an example for a message: one without a file is named by its number."""
    return f"number {name} of {split}" if name.isdecimal() else name


def _names(examples: Examples) -> list[str]:
    if are_files(examples.contents):
        return list(map(printable, texts_of(examples.contents)))
    return [_name(examples, place) for place in range(len(examples))]


def _name(examples: Examples, place: int) -> str:
    content = None if examples.contents is None else examples.contents[place]
    return printable(str(content)) if isinstance(content, Path) else str(place)
