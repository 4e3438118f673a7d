"""A folder of images as a tree, without hidden files, files of file managers and folders of runs."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from ftlit.data.images import shown
from ftlit.errors import UserError, one_line

IGNORED_NAMES = {"thumbs.db", "desktop.ini", "__macosx"}  # of file managers, besides names that start with a dot
# files of the folders of runs, sweeps, and recipes that only measure: no folder that holds one is a class
RUN_FILES = {"config.yaml", "multirun.yaml", "advice.json", "lr_find.csv"}


@dataclass(frozen=True)
class Folder:
    """A folder with the files and folders in it, sorted by name.

    Args:
        path: of the folder.
        files: directly in it.
        folders: in it, without folders of runs.
        runs: folders of runs in it.
    """

    path: Path
    files: list[Path] = field(default_factory=list)
    folders: list["Folder"] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name

    def all_files(self) -> Iterator[Path]:
        """All files in it and below."""
        yield from self.files
        for folder in self.folders:
            yield from folder.all_files()

    def all_runs(self) -> Iterator[Path]:
        """All folders of runs in it and below."""
        yield from self.runs
        for folder in self.folders:
            yield from folder.all_runs()

    @cached_property
    def is_empty(self) -> bool:
        """Whether there is no file in it or below."""
        return not self.files and all(folder.is_empty for folder in self.folders)

    @cached_property
    def filled(self) -> list["Folder"]:
        """The folders in it that are not empty."""
        return [folder for folder in self.folders if not folder.is_empty]

    @property
    def images(self) -> list[Path]:
        """The files directly in it that have the suffix of an image."""
        return [path for path in self.files if is_image_name(path)]


def is_image_name(path: Path) -> bool:
    """Whether a path has the suffix of an image."""
    return path.suffix.lower() in Image.registered_extensions()


def read_tree(root: Path) -> Folder:
    """The tree below a folder. Links are followed, except to a folder that they lie in. Raises `UserError` for one that cannot be read."""
    try:
        return _read(root, ())
    except OSError as error:
        raise UserError(f"{shown(error.filename or root)} cannot be listed: {error.strerror or one_line(error)}") from error


def _read(path: Path, above: tuple[tuple[int, int], ...]) -> Folder:
    status = path.stat()
    above = (*above, (status.st_dev, status.st_ino))
    tree = Folder(path)
    with os.scandir(path) as entries:
        names = sorted((entry.name, entry.is_dir()) for entry in entries if not _is_ignored(entry.name))
    for name, is_folder in names:
        inner = path / name
        if not is_folder:
            tree.files.append(inner)
        elif _is_run(inner):
            tree.runs.append(inner)
        elif not _lies_in(inner, above):
            tree.folders.append(_read(inner, above))
    return tree


def _lies_in(folder: Path, above: tuple[tuple[int, int], ...]) -> bool:
    status = folder.stat()
    return (status.st_dev, status.st_ino) in above


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in RUN_FILES)


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED_NAMES
