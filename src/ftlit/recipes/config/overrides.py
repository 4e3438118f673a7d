"""The command line of one run, read from Hydra: it goes on with a run that was interrupted, and it starts a job of a sweep alone."""

import re
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

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
