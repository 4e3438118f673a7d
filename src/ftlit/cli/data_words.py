"""A folder or a csv file in place of the words that choose it as data: `ftlit train photos`."""

import csv
from collections.abc import Sequence
from pathlib import Path

from ftlit.data.csv_format import USUAL_NAMES, CsvFormat
from ftlit.errors import UserError, closest_path, shorten
from ftlit.formatting import shell_word

COLUMNS = {"path": "csv", "text": "text_csv"}  # column of a csv file -> the option of data that reads it, with its value KEY_column
PATH_NAMES = USUAL_NAMES["path_column"][:-2]  # taken where the file has exactly one of them; image_id and name are often no paths


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
        if near := closest_path(path, Path.is_dir):
            raise UserError(f"there is no folder {name!r}: did you mean {str(near)!r}?")
        return list(words)
    if other := next((word for word in words if word.lstrip("+").startswith(("data=", "data.root=", "data.csv="))), None):
        raise UserError(f"{name} and {other} both choose the data: leave one of them out")
    place = words.index(name)
    return [*words[:place], *data_words(path, words), *words[place + 1 :]]


def data_words(path: Path, others: Sequence[str] = ()) -> list[str]:
    """The words that choose a folder of images, or a csv file of images or texts, as data. Raises `UserError` for another file.

    Args:
        path: of the folder or the file.
        others: the other words of the command line: `data.path_column=...` or `data.text_column=...` names the column that is read.
    """
    if path.is_dir():
        return ["data=folder", f"data.root={path}"]
    if path.suffix.lower() != ".csv":
        raise UserError(f"{path} is a file: give a folder with one folder per class, or a csv file")
    names = [word.lstrip("+").partition("=")[0] for word in others]
    given = [key for key in COLUMNS if f"data.{key}_column" in names]
    if len(given) == 1:
        return [f"data={COLUMNS[given[0]]}", f"data.csv={path}"]
    options = dict(word.lstrip("+").split("=", 1) for word in others if "=" in word)
    header = _header(path, CsvFormat(options.get("data.encoding", "utf-8"), options.get("data.separator")))
    found = [key for key in COLUMNS if key in header]
    usual = [name for name in header if name.lower() in PATH_NAMES]
    if len(found) == 1:
        return [f"data={COLUMNS[found[0]]}", f"data.csv={path}"]
    if not found and len(usual) == 1:
        return ["data=csv", f"data.csv={path}", f"data.path_column={usual[0]}"]
    own = next((name for name in header if name.lower() not in ("label", *USUAL_NAMES["label_column"])), "...")
    why = "has the columns path and text" if found else f"has no column path or text, its columns are {shorten(header) or 'none'}"
    image, text = found or (own, own)
    raise UserError(
        f"{path} {why}: add {shell_word(f'data.path_column={image}')} for images, or {shell_word(f'data.text_column={text}')} for texts"
    )


def _header(path: Path, form: CsvFormat) -> list[str]:
    """The names in the first line of a csv file."""
    with path.open(newline="", encoding=form.decoder, errors="replace") as file:
        return [name.strip() for name in next(csv.reader(file, delimiter=form.delimiter(file)), [])]
