"""Checks of StagedFinetuning: mistakes that would train the wrong parameters without an error, found before or during training."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from math import inf
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from ftlit.errors import UserError, shorten
from ftlit.finetuning import train_entries
from ftlit.finetuning.freeze import batchnorm_choices, trained
from ftlit.finetuning.lr_schedule import Rates
from ftlit.finetuning.param_groups import check_same_factors, floors_lose_ratios, lost_ratios
from ftlit.finetuning.plan import check_stage_factors
from ftlit.finetuning.schedule import Schedule
from ftlit.finetuning.stage import Stage, Until
from ftlit.lit.trainer_internals import find_callback, is_trial_run, steps_per_epoch
from ftlit.models.backbone import Backbone
from ftlit.models.lora import check_lora

STATISTICS_OF_RANDOM_ORIGIN = (
    "the batch norms of the backbone hold statistics, but its origin says that the weights are random: to keep the statistics, give "
    'origin=WeightsOrigin("custom", name); to update them, give Stage(..., batchnorm="live")'
)
# of learning rates during training: below it a rate does not matter, and torch's recursive formulas are inexact near 0
LATE_TOLERANCE = 1e-4
Trainable = tuple[nn.Parameter, bool]  # a parameter, and whether the current stage trains it


def check_callbacks(callbacks: Sequence[Callback], own: type[Callback]) -> None:
    """Raise `UserError` for a callback that changes weights or rates itself, and for several of this class."""
    if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
        raise UserError(
            "StochasticWeightAveraging changes the statistics of frozen batch norms and the learning rates: remove this callback"
        )
    if sum(isinstance(callback, own) for callback in callbacks) > 1:
        raise UserError(f"the trainer has several {own.__name__} callbacks: give one callback, whose Schedule has the stages of all")


def check_optimizers(module: nn.Module, schedule: Schedule, optimizers: Sequence[Optimizer]) -> None:
    """Check that the optimizers hold every parameter that a stage trains, each in a group with its factor of the schedule's `lr_scale`, and
    that LoRA matrices are those of the schedule's `lora`.

    Raises:
        UserError: a parameter is missing, for instance because the optimizer was built over what trains first; or has another factor; or
            a matrix has another rank.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held = {id(parameter) for group in groups for parameter in group["params"]}
    for stage in schedule.stages:
        if missing := [name for name, parameter in trained_parameters(module, stage) if id(parameter) not in held]:
            raise UserError(
                f"stage {stage.name!r} trains parameters that are not in the optimizer: {shorten(missing, most=3)}; "
                "build the optimizer with ftlit.build_optimizer, which includes frozen parameters"
            )
    check_same_factors(module, schedule.lr_scale, groups)
    check_lora(module, schedule.lora)


def check_length(schedule: Schedule, trainer: Trainer, module: LightningModule) -> None:
    """Check that training reaches every stage, in their order, as far as the number of steps in an epoch is known.

    Raises:
        UserError: a stage that would never begin, or a stage by steps without automatic optimization.
    """
    by_step = any(stage.step is not None for stage in schedule.stages)
    if by_step and not module.automatic_optimization:
        raise UserError("a stage that begins at a step needs automatic optimization: give an epoch instead of a step")
    ends_by_step = trainer.max_steps >= 0 and not is_trial_run(trainer) and trainer.num_training_batches < inf
    if by_step or (ends_by_step and module.automatic_optimization):
        per_epoch = None if accumulation_varies(trainer) else steps_per_epoch(trainer)
        schedule.check_reached(trainer.max_epochs, trainer.max_steps, per_epoch)


def accumulation_varies(trainer: Trainer) -> bool:
    """Whether a callback sets the accumulation of each epoch when it begins, so that the steps of an epoch are not known before."""
    return find_callback(trainer, GradientAccumulationScheduler) is not None


def check_rates(schedule: Schedule, trainer: Trainer) -> None:
    """Raise `UserError` for a scheduler that has changed the ratios between the rates of the groups, has factors for another number of
    stages, or would be stepped in another unit than its own; warn of one that may change the ratios later.
    """
    for config in trainer.lr_scheduler_configs:
        check_stage_factors(getattr(config.scheduler, "stage_factors", ()), len(schedule.stages))
        if isinstance(config.scheduler, Rates) and config.interval != config.scheduler.unit:
            wrong = f"Rates has unit={config.scheduler.unit!r}, but Lightning would step it once per {config.interval}"
            raise UserError(f"{wrong}: let configure_optimizers return {{'optimizer': optimizer, 'lr_scheduler': rates.config}}")
    for lost in filter(None, map(lost_ratios, trainer.optimizers)):
        raise UserError(lost)
    for line in filter(None, (floors_lose_ratios(config.scheduler) for config in trainer.lr_scheduler_configs)):
        if trainer.is_global_zero:
            warnings.warn(line, stacklevel=1)


def ratios_keep(trainer: Trainer) -> bool:
    """Whether the ratios between the learning rates of the groups are still those of their factors; warns if not."""
    lost = [line for line in (lost_ratios(optimizer, LATE_TOLERANCE) for optimizer in trainer.optimizers) if line]
    if lost and trainer.is_global_zero:
        warnings.warn(lost[0], stacklevel=1)
    return not lost


def trained_parameters(module: nn.Module, stage: Stage) -> list[tuple[str, nn.Parameter]]:
    """Name and parameter of everything that a stage trains."""
    names = trained(module, stage.train, stage.policy)
    return [(name, parameter) for name, parameter in module.named_parameters() if name in names]


def loses_statistics(module: nn.Module, stage: Stage, modes: Mapping[nn.Module, bool]) -> bool:
    """Whether `auto` lets a batch norm change that holds statistics, because the origin of its backbone says that its weights are random.

    Args:
        module: any module.
        stage: with its batch norm policy.
        modes: mode of each module in this stage, see `modes_of`.
    """
    choices = batchnorm_choices(module, stage.policy)
    random = [backbone for backbone in module.modules() if isinstance(backbone, Backbone) and not backbone.pretrained]
    norms = {norm for backbone in random for norm in backbone.modules() if choices.get(norm) == "auto" and modes[norm]}
    return any(_holds_statistics(norm) for norm in norms)


def _holds_statistics(norm: nn.Module) -> bool:
    mean, var = norm.running_mean, norm.running_var
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor) or mean.is_meta or is_lazy(mean):
        return False
    return bool((mean != 0).any() or (var != 1).any())


def warn_of_statistics(trainer: Trainer, *, loses: bool) -> None:
    """Warn, in the first process, where a stage `loses_statistics`."""
    if loses and trainer.is_global_zero:
        warnings.warn(STATISTICS_OF_RANDOM_ORIGIN, stacklevel=2)


def check_unchanged(module: nn.Module, expected: Iterable[Trainable]) -> None:
    """Check that `requires_grad` is as the current stage set it. DDP's reducer does not know parameters that other code has unfrozen:
    the processes would drift apart in them.

    Raises:
        UserError: other code has frozen or unfrozen a parameter.
    """
    for parameter, trains in expected:
        if parameter.requires_grad != trains:
            name = next((name for name, own in module.named_parameters() if own is parameter), "a parameter that was removed")
            change = f"requires_grad={not trains}"
            raise UserError(
                f"code other than StagedFinetuning has set {change} for {name!r}: remove that code, because the schedule decides which "
                "parameters train"
            )


def schedule_values(schedule: Schedule) -> dict[str, Any]:
    """The schedule as plain values for a checkpoint; they are equal for equal schedules."""
    return {"stages": [_stage_values(stage) for stage in schedule.stages], "lr_scale": [list(pair) for pair in schedule.lr_scale]}


def _stage_values(stage: Stage) -> dict[str, Any]:
    policy = stage.policy if isinstance(stage.policy, str) else dict(stage.policy)
    return {**asdict(stage), "train": list(stage.entries), "batchnorm": policy}


def decisions_in(state: Mapping[str, Any] | None, schedule: Schedule) -> Any:
    """The decisions of metrics in a checkpoint.

    Args:
        state: what `StagedFinetuning` saved; `None`: nothing.
        schedule: of the run that resumes from the checkpoint.

    Raises:
        UserError: nothing was saved, or the schedule was another one, see `check_same_schedule`.
    """
    if state is None:
        raise UserError(
            "this checkpoint was written without the callback StagedFinetuning, so the stage to resume is unknown: "
            "start a new run from the weights of the checkpoint"
        )
    check_same_schedule(state["schedule"], schedule)
    return state["decided"]


def check_same_schedule(saved: Any, schedule: Schedule) -> None:
    """Check that a checkpoint was made with this schedule.

    Args:
        saved: what `schedule_values` returned for the schedule of the checkpoint.
        schedule: of the run that resumes from it.

    Raises:
        UserError: the first stage or learning-rate factor that differs; or an earlier release wrote the checkpoint.
    """
    if not isinstance(saved, Mapping):
        raise UserError(
            "this checkpoint is from an older version of ftlit and cannot be resumed: start a new run with backbone.weights=..."
        )
    given = schedule_values(schedule)
    for part, describe in (("stages", _describe_stage), ("lr_scale", _describe_factor)):
        for before, now in zip_longest(saved[part], given[part]):
            if before != now:
                if before is None or now is None:
                    has, lacks = ("this run", "the checkpoint") if before is None else ("the checkpoint", "this run")
                    both = f"{has} has {describe(before or now)}, which {lacks} does not have"
                else:
                    both = f"the checkpoint has {describe(before)}, this run has {describe(now)}"
                if part == "stages" and before and now and before["train"] == now["train"]:
                    both = f"stage {_stage_of(before).name!r} has {_changes(before, now)}"
                raise UserError(
                    f"this checkpoint was made with another schedule: {both}; give the schedule of the checkpoint, or start a new run"
                )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The fields of a stage that differ: those of the checkpoint, then those of this run."""
    old, new = ({**stage, **{f"until.{name}": value for name, value in (stage["until"] or {}).items()}} for stage in (before, now))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name) and not (name == "until" and old[name] and new[name])]
    saved, given = (", ".join(f"{name}={fields.get(name)}" for name in names) for fields in (old, new))
    return f"{saved} in the checkpoint, but {given} here"


def _stage_of(values: Mapping[str, Any]) -> Stage:
    return Stage(**{**values, "until": Until(**values["until"]) if values["until"] else None})


def _describe_stage(values: Mapping[str, Any]) -> str:
    stage = _stage_of(values)
    begins = stage.begins if stage.until else f"at {stage.begins}"
    weights = "; from the best weights" if stage.from_best else ""
    trains = ", ".join(map(train_entries.describe, stage.entries))
    return f"stage {stage.name!r} (trains {trains}; begins {begins}; batchnorm {stage.policy}{weights})"


def _describe_factor(pair: Sequence[Any]) -> str:
    return f"the learning-rate factor {pair[1]!r} for {pair[0]}"
