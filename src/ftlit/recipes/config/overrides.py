"""The command line of a run, read back from Hydra to resume the run or to start a job of a sweep by itself."""

import json
import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import __main__
from ftlit.recipes.config.hydra_internals import choices, hydra_config, read_config_file, task_overrides
from ftlit.recipes.config.literal_values import quote
from ftlit.recipes.config.option_names import overlay_groups

# words that `arguments` and its callers give themselves, and those that Lightning gives to the processes that it starts
REPLACED_FOR_ONE_RUN = re.compile(
    r"\+{0,2}hydra(\.(mode|run\.dir|job\.num)=|\.launcher\.|/launcher=)|hydra\.(job\.name=train_ddp_process_|output_subdir=null)"
)
OF_ITS_FOLDER = re.compile(r"\+{0,2}(resume=|hydra\.sweep\.)")  # words that say where a run, or its sweep, is, or that it goes on
LAUNCHER_WORDS: list[str] = []  # that `recipes.processes.launched` has added to the command line: torchrun or srun leads to them again
COMMAND = "FTLIT_COMMAND"  # in the environment: the command line as it was typed; processes of Hydra's launchers have another one
SEARCH_PATH = re.compile(r"\+{0,2}hydra\.searchpath=")
SEARCH = "hparams_search"
OF_LINEAR_PROBE = ("head.cuts", "head.combine")  # settings of head=linear_probe, the default, that other heads do not have
CLASS_WEIGHTS = "loss.class_weights"
OF_TRAINING = (  # names that only training reads
    *("optimizer", "lr_scheduler", "schedule", "loss", "batchnorm", "decay_all", "compile"),
    *(f"trainer.{name}" for name in ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val")),
)


def command_environment() -> dict[str, str]:
    """The variable by which a process of a launcher knows the command line of its sweep."""
    return {COMMAND: json.dumps({"program": _own_program(), "words": sys.argv[1:]})}


def _own_program() -> list[str]:
    spec = getattr(__main__, "__spec__", None)
    return ["-m", spec.name] if spec else [sys.argv[0]]


def _noted(name: str) -> list[str] | None:
    """`program` or `words` of the noted command line; `None` outside of the program."""
    found = json.loads(os.environ.get(COMMAND, "null"))
    return found[name] if found else None


def program() -> list[str]:
    """The words after `python` that start this program again."""
    return _noted("program") or _own_program()


def typed_words() -> list[str]:
    """The words after the name of this program as they were typed, before `complete`."""
    words = _noted("words")
    return sys.argv[1:] if words is None else words


def typed_command() -> list[str]:
    """The command that started this program: `ftlit train`, or `python` and the words of `program`."""
    spec = find_spec("ftlit.cli.train")  # the file that `ftlit train` runs
    return ["ftlit", "train"] if spec and program() == [spec.origin] else ["python", *program()]


def arguments(folder: str) -> list[str]:
    """The words after the program's name that repeat this run, and no other job of its sweep, in `folder`."""
    return [*repeated_words(), f"hydra.run.dir={quote(folder)}"]


def repeated_words() -> list[str]:
    """The words after the program's name that repeat this run, and no other job of its sweep, in a new folder."""
    flags = [word for pair in config_flags().items() for word in pair]
    own = [override for override in hydra_config().overrides.hydra if not REPLACED_FOR_ONE_RUN.match(override)]
    single = ["hydra.mode=RUN"] if choices().get(SEARCH) else []  # a search is a sweep otherwise
    return [*flags, *own, *job_overrides(), *single]


def job_overrides() -> list[str]:
    """The overrides of this run, without those that say how its sweep goes on."""
    return [override for override in task_overrides() if not override.lstrip("+").startswith("sweep.")]


def config_flags() -> dict[str, str]:
    """The flags of the command line that say where config files are, with their values."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for short, flag in (("-cd", "--config-dir"), ("-cn", "--config-name"), ("-cp", "--config-path")):
        parser.add_argument(short, flag, dest=flag)
    return {flag: value for flag, value in vars(parser.parse_known_args(typed_words())[0]).items() if value}


def search_words() -> list[str]:
    """The words of the command line that say where further options are: flags, and the search path."""
    paths = [word for word in typed_words() if SEARCH_PATH.match(word)]
    return [*(word for pair in config_flags().items() for word in pair), *paths]


def search_overrides() -> list[str]:
    """The override with which `hydra.compose`, which takes no flags, finds the options that the command line finds."""
    folder = config_flags().get("--config-dir")
    own = [f"hydra.searchpath=[{quote(f'file://{Path(folder).absolute()}')}]"] if folder else []
    return [word for word in typed_words() if SEARCH_PATH.match(word)] or own


def chosen_part(group: str, option: str) -> str:
    """The part that the command line chooses: an option of a group, or a class by its import path."""
    return next((word.lstrip("+") for word in reversed(given(f"{group}._target_"))), f"{group}={option}")


def overlay_files() -> list[tuple[str, dict[str, Any]]]:
    """Path and values of each file of the chosen overlays, with the files that they include."""
    return [found for group in overlay_groups() for found in _files(f"{group}/{choices().get(group)}")]


def _files(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if (file := read_config_file(path)) is not None:
        yield path, file.values
        for parent in file.parents:
            yield from _files(_path_of(parent, path))


def overlay_of(name: str) -> str | None:
    """The chosen overlay that sets a value, such as `scenario=small_different`; `None` if the command line or no overlay gives it."""
    if hydra_config() is None or given(name):
        return None
    overlays = [f"{group}/{choices().get(group)}" for group in overlay_groups()]
    return next((overlay.replace("/", "=") for overlay in reversed(overlays) if _sets(overlay, name.split("."))), None)


def _sets(overlay: str, path: Sequence[str]) -> bool:
    file = read_config_file(overlay)
    if file is None:
        return False
    node: Any = file.values
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node is not None or any(_sets(_path_of(parent, overlay), path) for parent in file.parents)


def given(*names: str) -> list[str]:
    """The words of the command line that choose an option of one of these groups, or give one of these values."""

    def is_one(word: str) -> bool:
        own = word.lstrip("+~").split("=")[0]
        return any(own == name or own.startswith((f"{name}.", f"{name}@")) for name in names)

    return list(filter(is_one, task_overrides()))


def given_for_training(*others: str) -> list[str]:
    """The words of the command line that only gradient training reads, and those that give one of `others`. A fitted head reads the class
    weights too.
    """
    return [word for word in given(*OF_TRAINING, *others) if word not in given(CLASS_WEIGHTS)]


def ignored_without_training(*, augmented: bool) -> list[str]:
    """The words of the command line that a run which only fits its head ignores. The chosen schedule is not among them: it is why nothing
    else trains.

    Args:
        augmented: whether the head is fitted on augmented views of the images.
    """
    words = given_for_training("data.mix", *([] if augmented else ["data.augment"]))
    return [word for word in words if word.lstrip("+").partition("=")[0] != "schedule"]


def job_number() -> int:
    """The number of this job in its sweep, which names its folder: a launcher counts the jobs that it is given at once."""
    hydra = hydra_config()
    folder = "" if OmegaConf.is_missing(hydra.runtime, "output_dir") else Path(hydra.runtime.output_dir).name
    return int(folder) if folder.isdigit() else int(hydra.job.num)


def job_label() -> str:
    """`job 1 (seed=1)` in a job of a sweep, else an empty text."""
    hydra = hydra_config()
    if hydra is None or OmegaConf.is_missing(hydra.job, "num"):
        return ""
    return f"job {job_number()} ({' '.join(job_overrides())})"


def replaced(cfg: DictConfig) -> list[str]:
    """A line for each option of the chosen overlays that the command line replaces by another one, with the values that are lost."""
    if hydra_config() is None:  # the config was composed elsewhere
        return []
    given = {word.lstrip("+").partition("=")[0] for word in task_overrides()}
    wanted = {group: want for overlay in overlay_groups() for group, want in _wanted(f"{overlay}/{choices().get(overlay)}")}
    lines = []
    for group, (overlay, option, values) in wanted.items():
        choice = choices().get(group)
        if group in given and choice and choice != option:
            own = values if group in cfg else ()  # an overlay has no values of its own
            names = [name for name in own if f"{group}.{name}" not in (*given, *OF_LINEAR_PROBE)]
            names = [name for name in names if OmegaConf.select(cfg[group], name) != values[name]]
            lost = ", ".join(f"{group}.{name}={values[name]}" for name in names)
            line = f"{group}={choice} replaces {group}={option} of {overlay}"
            lines.append(f"{line}, whose values no longer apply ({lost})" if lost else line)
    return lines


def _wanted(overlay: str) -> Iterator[tuple[str, tuple[str, str, dict[str, Any]]]]:
    """Group, overlay, option and the values that both files set of it, as the overlay has them."""
    file = read_config_file(overlay)
    if file is None:
        return
    for parent in file.parents:  # the overlay begins as another one
        yield from _wanted(_path_of(parent, overlay))
    for group, option in file.overrides.items():
        chosen = read_config_file(f"{group}/{option}")
        known = {**_settings(chosen.values if chosen else {}), **_settings(file.values.get(group, {}))}
        yield group, (overlay.replace("/", "="), option, known)


def _settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values that a user reads as settings, by their full names: not a part of the option, such as the curve of a scheduler, nor a
    reference.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= {} if "_target_" in value else _settings(value, f"{prefix}{name}.")
        elif value is not None and not name.startswith("_") and "${" not in str(value):
            found[f"{prefix}{name}"] = value
    return found


def _path_of(parent: str, overlay: str) -> str:
    """`group/option` of a file that the defaults list of an overlay includes."""
    return parent.removeprefix("/") if parent.startswith("/") else f"{overlay.partition('/')[0]}/{parent}"
