"""`again=RUN` on a command line of training: the words with which the run in this folder began, so that it runs again in a new folder."""

import re
from collections.abc import Sequence
from itertools import pairwise
from os.path import exists  # False for a text that is too long for a path
from pathlib import Path

from ftlit.cli.command_words import FLAGS_WITH_VALUE
from ftlit.errors import UserError
from ftlit.formats import JsonObject, read_json
from ftlit.formatting import shell_word, shown
from ftlit.run_folder import COMMAND, is_run_folder
from ftlit.sweeps.jobs import is_sweep

AGAIN = "again"
SWEEP = ("-m", "--multirun", "hydra.mode=MULTIRUN")
PATH_OPTIONS = ("data.root", "data.csv", "data.val_csv", "data.test_csv", "data.split_from", "backbone.weights", "init_from")
OUTPUTS = ("paths.", "cache.", "hydra.")  # folders that a run makes
BY_HAND = "type the command that its report.html shows in the row `command`"


def with_run(words: Sequence[str]) -> list[str]:
    """Replace `again=RUN` by the words with which that run began. The words beside it win: `seed=3` replaces its seed, and an option of a
    group, such as `optimizer=sgd`, also its values in that group.

    Args:
        words: of a command line, as they were typed.

    Raises:
        UserError: the folder holds no run that can be repeated.
    """
    typed = list(words)
    _check_config_name(typed)
    given = [word for word in typed if re.match(rf"\+{{0,2}}{AGAIN}=", word)]
    if not given:
        return typed
    if len(given) > 1:
        raise UserError(f"{' '.join(given)}: give one run")
    own = [word for word in typed if word not in given]
    names = {_name(word) for word in own}
    sweeps = bool(set(SWEEP) & set(own))
    folder = Path(given[0].partition("=")[2]).expanduser()
    command = read_command(folder)
    run = _without_flags([str(word) for word in command["words"]], own)
    kept = [word for word in run if not _is_replaced(word, names) and not (sweeps and _name(word) == "hydra.mode")]
    _check_paths(kept, folder, str(command.get("folder", "")))
    return [*kept, *own]


def read_command(folder: Path) -> JsonObject:
    """What the run in a folder has written about its command. Raises `UserError` where it has not."""
    path, given = folder / COMMAND, f"{AGAIN}={shell_word(str(folder))}"
    if path.is_file():
        return dict(read_json(path, remedy=BY_HAND))
    if is_sweep(folder):
        raise UserError(f"{given} is the folder of a sweep: give the folder of a job in it, such as {given}/0")
    if is_run_folder(folder):
        raise UserError(f"{given} is a run without {COMMAND}: {BY_HAND}")
    raise UserError(f"{given} is not the folder of a run: give the folder that ftlit train printed at its end")


def _check_paths(words: Sequence[str], run: Path, began: str) -> None:
    """Raise `UserError` for a relative path of a run's words that exists in the folder in which the run began, but not in this one."""
    for word, before in zip(words, ["", *words], strict=False):
        name, value = ("", word) if before in FLAGS_WITH_VALUE else (word.partition("=")[::2])
        is_path = not name or ("/" in value and not name.startswith(OUTPUTS)) or name in PATH_OPTIONS
        there = str(Path(began, value))
        if is_path and began and not exists(value) and exists(there):
            give = shell_word(f"{name}={there}") if name else f"{before} {shell_word(there)}"
            raise UserError(
                f"{AGAIN}={shell_word(str(run))} has {shell_word(word)}, a path relative to {shown(began)}, where that run was started: "
                f"give the command there, or add {give}"
            )


def _name(word: str) -> str:
    return word.lstrip("+~").partition("=")[0].replace("hydra/", "hydra.")


def _is_replaced(word: str, names: set[str]) -> bool:
    """Whether one of the names given beside `again` is that of this word, or of a group in which it sets a value."""
    own = _name(word)
    return any(own == name or own.startswith(f"{name}.") for name in names if name)


def _without_flags(words: Sequence[str], given: Sequence[str]) -> list[str]:
    """Leave out of a run's words the flags that are given beside `again`, each with its value."""
    before = ["", *words]
    replaced = set(FLAGS_WITH_VALUE) & set(given)
    return [word for word, last in zip(words, before, strict=False) if not {word, last} & replaced]


def _check_config_name(words: Sequence[str]) -> None:
    """Refuse `--config-dir RUN --config-name config`: the file records a run's values, from which Hydra can compose no run."""
    flags = {word: value for word, value in pairwise(words) if word in FLAGS_WITH_VALUE}
    folder = next((flags[flag] for flag in ("--config-dir", "-cd", "--config-path", "-cp") if flag in flags), None)
    name = next((flags[flag] for flag in ("--config-name", "-cn") if flag in flags), "")
    if folder and name.removesuffix(".yaml") == "config" and (Path(folder) / COMMAND).is_file():
        raise UserError(
            f"the file {folder}/config.yaml of --config-name {name} records a run and is not a config for Hydra: to run it again in a "
            f"new folder, give {AGAIN}={shell_word(folder)}, with changes such as seed=1"
        )
