"""List the image files of a folder, by its layout."""

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ftlit.data.bands import ARRAY_SUFFIX
from ftlit.data.source_paths import existing_folder
from ftlit.data.sources.folder_layout import CLASS, FileEntry, Layout, entries, find_layout, parse_layout, splits_of
from ftlit.data.sources.folder_tree import Folder, read_tree
from ftlit.errors import UserError, one_line, shorten
from ftlit.formatting import count, printable, shown

Listing = tuple[list[FileEntry], list[str]]  # files, and notes


def list_folder(root: str | Path, *, layout: str | None = None, group_pattern: str | None = None, arrays: bool = False) -> Listing:
    """List the files of a folder of class folders, sorted, with notes on files that are left out and on names with two meanings.

    Hidden files, files of file managers, files without the ending of an image, empty folders and folders of runs are left out.

    Args:
        root: the folder.
        layout: the meaning of each level of folders, such as `class`, `split/class`, `group/class` or `class/group`. `None`: class
            folders, or splits (`train`, `Training`, `valid`, `dev`, `test_set`, ...) with class folders in them. A folder `train` without
            folders in it, beside folders of images, is a class.
        group_pattern: regular expression, searched in the path of each file below `root`. The match of its first group, or of the whole
            expression if it has none, is the group of the file.
        arrays: whether `.npy` files are images.

    Raises:
        UserError: another structure, or an ambiguous one; a class without a file that has the ending of an image; a pattern that matches
            no path.
    """
    tree = read_tree(existing_folder(root), arrays=arrays)
    levels = find_layout(tree) if layout is None else parse_layout(layout)
    listed = list(entries(tree, levels))
    images = sum(len(folder.images) for folder in tree.all_folders())
    files, others = listed, list[FileEntry]()
    if images != sum(len(folder.names) for folder in tree.all_folders()):
        files, others = ([file for file in listed if tree.is_image(file.name) is kept] for kept in (True, False))
    _check_endings(listed, files, tree.data_sets if levels == CLASS else ())
    if not any(file.split == "train" for file in files):
        raise UserError(
            f"{shown(tree.path)} has no training images in the layout {'/'.join(levels)}: add a folder named train, or change data.layout"
        )
    notes = [*(_named_as_splits(tree, levels) if layout is None else []), *_notes(tree, levels, files, images)]
    if others:
        notes.append(f"files without an image extension are ignored ({len(others):,}): {_below(tree, [file.path for file in others])}")
    return (files, notes) if group_pattern is None else _grouped(files, tree.path, group_pattern, notes)


def list_unlabelled(root: str | Path, *, arrays: bool = False) -> Listing:
    """List all image files below a folder, by their suffix, sorted, without labels, in train. Raises `UserError` if there are none."""
    images = FolderImages(root, arrays=arrays)
    files = [FileEntry(folder.path, name, (), "train") for folder in images.tree.all_folders() for name in folder.images]
    return files, _run_notes(images.tree)


class FolderImages(Collection[Path]):
    """The paths of all image files below a folder, by their suffix, sorted; only their names are held.

    Args:
        root: the folder.
        arrays: whether `.npy` files are images.

    Raises:
        UserError: there are none.
    """

    def __init__(self, root: str | Path, *, arrays: bool = False) -> None:
        self.tree = read_tree(existing_folder(root), arrays=arrays)
        self._number = sum(map(self.tree.is_image, self.tree.all_names()))
        if not self._number:
            files, folders = sum(1 for _ in self.tree.all_names()), [shown(folder.name) for folder in self.tree.folders]
            others = count(files, "other file") if files or not folders else "empty folders"
            names = f"; its folders {shorten(folders, most=5)} hold no images" if folders and files else f" ({shorten(folders, most=5)})"
            raise UserError(
                f"{shown(self.tree.path)} has no image files, only {others}{names if folders else ''}: give a folder with images"
            )

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Path]:
        return (path for path in self.tree.all_files() if self.tree.is_image(path.name))

    def __contains__(self, path: object) -> bool:
        return any(path == other for other in self)


def _check_endings(listed: Sequence[FileEntry], files: Sequence[FileEntry], data_sets: Sequence[Folder]) -> None:
    """Reject a class that would vanish, because none of its files has the ending of an image; name the data sets beside it."""
    kept = {(file.split, file.labels) for file in files}
    if lost := {(file.split, file.labels): file for file in listed if (file.split, file.labels) not in kept}:
        names = shorten((shown(file.path) for file in lost.values()), most=3)
        are, folders = ("it is no class", "the folder") if len(lost) == 1 else ("they are no classes", "the folders")
        advice = f"convert images to .png, or move {folders} elsewhere if {are}"
        if data_sets:
            advice = f"did you mean {shorten((shown(folder.path) for folder in data_sets), most=3)}? If not, {advice}"
        if all(file.name.lower().endswith(ARRAY_SUFFIX) for file in lost.values()):
            advice = f"to read {ARRAY_SUFFIX} files as images with N bands (not 1 or 3), give backbone.in_chans=N"
        has = "class folder has" if len(lost) == 1 else "class folders have"
        raise UserError(f"{len(lost):,} {has} no file with the ending of an image, such as .jpg or .png (found: {names}): {advice}")


def _grouped(files: Sequence[FileEntry], root: Path, pattern: str, notes: list[str]) -> Listing:
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise UserError(
            f"data.group_pattern={pattern!r} is not a valid regular expression, {one_line(error)}: correct the pattern"
        ) from error
    matches = [search(printable(file.path.relative_to(root).as_posix())) for file in files]
    if not any(matches):
        such_as = shown(files[0].path.relative_to(root))
        raise UserError(
            f"data.group_pattern={pattern} matches none of the image paths: give a pattern that matches paths such as {such_as}"
        )
    if missed := [shown(file.path.relative_to(root)) for file, match in zip(files, matches, strict=True) if match is None]:
        which = f"{len(missed):,} of {len(files):,} images ({shorten(missed, most=3)})"
        notes = [*notes, f"data.group_pattern does not match the paths of {which}, so these images are in no group"]
    return [
        file._replace(group=None if match is None else match.group(1 if match.re.groups else 0))
        for file, match in zip(files, matches, strict=True)
    ], notes


def _notes(tree: Folder, levels: Layout, files: Sequence[FileEntry], images: int) -> list[str]:
    notes = _run_notes(tree)
    if empty := _empty(tree, len(levels)):
        notes.append(f"folders without files are ignored ({len(empty)}): {_below(tree, empty)}")
    if levels == CLASS and (nested := [inner for folder in tree.filled if not folder.images for inner in folder.filled]):
        notes.append(
            f"images in subfolders get the class of the class folder around them: {_below(tree, [folder.path for folder in nested])}"
        )
    if images > len(files):
        used = {file.path for file in files}
        unused = [path for path in tree.all_files() if path not in used and tree.is_image(path.name)]
        notes.append(f"images outside of the class folders are ignored ({len(unused):,}): {_below(tree, unused)}")
    return notes


def _named_as_splits(tree: Folder, levels: Layout) -> list[str]:
    """Return a note on classes that have the name of a split."""
    names = shorten(map(shown, splits_of(tree.filled)), most=5) if levels == CLASS else ""
    text = (
        f"folders named like splits ({names}) are read as classes, because there are other class folders beside them; "
        "to read them as splits, give data.layout=split/class"
    )
    return [text] if names else []


def _run_notes(tree: Folder) -> list[str]:
    runs = list(tree.all_runs())
    return [f"folders that hold runs of ftlit are ignored ({len(runs)}): {_below(tree, runs)}"] if runs else []


def _empty(tree: Folder, levels: int) -> list[Path]:
    """Return the folders without files on the levels of a layout, except those that hold runs."""
    found = []
    for folder in tree.folders:
        if not folder.is_empty:
            found += _empty(folder, levels - 1) if levels > 1 else []
        elif not any(folder.all_runs()):
            found.append(folder.path)
    return found


def _below(tree: Folder, paths: Sequence[Path]) -> str:
    return shorten((shown(path.relative_to(tree.path)) for path in paths), most=3)
