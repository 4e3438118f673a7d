"""The layout of a folder of images: the levels of folders that are splits, classes, and groups such as days or patients."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ftlit.data.dataset import SPLITS, Split
from ftlit.data.sources.folder_tree import Folder
from ftlit.data.splitting.split_names import SPLIT_WORDS, is_filler, split_named, words_of
from ftlit.errors import UserError, shorten, unknown
from ftlit.formatting import count, printable, shown

Layout = tuple[str, ...]  # the meaning of each level of folders, from the top
LEVELS = ("class", "split", "group")
SPLIT_CLASS, CLASS = ("split", "class"), ("class",)
PLAIN_NAMES = ("train", "val", "valid", "validation", "test")


class FileEntry(NamedTuple):
    """An image file with the names of its labels, its split and its group, if any. Labels are valid UTF-8 even where the path is not.

    Args:
        folder: of the file; all files in it share this path.
        name: of the file in its folder.
        labels: names of its classes.
        split: train, val or test.
        group: name of its group.
    """

    folder: Path
    name: str
    labels: tuple[str, ...]
    split: Split
    group: str | None = None

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.folder / self.name


def parse_layout(text: str) -> Layout:
    """Parse a layout such as `group/class`. Raises `UserError` for an unknown level, and unless exactly one level is `class`."""
    levels = tuple(level.strip() for level in text.strip("/").split("/"))
    for level in levels:
        if level not in LEVELS:
            raise unknown("level", level, LEVELS, owner="data.layout")
    if levels.count("class") != 1 or levels.count("split") > 1:
        level = "class" if levels.count("class") != 1 else "split"
        has = f"has the level {level} {levels.count(level)} times" if level in levels else f"lacks the level {level}"
        needed = "exactly once" if level == "class" else "at most once"
        raise UserError(
            f"data.layout={text} {has}: give it {needed}, such as data.layout=class, data.layout=split/class or data.layout=group/class"
        )
    return levels


def find_layout(tree: Folder) -> Layout:
    """Find the layout of a folder from its whole tree.

    Raises:
        UserError: no class folders, splits without train or beside other folders, or an ambiguous structure.
    """
    _check_has_classes(tree)
    if (named := splits_of(tree.filled)) and _are_splits(tree, named):
        _check_splits(tree, named)
        for _, folder in named.values():
            _check_classes(descended(folder), ("split",))
        return SPLIT_CLASS
    _check_root(tree)
    _check_classes(tree, ())
    return CLASS


def splits_of(folders: Sequence[Folder]) -> dict[str, tuple[Split, Folder]]:
    """Return name -> (split, folder) for the folders that have the name of a split."""
    common = set.intersection(*({*words_of(folder.name)} for folder in folders)) - SPLIT_WORDS.keys() if folders else set()
    pairs = {folder.name: (split_named(folder.name, common=common), folder) for folder in folders}
    return {name: (split, folder) for name, (split, folder) in pairs.items() if split is not None}


def descended(folder: Folder) -> Folder:
    """Return the folder, or its only subfolder if that has the same name or one such as `images`, as in many published archives."""
    while not folder.images and len(folder.filled) == 1 and len((inner := folder.filled[0]).filled) > 1:
        if inner.name != folder.name and not is_filler(inner.name):
            break
        folder = inner
    return folder


def entries(tree: Folder, layout: Layout) -> Iterator[FileEntry]:
    """Yield the files of a tree in a layout, without files above its lowest level. All are train if the layout has no level `split`."""
    yield from _below(tree, layout, FileEntry(tree.path, "", (), "train"))


def _below(folder: Folder, levels: Layout, found: FileEntry) -> Iterator[FileEntry]:
    if not levels:
        yield from (FileEntry(inner.path, name, *found[2:]) for inner in folder.all_folders() for name in inner.names)
        return
    level, rest = levels[0], levels[1:]
    if level == "split":
        named = sorted(splits_of(folder.filled).values(), key=lambda pair: SPLITS.index(pair[0]))
        for split, inner in named:
            yield from _below(descended(inner) if rest == CLASS else inner, rest, found._replace(split=split))
        return
    for inner in folder.filled:
        if level == "class":
            yield from _below(inner, rest, found._replace(labels=(printable(inner.name),)))
        else:
            yield from _below(inner, rest, found._replace(group="/".join(filter(None, (found.group, printable(inner.name))))))


def _are_splits(tree: Folder, named: Mapping[str, tuple[Split, Folder]]) -> bool:
    """Whether folders with the names of splits are splits; classes may be called `train` or `dev` too.

    They are splits if one of them contains folders, or if one has a usual name and they outnumber the other folders of images.
    """
    if any(folder.filled for _, folder in named.values()):
        return True
    beside = [folder for folder in tree.filled if folder.name not in named and folder.images]
    return len(named) > len(beside) and any(name.lower() in PLAIN_NAMES for name in named)


def _check_splits(tree: Folder, named: Mapping[str, tuple[Split, Folder]]) -> None:
    """Reject splits without train, two folders of one split, and other folders with images beside them."""
    of_split: dict[Split, list[str]] = {}
    for name, (split, _) in named.items():
        of_split.setdefault(split, []).append(shown(name))
    all_classes = "if all these folders are classes, give data.layout=class"
    if "train" not in of_split:
        raise UserError(
            f"{shown(tree.path)} has no folder train, only {shorten(shown(folder.name) for folder in tree.filled)}: rename the folder with "
            f"the training images to train; {all_classes}"
        )
    if twice := next((split for split, names in of_split.items() if len(names) > 1), None):
        raise UserError(
            f"{shown(tree.path)} has {len(of_split[twice])} folders for the split {twice} ({', '.join(of_split[twice])}): move their "
            f"images into one folder; {all_classes}"
        )
    others = [shown(folder.name) for folder in tree.filled if folder.name not in named and any(map(tree.is_image, folder.all_names()))]
    if others:
        raise UserError(
            f"{shown(tree.path)} has folders of splits ({', '.join(map(shown, named))}) and others ({shorten(others, most=3)}): give "
            "data.layout=split/class to ignore the other folders, data.layout=class if all these folders are classes, or rename folders of "
            "splits to train, val or test"
        )


def _check_root(tree: Folder) -> None:
    """Reject a root that is one level too high, and classes that contain splits."""
    inside = [folder for folder in tree.filled if _holds_splits(folder)]
    if len(inside) > 1 and all(not inner.filled for folder in inside for inner in folder.filled):
        such_as = shown(inside[0].path)
        raise UserError(f"{shown(tree.path)} has splits inside its class folders, such as in {such_as}: set data.layout=class/split")
    deepest = _branching(tree)
    if inside or deepest is not tree:
        deeper = shown((inside or [deepest])[0].path)
        raise UserError(f"{shown(tree.path)} has neither class folders nor the folders train, val and test: did you mean {deeper}?")


def _holds_splits(folder: Folder) -> bool:
    splits = {split for split, _ in splits_of(folder.filled).values()}
    return "train" in splits or len(splits) > 1


def _check_classes(folder: Folder, above: Layout) -> None:
    """Reject folders most of which have subfolders of the same names: either level may be the classes."""
    _check_has_classes(folder, above)
    shared = _shared_names(folder.filled) or _shared_names([_branching(inner) for inner in folder.filled])
    if not shared:
        return
    upper = shorten((shown(inner.name) for inner in folder.filled), most=5)
    lower = (*above, *["group"] * (_depth(folder) - 1), "class")
    lowest = shorten(sorted(_names_at(folder, _depth(folder))), most=5)
    alone = "" if above or not folder.data_sets else f". If only {shown(folder.data_sets[0].path)} is the data set: give this folder"
    raise UserError(
        f"{shown(folder.path)} has two levels of folders, and either may be the classes. If the classes are {lowest}: give "
        f"data.layout={'/'.join(lower)}. If the classes are {upper}: give data.layout={'/'.join((*above, 'class'))}, or "
        f"data.layout={'/'.join((*above, 'class', 'group'))} to keep the images of each subfolder in one split{alone}"
    )


def _check_has_classes(folder: Folder, above: Layout = ()) -> None:
    if not folder.filled:
        files = len(list(folder.all_names()))
        if folder.folders and not folder.images:
            lowest = [inner.path.relative_to(folder.path) for inner in folder.all_folders() if inner is not folder and not inner.folders]
            names = shorten(map(shown, lowest), most=5)
            raise UserError(f"the folders in {shown(folder.path)} ({names}) hold no images: put the images of each class into its folder")
        advice = "make one folder per class"
        if above:
            advice += f", or give data.layout=class if {shown(folder.name)} is itself a class"
        elif _is_class_folder(folder):
            advice = f"did you mean {shown(os.path.normpath(folder.path / '..'))}?"
        raise UserError(f"{shown(folder.path)} has {count(files, 'file')} and no class folders: {advice}")


def _is_class_folder(folder: Folder) -> bool:
    """Whether a folder and most of those beside it hold images, as the folders of classes do."""
    path = folder.path.absolute()
    with suppress(OSError):
        others = [other for other in path.parent.iterdir() if other.is_dir() and other.name != path.name and other.name[0] != "."]
        with_images = sum(any(folder.is_image(file.name) for file in other.iterdir()) for other in others)
        return bool(folder.images) and 2 * with_images > len(others)
    return False


def _shared_names(folders: Sequence[Folder]) -> list[str]:
    """Return the names of subfolders that several of these folders have.

    Empty unless more than half of the folders have subfolders, at least half of the subfolders have such a name, and there are two names.
    """
    holding = [folder for folder in folders if folder.filled and not folder.images]
    counts = Counter(inner.name for outer in holding for inner in outer.filled)
    shared = sorted(name for name, count in counts.items() if count > 1)
    most = 2 * len(holding) > len(folders) and 2 * sum(counts[name] for name in shared) >= sum(counts.values())
    return shared if most and len(counts) > 1 else []


def _branching(folder: Folder) -> Folder:
    """Return the first folder, from this one down, that has several subfolders; this one if there is none."""
    inner = folder
    while not inner.images and len(inner.filled) == 1:
        inner = inner.filled[0]
    return inner if len(inner.filled) > 1 else folder


def _depth(folder: Folder) -> int:
    """Return the number of levels of folders down to the first with images."""
    inner = folder.filled[0]
    return 1 if inner.images or not inner.filled else 1 + _depth(inner)


def _names_at(folder: Folder, depth: int) -> set[str]:
    """Return the names of the folders this number of levels below."""
    return {shown(folder.name)} if depth == 0 else {name for inner in folder.filled for name in _names_at(inner, depth - 1)}
