"""Print how to go on with a run that was interrupted, or that lost a process."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from ftlit.printing import print_line
from ftlit.recipes.console.commands import resume_command, start_command
from ftlit.recipes.processes import launched
from ftlit.recipes.resuming.resume import CONFIG, RESUMABLE_RECIPES

KEPT = "features that are stored stay in the cache"


def print_interrupted(cfg: DictConfig) -> None:
    """Print how to resume after Ctrl-C, or a signal that ends the run; how to start again where there is nothing to resume. The first
    process prints it.
    """
    if launched.own_rank():
        return
    folder = Path(cfg.paths.run)
    keeps_features = cfg.recipe != "pretrain" and "folder" in (cfg.get("cache") or {})  # cache=none has no folder
    if cfg.recipe not in RESUMABLE_RECIPES or not (folder / CONFIG).exists():
        state = KEPT if keeps_features else "there is nothing to resume"
        again = "give the same command" if cfg.recipe == "advise" else start_command(cfg)
        print_line(f"interrupted; {state}. To start again: {again}")
        return
    state = "interrupted before the first step" + (f"; {KEPT}" if keeps_features else "")
    if (folder / "checkpoints" / "last.ckpt").exists():
        state = "interrupted; the last checkpoint is saved"
    if cfg.get("pretrain"):
        state = "interrupted; the layers that finished training are saved"
    print_line(f"{state}. To resume: {resume_command(cfg)}")


def print_lost_process(cfg: DictConfig, reason: str) -> None:
    """Print, on stderr, why this process stops, and how to resume."""
    print(f"ftlit: {reason}. To resume: {resume_command(cfg)}", file=sys.stderr)
