"""From config to a learning rate: the run that `finetune` would train, at rates that rise step by step, all groups by one factor.

Lightning's `Tuner.lr_find` sets all groups to one rate, which is another training than one with rates by layer.
"""

import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape

from ftlit.errors import UserError, shorten
from ftlit.finetuning.lr_range_test import RangeTest, Suggestion, draw, suggest, write_csv
from ftlit.finetuning.schedule import Schedule
from ftlit.lit.callbacks.loss_by_lr import LossByRate
from ftlit.lit.callbacks.seed_each_step import SeedEachStep
from ftlit.lit.staged_finetuning import StagedFinetuning
from ftlit.lit.trainer_internals import callbacks_of
from ftlit.recipes import finetune
from ftlit.recipes.config.hydra_internals import instantiate
from ftlit.recipes.config.validate import bind
from ftlit.recipes.run import console as words
from ftlit.recipes.run.processes import INTERRUPTED_STATUS

RISING = {
    "_target_": "ftlit.finetuning.lr_schedule.Rates",
    "_partial_": True,
    "curve": {
        "_target_": "ftlit.finetuning.lr_schedule.exponential",
        "_partial_": True,
        "least": "${lr_find.least}",
        "most": "${lr_find.most}",
    },
}


def run(cfg: DictConfig) -> float:
    """Write `lr_find.csv` and `lr_find.png` to the run's folder, print the suggestion. Returns it; nothing else is left behind."""
    if cfg.resume:
        raise UserError("resume=true: a range test takes a minute and goes on from nothing; leave it out")
    bind(cfg)
    test: RangeTest = instantiate(cfg.lr_find)
    run = finetune.build(rising(cfg))
    if not run.trains:
        raise UserError("recipe=lr_find: this head is solved and nothing is trained, so that no rate matters; give head=linear")
    seen = observe(cfg, run, test)
    folder = Path(cfg.paths.run)
    if run.trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "lr_find.csv", seen.rates, seen.losses)
    suggestion = suggest(seen.rates, seen.losses)
    rate = chosen(suggestion, seen.rates, solved=bool(run.solved))
    if run.trainer.is_global_zero:
        draw(folder / "lr_find.png", seen.rates, seen.losses, suggestion, solved=bool(run.solved))
        words.console().print(escape(told(rate, suggestion, run, folder)), soft_wrap=True)
    return rate


def rising(cfg: DictConfig) -> DictConfig:
    """The config of a run whose groups go from their scale times `least` to their scale times `most`."""
    cfg = deepcopy(cfg)
    OmegaConf.set_struct(cfg, False)
    cfg.lr_scheduler, cfg.optimizer.lr = RISING, 1.0  # the base: the factor that drives all groups is then the rate
    return cfg


def observe(cfg: DictConfig, run: finetune.Run, test: RangeTest) -> LossByRate:
    """Train one stage for the steps of the test, over as many epochs as they take, without validation, checkpoints or loggers."""
    kept = [callback for callback in callbacks_of(run.trainer) if isinstance(callback, SeedEachStep | ProgressBar)]
    seen = LossByRate()
    trainer = instantiate(
        cfg.trainer,
        callbacks=[StagedFinetuning(only(run.schedule, test.stage)), *([run.solved] if run.solved else []), *kept, seen],
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        min_epochs=None,
        max_epochs=test.steps,  # an epoch has at least one
        max_steps=test.steps,
    )
    try:
        trainer.fit(run.model, run.data)
    except SystemExit:  # Lightning's answer to Ctrl-C
        sys.exit(INTERRUPTED_STATUS)
    return seen


def only(schedule: Schedule, index: int) -> Schedule:
    """One stage of a schedule, from the first step on, at the rates of the whole. Raises `UserError` where there is no such stage."""
    stages = schedule.stages
    if not -len(stages) <= index < len(stages):
        has = f"{len(stages)} stage{'s' * (len(stages) > 1)}"
        raise UserError(f"lr_find.stage={index}: this schedule has {has}, give {-len(stages)} to {len(stages) - 1}")
    return replace(schedule, stages=[replace(stages[index], epoch=0, step=None, until=None, from_best=False)])


def chosen(suggestion: Suggestion, rates: Sequence[float], *, solved: bool) -> float:
    """Where the loss falls fastest; a solved head leaves it nowhere to fall, and a tenth of the rate from which on it climbs tells more.

    Raises `UserError` where there is no such rate among those that were tried.
    """
    rate = suggestion.climbs if solved else suggestion.steep
    if rate is None or rate < rates[0]:
        does = "climbs from the first rates on" if solved else f"falls nowhere from rate {rates[0]:.1e} to {rates[-1]:.1e}"
        raise UserError(f"the loss {does}: give a smaller lr_find.least, or more lr_find.steps")
    return rate


def told(rate: float, suggestion: Suggestion, run: finetune.Run, folder: Path) -> str:
    """The override, the rate of each group, and the other answer."""
    rate = float(f"{rate:.1e}")
    groups = shorten(f"{pattern} at {rate * scale:.1e}" for pattern, scale in run.schedule.lr_scale)
    if run.solved:
        other, more = "a tenth of the rate from which on the loss is twice its least", "which it is not by the last"
    else:
        other, more = f"a tenth of the rate of the least loss is {suggestion.tenth:.1e}", "the loss still falls at the last rate"
    more = f"; {more}: lr_find.most may be higher" if suggestion.open_ended(solved=bool(run.solved)) else ""
    return f"optimizer.lr={rate:.1e} ({groups}); {other}{more}; lr_find.csv, lr_find.png: {folder}"
