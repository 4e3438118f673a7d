"""The commands that start a run again, or resume it."""

import shlex
from importlib.util import find_spec

from omegaconf import DictConfig

from ftlit.recipes.config.overrides import arguments, program


def resume_command(cfg: DictConfig) -> str:
    """The command that resumes this run after an interruption."""
    return f"{start_command(cfg)} resume=true"


def start_command(cfg: DictConfig) -> str:
    """The command that starts this run again in its folder."""
    spec = find_spec("ftlit.cli.train")  # the file that `ftlit train` runs
    command = ["ftlit", "train"] if spec and program() == [spec.origin] else ["python", *program()]
    return shlex.join([*command, *(word for word in arguments(cfg.paths.run) if not word.startswith("resume="))])
