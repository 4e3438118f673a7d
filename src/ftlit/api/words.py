"""The words of a command line that arguments in Python stand for."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ftlit.cli.data_words import data_words
from ftlit.errors import UserError, closest_path
from ftlit.recipes.config.hydra_internals import fresh_hydra, group_options, own_hydra
from ftlit.recipes.config.literal_values import quote, text_of

DATA_WITHOUT_PATH = ("digits", "glyphs")  # options of the group `data` that need no path
Options = Mapping[str, Any]
AnyPath = str | PathLike[str]


def words_of(data: AnyPath | None, named: Options, options: Options | None = None) -> list[str]:
    """The words of a run.

    Args:
        data: a folder, a csv file, or the name of an option of the group `data`; `None`: by default.
        named: name of an option -> the value of the argument that stands for it; `None` leaves the option out.
        options: further options, as the user gave them. They go last.

    Raises:
        UserError: a name or value that no option can have.
    """
    if not (data is None or isinstance(data, str | PathLike)):
        raise UserError(f"data={data!r}: give a folder with one folder per class, a csv file, or the name of a data set, such as digits")
    chosen = {name: value for name, value in named.items() if value is not None}
    of_data = [] if data is None else ["data", "data.root", "data.csv"]
    if twice := next((name for name in [*chosen, *of_data] if name in (options or {})), None):
        raise UserError(f"{twice} is given twice, as an argument and in options: leave one of them out")
    return [*_data(data, options or {}), *(f"{name}={text_of(value)}" for name, value in {**chosen, **_checked(options or {})}.items())]


def _data(data: AnyPath | None, options: Options) -> list[str]:
    if data is None:
        return []
    path = Path(data).expanduser()
    if path.exists() and data in DATA_WITHOUT_PATH:
        raise UserError(f"{data} is a folder here and an option of data: give './{data}' for the folder, or options={{'data': '{data}'}}")
    if path.exists():
        return [f"{name}={quote(value)}" for name, _, value in (word.partition("=") for word in data_words(path, [*options]))]
    with own_hydra(), fresh_hydra():
        names = group_options("data")
    if data in names:
        return [f"data={data}"]
    near = closest_path(path, Path.is_dir)
    meant = f"did you mean {str(near)!r}? Give" if near else "give"
    raise UserError(
        f"there is no folder or file {str(data)!r}: {meant} a folder with one folder per class, a csv file, or an option of data "
        f"({', '.join(names)})"
    )


def _checked(options: Options) -> Options:
    for name in options:
        if not isinstance(name, str) or not name or set(name) & set("= \t\n'\""):
            raise UserError(f'options: {name!r} is not the name of an option: give a dict such as {{"optimizer.lr": 1e-3}}')
    return options
