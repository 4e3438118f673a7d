"""Folders and csv files that a data source reads: they exist, or the error names the closest match. Without torch, see `early_checks`."""

from pathlib import Path

from ftlit.errors import UserError, unknown
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
        return UserError(f"the path {shown(path)} cannot be followed: {_missing('folder', missing)}")
    beside = sorted(shown(other.name) for other in path.parent.iterdir() if other.is_dir() == (what == "folder"))
    if not beside:
        return UserError(
            f"no {what} {shown(path.name)!r} in {shown(path.parent.absolute())}, which has no {what.split()[-1]}s: correct the path"
        )
    return UserError(f"{unknown(what, shown(path.name), beside)} (in {shown(path.parent.absolute())})")
