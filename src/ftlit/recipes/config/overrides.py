"""The command line of one run, read from Hydra: it goes on with a run that was interrupted, and it starts a job of a sweep alone."""

import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.default_element import ConfigDefault, GroupDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import __main__

OF_ONE_RUN = re.compile(r"\+{0,2}hydra\.(mode|run\.dir|job\.num)=")  # what `arguments` and its callers say anew
SEARCH = "hparams_search"
OF_TRAINING = (  # what only training reads
    *("optimizer", "lr_scheduler", "schedule", "loss", "batchnorm", "decay_all", "compile"),
    *(f"trainer.{name}" for name in ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val")),
)


def program() -> list[str]:
    """What comes after `python` to start this program again."""
    spec = getattr(__main__, "__spec__", None)
    return ["-m", spec.name] if spec else [sys.argv[0]]


def arguments(folder: str) -> list[str]:
    """What comes after the program's name to have this run, and only it, in `folder`."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for short, flag in (("-cd", "--config-dir"), ("-cn", "--config-name"), ("-cp", "--config-path")):
        parser.add_argument(short, flag, dest=flag)
    given = vars(parser.parse_known_args()[0])
    flags = [word for flag, value in given.items() if value for word in (flag, value)]
    overrides = HydraConfig.get().overrides
    own = [override for override in overrides.hydra if not OF_ONE_RUN.match(override)]
    alone = ["hydra.mode=RUN"] if HydraConfig.get().runtime.choices.get(SEARCH) else []  # whose config makes it a sweep
    task = [override for override in overrides.task if not override.startswith("sweep.")]
    return [*flags, *own, *task, f"hydra.run.dir={quote(folder)}", *alone]


def given(*names: str) -> list[str]:
    """The words of the command line that pick an option of one of these groups, or give one of these values."""

    def is_one(word: str) -> bool:
        own = word.lstrip("+~").split("=")[0]
        return any(own == name or own.startswith((f"{name}.", f"{name}@")) for name in names)

    return list(filter(is_one, HydraConfig.get().overrides.task))


def quote(value: str) -> str:
    r"""A value as Hydra's grammar reads it.

    >>> print(quote("runs/a-1"), quote("it's, a=b"))
    runs/a-1 'it\'s, a=b'
    """
    return value if re.fullmatch(r"[\w./-]+", value, re.ASCII) else "'" + value.replace("'", "\\'") + "'"


def with_text(words: Sequence[str]) -> list[str]:
    """The words of a command line with the quotes back around numbers that are one value, and that a shell has taken: Hydra would take them
    for a sweep. Where a sweep is asked for, they stay as they are.

    >>> print(*with_text(["seed=1", "schedule.freeze_layers=1,2,3"]))
    seed=1 schedule.freeze_layers='1,2,3'
    """
    if {"-m", "--multirun"} & set(words):
        return list(words)
    return [re.sub(r"^(\+{0,2}schedule\.freeze_layers)=([\d\s-]+,[\d\s,-]*)$", r"\1='\2'", word) for word in words]


def which_job() -> str:
    """`job 1 (seed=1)` in a job of a sweep, else nothing."""
    if not HydraConfig.initialized() or OmegaConf.is_missing(HydraConfig.get().job, "num"):
        return ""
    hydra = HydraConfig.get()
    return f"job {hydra.job.num} ({' '.join(hydra.overrides.task)})"


OVERLAYS = ("scenario", "experiment")  # a later one beats an earlier one


def replaced(cfg: DictConfig) -> list[str]:
    """A line for each option of the picked overlays in whose place the command line has put another one, with the values that are lost."""
    if not GlobalHydra.instance().is_initialized():  # the config was composed elsewhere
        return []
    hydra = HydraConfig.get()
    given = {word.lstrip("+").partition("=")[0] for word in hydra.overrides.task}
    wanted = {group: want for overlay in OVERLAYS for group, want in _wanted(f"{overlay}/{hydra.runtime.choices.get(overlay)}")}
    lines = []
    for group, (overlay, option, values) in wanted.items():
        choice = hydra.runtime.choices.get(group)
        if group in given and choice and choice != option:
            names = [name for name in values if f"{group}.{name}" not in given and cfg[group].get(name) != values[name]]
            lost = ", ".join(f"{group}.{name}={values[name]}" for name in names)
            lines.append(
                f"{group}={choice} takes the place of {overlay}'s {group}={option}" + (f" and of its values ({lost})" if lost else "")
            )
    return lines


def _wanted(overlay: str) -> Iterator[tuple[str, tuple[str, str, dict[str, Any]]]]:
    """Group, overlay, option and the values that both files set of it, as the overlay has them."""
    loader: Any = GlobalHydra.instance().config_loader()  # whose repository knows the folders of --config-dir too
    loaded = loader.repository.load_config(overlay)
    for entry in loaded.defaults_list if loaded else ():
        if isinstance(entry, ConfigDefault) and entry.path not in (None, "_self_"):  # it begins as another one
            path = str(entry.path)
            yield from _wanted(path.removeprefix("/") if path.startswith("/") else f"{overlay.partition('/')[0]}/{path}")
        if isinstance(entry, GroupDefault) and entry.override and isinstance(entry.value, str):
            group = str(entry.group).removeprefix("/")
            option = loader.repository.load_config(f"{group}/{entry.value}")
            values = {**(_plain(option.config) if option else {}), **_plain(loaded.config).get(group, {})}
            known = {
                name: value for name, value in values.items() if not name.startswith("_") and value is not None and "${" not in str(value)
            }
            yield group, (overlay.replace("/", "="), entry.value, known)


def _plain(config: DictConfig) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(config)  # as written: what it refers to is not here
    return {str(name): value for name, value in values.items()}
