"""Folders and csv files that a data source reads: they exist, or the error names the closest match. Without torch, see `early_checks`."""

from pathlib import Path

from ftlit.errors import UserError, closest_path, shorten
from ftlit.formatting import shown


def existing_folder(path: str | Path) -> Path:
    """The folder, with `~` expanded. Raises `UserError` if there is none."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise _missing("folder", folder)
    return folder


def existing_csv(path: str | Path) -> Path:
    """The csv file, with `~` expanded. Raises `UserError` if there is none."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise _missing("csv file", file)
    return file


def _missing(what: str, path: Path) -> UserError:
    if path.exists():
        return UserError(f"{shown(path)} is not a {what}: give the path of a {what}")
    if not path.parent.is_dir():
        missing = next(folder for folder in path.parents if folder.parent.is_dir())  # the highest that is no folder
        return UserError(f"there is no {what} {shown(path)}, because {_missing('folder', missing)}")
    accepts = Path.is_dir if what == "folder" else Path.is_file
    beside = sorted(shown(other.name) for other in path.parent.iterdir() if accepts(other))
    parent = path.parent if path.parent.parts else path.parent.absolute()  # the current folder has no name to show
    name, folder, plural = shown(path.name), shown(parent), f"{what.split()[-1]}s"
    if not beside:
        return UserError(f"{folder} has no {what} {name!r}, and no other {plural}: correct the path")
    near = closest_path(path, accepts)
    hint = f"did you mean {shown(near.name)!r}? The {plural} there are" if near else f"give one of the {plural}"
    return UserError(f"{folder} has no {what} {name!r}: {hint} {shorten(beside)}")
