"""A folder of images as a tree, without hidden files, files of file managers and folders of runs."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from PIL import Image

from ftlit.data.bands import ARRAY_SUFFIX
from ftlit.errors import UserError, one_line
from ftlit.formatting import shown
from ftlit.run_folder import FIGURES, FOLDERS, REPORT, is_run_folder

IGNORED_NAMES = {"thumbs.db", "desktop.ini", "__macosx"}  # of file managers, besides names that start with a dot


@dataclass(frozen=True)
class Folder:
    """A folder with the files and folders in it, sorted by name.

    Args:
        path: of the folder.
        names: of the files directly in it; paths would take five times the memory.
        folders: in it, without folders of runs.
        runs: folders of runs in it.
        arrays: whether `.npy` files are images.
    """

    path: Path
    names: list[str] = field(default_factory=list)
    folders: list["Folder"] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    arrays: bool = False

    def is_image(self, name: str) -> bool:
        """Whether a file has the suffix of an image."""
        return is_image_name(name) or (self.arrays and name.lower().endswith(ARRAY_SUFFIX))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name

    def all_folders(self) -> Iterator["Folder"]:
        """It and all folders below."""
        yield self
        for folder in self.folders:
            yield from folder.all_folders()

    def all_files(self) -> Iterator[Path]:
        """All files in it and below."""
        return (folder.path / name for folder in self.all_folders() for name in folder.names)

    def all_names(self) -> Iterator[str]:
        """The names of all files in it and below."""
        return (name for folder in self.all_folders() for name in folder.names)

    def all_runs(self) -> Iterator[Path]:
        """All folders of runs in it and below."""
        yield from self.runs
        for folder in self.folders:
            yield from folder.all_runs()

    @cached_property
    def is_empty(self) -> bool:
        """Whether it and the folders below have no file, or, if they hold runs, no image: loggers write files beside runs."""
        names = self.all_names()
        return not any(map(self.is_image, names)) if any(self.all_runs()) else next(names, None) is None

    @cached_property
    def filled(self) -> list["Folder"]:
        """The folders in it that are not empty."""
        return [folder for folder in self.folders if not folder.is_empty]

    @property
    def data_sets(self) -> list["Folder"]:
        """The folders in it that look like data sets themselves: they hold at least two folders of images."""
        return [folder for folder in self.filled if sum(bool(inner.images) for inner in folder.filled) > 1]

    @cached_property
    def images(self) -> list[str]:
        """The names of the files directly in it that have the suffix of an image."""
        return [name for name in self.names if self.is_image(name)]


def is_image_name(name: str) -> bool:
    """Whether a file has the suffix of an image."""
    dot = name.rfind(".")
    return dot > 0 and _is_image_suffix(name[dot:])


@lru_cache
def _is_image_suffix(suffix: str) -> bool:
    return suffix.lower() in Image.registered_extensions()


def read_tree(root: Path, *, arrays: bool = False) -> Folder:
    """Read the tree below a folder. Links are followed, except to a folder that contains them. Raises `UserError` if one cannot be read.

    Args:
        root: the folder.
        arrays: whether `.npy` files are images.
    """
    try:
        return _read(root, (), arrays)
    except OSError as error:
        raise UserError(f"{shown(error.filename or root)} cannot be listed: {error.strerror or one_line(error)}") from error


def _read(path: Path, above: tuple[tuple[int, int], ...], arrays: bool) -> Folder:
    status = path.stat()
    above = (*above, (status.st_dev, status.st_ino))
    tree = Folder(path, arrays=arrays)
    with os.scandir(path) as entries:
        names = sorted((entry.name, entry.is_dir()) for entry in entries if not _is_ignored(entry.name))
    with_runs = []
    for name, is_folder in names:
        if not is_folder:
            tree.names.append(name)
        elif is_run_folder(inner := path / name):
            with_runs.append(inner)
        elif not _lies_in(inner, above):
            tree.folders.append(_read(inner, above, arrays))
    _add_runs(tree, with_runs, above)
    return tree if not is_run_folder(path) else _without_run(tree)


def _add_runs(tree: Folder, with_runs: Sequence[Path], above: tuple[tuple[int, int], ...]) -> None:
    """Add the folders that hold runs to `runs`, or to `folders` if they hold images at the same level as a folder beside them."""
    depths = set().union(*map(_depths, tree.folders))
    for path in with_runs:
        if depths and not _lies_in(path, above) and _depths(inner := _read(path, above, tree.arrays)) & depths:
            tree.folders.append(inner)
        else:
            tree.runs.append(path)
    tree.folders.sort(key=lambda folder: folder.name)


def _depths(folder: Folder) -> set[int]:
    """Return the levels at which a folder holds images: 0 directly in it, 1 in its subfolders."""
    return {depth for depth, holds in ((0, folder.images), (1, any(inner.images for inner in folder.folders))) if holds}


def _without_run(tree: Folder) -> Folder:
    """Return a folder without the files and subfolders of the run in it."""
    own = [folder.path for folder in tree.folders if _is_of_run(folder)]
    images = [name for name in tree.images if name not in FIGURES]
    return Folder(tree.path, images, [folder for folder in tree.folders if folder.path not in own], [*tree.runs, *own], tree.arrays)


def _is_of_run(folder: Folder) -> bool:
    """Whether a subfolder of a run's folder belongs to the run. One that holds images is a class, unless it is the report."""
    return folder.name in FOLDERS and (not folder.images or REPORT in folder.names)


def _lies_in(folder: Path, above: tuple[tuple[int, int], ...]) -> bool:
    status = folder.stat()
    return (status.st_dev, status.st_ino) in above


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED_NAMES
