"""The command line of one run, read from Hydra: it goes on with a run that was interrupted, and it starts a job of a sweep alone."""

import re
from argparse import ArgumentParser

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

# what says how many runs there are and where they go
OF_SWEEPS = re.compile(r"hydra\.(mode|run\.dir|job\.num)=|hydra[./](sweep|sweeper|launcher)\b")


def arguments(folder: str) -> list[str]:
    """What comes after the program's name to have this run, and only it, in `folder`."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for short, flag in (("-cd", "--config-dir"), ("-cn", "--config-name"), ("-cp", "--config-path")):
        parser.add_argument(short, flag, dest=flag)
    given = vars(parser.parse_known_args()[0])
    flags = [word for flag, value in given.items() if value for word in (flag, value)]
    overrides = HydraConfig.get().overrides
    own = [override for override in overrides.hydra if not OF_SWEEPS.match(override)]
    return [*flags, *own, *overrides.task, f"hydra.run.dir={quote(folder)}"]


def quote(value: str) -> str:
    """A value as Hydra's grammar reads it.

    >>> print(quote("runs/a-1"), quote("it's, a=b"))
    runs/a-1 'it\\'s, a=b'
    """
    return value if re.fullmatch(r"[\w./-]+", value, re.ASCII) else "'" + value.replace("'", "\\'") + "'"


def which_job() -> str:
    """`job 1 (seed=1): ` in a job of a sweep, else nothing."""
    hydra = HydraConfig.get()
    return "" if OmegaConf.is_missing(hydra.job, "num") else f"job {hydra.job.num} ({' '.join(hydra.overrides.task)}): "
