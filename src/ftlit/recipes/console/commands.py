"""The commands that start a run again, or resume it."""

from omegaconf import DictConfig

from ftlit.formatting import shell_command
from ftlit.recipes.config.overrides import OF_ITS_FOLDER, arguments, typed_command
from ftlit.recipes.run.launched import launched

OF_LAUNCHER = ("++trainer.devices=", "++trainer.num_nodes=")  # words that `recipes.run.launched.complete` adds


def resume_command(cfg: DictConfig) -> str:
    """The command that resumes this run after an interruption."""
    return f"{start_command(cfg)} resume=true"


def start_command(cfg: DictConfig) -> str:
    """The command that starts this run again in its folder, by itself where it is a job of a sweep."""
    added = OF_LAUNCHER if launched() else ()  # it gives them again
    words = [word for word in arguments(cfg.paths.run) if not OF_ITS_FOLDER.match(word) and not word.startswith(added)]
    return shell_command([*typed_command(), *words])
