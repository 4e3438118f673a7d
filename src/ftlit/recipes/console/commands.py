"""The commands that start a run again, or resume it."""

from omegaconf import DictConfig

from ftlit.formatting import shell_command
from ftlit.recipes.config.overrides import LAUNCHER_WORDS, OF_ITS_FOLDER, arguments, typed_command


def resume_command(cfg: DictConfig) -> str:
    """The command that resumes this run after an interruption."""
    return f"{start_command(cfg)} resume=true"


def start_command(cfg: DictConfig) -> str:
    """The command that starts this run again in its folder, by itself where it is a job of a sweep."""
    words = [word for word in arguments(cfg.paths.run) if not OF_ITS_FOLDER.match(word) and word not in LAUNCHER_WORDS]
    return shell_command([*typed_command(), *words])
