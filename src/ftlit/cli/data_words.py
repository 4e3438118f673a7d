"""A folder or a csv file in place of the words that choose it as data: `ftlit train photos`."""

import csv
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from ftlit.errors import UserError
from ftlit.formatting import shell_word

COLUMNS = {"path": "csv", "text": "text_csv"}  # column of a csv file -> the option of data that reads it


def set_data(words: Sequence[str], values_of_flags: Sequence[str]) -> list[str]:
    """Replace a word without `=` that names a folder or a csv file by the words that choose it as data.

    Args:
        words: of the command line.
        values_of_flags: those of them that belong to a flag.

    Raises:
        UserError: the words give other data too, a file that is no csv file, or a name that is almost that of a folder here.
    """
    bare = [word for word in words if word and word[0] not in "-~+" and "=" not in word and word not in values_of_flags]
    if len(bare) != 1:
        return list(words)
    (name,) = bare
    path = Path(name).expanduser()
    if not path.exists():
        if near := similar_folder(name):
            raise UserError(f"there is no folder {name!r}: did you mean {near!r}?")
        return list(words)
    if other := next((word for word in words if word.lstrip("+").startswith(("data=", "data.root=", "data.csv="))), None):
        raise UserError(f"{name} and {other} both choose the data: leave one of them out")
    place = words.index(name)
    return [*words[:place], *data_words(path), *words[place + 1 :]]


def similar_folder(name: str) -> str | None:
    """The folder beside the missing one whose name is most like it; `None` where none is like it."""
    parent, last = Path(name).parent, Path(name).name
    folders = [place.name for place in parent.iterdir() if place.is_dir()] if parent.is_dir() else []
    return next((str(parent / near) for near in get_close_matches(last, folders, n=1, cutoff=0.75)), None)


def data_words(path: Path) -> list[str]:
    """The words that choose a folder of images, or a csv file of images or texts, as data. Raises `UserError` for another file."""
    if path.is_dir():
        return ["data=folder", f"data.root={path}"]
    if path.suffix.lower() != ".csv":
        raise UserError(f"{path} is a file: give a folder with one folder per class, or a csv file")
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        header = next(csv.reader(file), [])
    found = [option for column, option in COLUMNS.items() if column in header]
    if len(found) != 1:
        has = "both a column path and" if found else "neither a column path nor"
        given = shell_word(f"data.csv={path}")
        raise UserError(
            f"the first line of {path} names {has} a column text: give data=csv {given} data.path_column=... for images, or "
            f"data=text_csv {given} data.text_column=... for texts"
        )
    return [f"data={found[0]}", f"data.csv={path}"]
