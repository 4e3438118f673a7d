"""Run `recipe=lr_find`: the learning-rate range test of the run that `finetune` would train, all parameter groups scaled by one factor.

Lightning's `Tuner.lr_find` sets all groups to the same rate, which differs from training with a rate per layer.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig, OmegaConf

from ftlit.errors import UserError, shorten
from ftlit.finetuning.lr_range_test import RangeTest, Suggestion, draw, suggest, write_csv
from ftlit.finetuning.param_groups import NO_DECAY
from ftlit.finetuning.schedule import Schedule
from ftlit.formatting import count
from ftlit.lit.callbacks.loss_by_lr import LossByRate
from ftlit.lit.callbacks.seed_each_step import SeedEachStep
from ftlit.lit.module import FineTuner
from ftlit.lit.stages.staged_finetuning import StagedFinetuning
from ftlit.lit.trainer_internals import callbacks_of
from ftlit.printing import print_line
from ftlit.recipes.build_run import Run, build
from ftlit.recipes.checks.validate import bind
from ftlit.recipes.config.hydra_internals import instantiate
from ftlit.recipes.run.trainer import build_trainer

FAR = 10  # times: learning rates that are further apart train differently

RISING_RATES = {  # the `lr_scheduler` of the test
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
    """Write `lr_find.csv` and `lr_find.png` to the run's folder, and print the suggested learning rate. Returns it."""
    if cfg.resume:
        raise UserError(f"recipe=lr_find cannot be resumed: leave resume={str(cfg.resume).lower()} out")
    bind(cfg)
    test: RangeTest = instantiate(cfg.lr_find)
    rising = with_rising_rates(cfg)
    run = build(rising, compares=False)
    if not run.trains:
        raise UserError("recipe=lr_find does not work with a linear probe, which is fitted without a learning rate: give head=linear")
    curve = record_losses(rising, run, test)
    folder = Path(cfg.paths.run)
    if run.trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "lr_find.csv", curve.rates, curve.losses)
    suggestion = suggest(curve.rates, curve.losses)
    rate = choose_rate(suggestion, curve.rates, probe_head=run.probe_head is not None)
    if run.trainer.is_global_zero:
        draw(folder / "lr_find.png", curve.rates, curve.losses, suggestion, probe_head=run.probe_head is not None)
        print_line(describe(rate, suggestion, run, folder, float(cfg.optimizer.get("lr") or rate)))
    return rate


def with_rising_rates(cfg: DictConfig) -> DictConfig:
    """The config of a run whose parameter groups go from their scale times `least` to their scale times `most`."""
    cfg = deepcopy(cfg)
    OmegaConf.set_struct(cfg, False)
    cfg.lr_scheduler, cfg.optimizer.lr = RISING_RATES, 1.0  # with a base rate of 1 the factor of all groups is the rate
    return cfg


def record_losses(cfg: DictConfig, run: Run, test: RangeTest) -> LossByRate:
    """Train one stage for the steps of the test, over as many epochs as they need, without validation, checkpoints or loggers."""
    kept = [callback for callback in callbacks_of(run.trainer) if isinstance(callback, SeedEachStep | ProgressBar)]
    curve = LossByRate()
    staging = StagedFinetuning(single_stage(run.schedule, test.stage), warns=False)
    trainer = build_trainer(
        cfg,
        callbacks=[staging, *([run.probe_head] if run.probe_head else []), *kept, curve],
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        min_epochs=None,
        max_epochs=test.steps,  # an epoch has at least one
        max_steps=test.steps,
    )
    trainer.fit(run.model, run.data)
    return curve


def single_stage(schedule: Schedule, index: int) -> Schedule:
    """One stage of a schedule, from the first step on, with the rates of the schedule. Raises `UserError` where there is no such stage."""
    stages = schedule.stages
    number = len(stages)
    if not -number <= index < number:
        accepted = f"from 0 to {number - 1}, or from -1 (the last) to {-number}" if number > 1 else "0, or leave it out"
        raise UserError(f"lr_find.stage={index}: this schedule has {count(number, 'stage')}; give {accepted}")
    return replace(schedule, stages=[replace(stages[index], epoch=0, step=None, until=None, from_best=False)])


def choose_rate(suggestion: Suggestion, rates: Sequence[float], *, probe_head: bool) -> float:
    """The rate at which the loss falls fastest; for a head that is a linear probe, a tenth of the rate from which on it rises, since it
    cannot fall.

    Raises:
        UserError: there is no such rate among those that were tried.
    """
    rate = suggestion.climbs if probe_head else suggestion.steep
    if rate is None or rate < rates[0]:
        does = (
            "already rises at the lowest learning rates"
            if probe_head
            else f"never falls as the learning rate goes from {rates[0]:.1e} to {rates[-1]:.1e}"
        )
        raise UserError(f"the loss {does}: give a smaller lr_find.least, or more lr_find.steps")
    return rate


def describe(rate: float, suggestion: Suggestion, run: Run, folder: Path, configured: float) -> str:
    """The override, the rate of each group that trains, the alternative suggestion, and which rate to prefer where they are far apart."""
    rate = float(f"{rate:.1e}")
    groups = shorten(f"{name} at {rate * scale:.1e}" for name, scale in trained_groups(run.model))
    probe_head = run.probe_head is not None
    if probe_head:
        other, more = (
            "this is a tenth of the learning rate at which the loss has risen to twice its minimum",
            "the loss has not risen that far at the highest learning rate",
        )
    else:
        other, more = (
            f"or {suggestion.tenth:.1e}, a tenth of the rate with the lowest loss",
            "the loss still falls at the highest learning rate",
        )
    more = f"; {more}, so a higher lr_find.most may help" if suggestion.open_ended(probe_head=probe_head) else ""
    advice = "" if probe_head else prefer(rate, suggestion, configured)
    return f"suggested: optimizer.lr={rate:.1e} ({groups}); {other}{more}{advice}; lr_find.csv, lr_find.png: {folder}"


def trained_groups(model: FineTuner) -> dict[tuple[str, float], None]:
    """Name and learning-rate factor of each parameter group that trains, in the order of the groups."""
    groups = model.build_optimizer().param_groups
    trained = [group for group in groups if any(parameter.requires_grad for parameter in group["params"])]
    return dict.fromkeys((group["name"].removesuffix(NO_DECAY), group["lr_scale"]) for group in trained)


def prefer(rate: float, suggestion: Suggestion, configured: float) -> str:
    """Which learning rate to prefer where the suggestion is far from the configured one, or from its alternative; else an empty text.

    It is the higher of the suggested and the configured one, unless the loss rises there. Measured with linear heads on 4 data sets and 3
    networks, and with all layers of glyph on 3 data sets: in the 7 cases in which they were far apart it was at least as accurate on val.
    """
    alternative = float(f"{suggestion.tenth:.1e}")
    if all(1 / FAR < other / rate < FAR for other in (configured, alternative)):
        return ""
    lower, higher = sorted((rate, configured))
    better = higher if higher <= 10 * suggestion.tenth else lower
    which = "configured" if better == configured else "suggested"
    compared = ",".join(f"{each:g}" for each in sorted({rate, configured, alternative}))
    return (
        f". These and the configured {configured:g} differ by more than a factor of {FAR}; of the suggested and the configured one, the "
        f"{which} optimizer.lr={better:g} is the safer choice, because the loss still falls there; to compare, train with -m "
        f"optimizer.lr={compared}"
    )
