"""Checks of StagedFinetuning: mistakes that would train the wrong parameters without an error, found before or during training."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn
from torch.optim import Optimizer

from ftlit.errors import UserError, shorten
from ftlit.finetuning.freeze import trained
from ftlit.finetuning.param_groups import EVERYTHING
from ftlit.finetuning.schedule import Schedule
from ftlit.finetuning.stage import Stage

Trainable = tuple[nn.Parameter, bool]  # a parameter, and whether the current stage trains it


def check_callbacks(callbacks: Iterable[Callback]) -> None:
    """Raise `UserError` for a callback that trains in a way of its own."""
    if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
        raise UserError(
            "StochasticWeightAveraging computes the statistics of frozen batch norms again, and sets its own rates: leave it out"
        )


def check_optimizers(module: nn.Module, schedule: Schedule, optimizers: Sequence[Optimizer]) -> None:
    """Check that the optimizers hold every parameter that a stage trains, in the groups of the schedule's `lr_scale`.

    Raises:
        UserError: a parameter is missing, for instance because the optimizer was built over what requires a gradient; or other groups.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held = {id(parameter) for group in groups for parameter in group["params"]}
    for stage in schedule.stages:
        if missing := [name for name, parameter in trained_parameters(module, stage) if id(parameter) not in held]:
            raise UserError(
                f"stage {stage.name!r} trains what no optimizer holds: {shorten(missing, most=3)}; "
                "build the optimizer over all parameters, frozen ones too: ftlit.build_optimizer"
            )
    wanted, given = {scale for _, scale in schedule.lr_scale}, {group.get("lr_scale") for group in groups}
    if tuple(schedule.lr_scale) != tuple(EVERYTHING) and not wanted <= given:
        raise UserError("the optimizer's groups are not those of the schedule: build_optimizer(module, factory, schedule.lr_scale)")


def trained_parameters(module: nn.Module, stage: Stage) -> list[tuple[str, nn.Parameter]]:
    """Name and parameter of everything that a stage trains."""
    names = trained(module, stage.train, stage.policy)
    return [(name, parameter) for name, parameter in module.named_parameters() if name in names]


def check_unchanged(module: nn.Module, expected: Iterable[Trainable]) -> None:
    """Check that `requires_grad` is as the current stage set it. DDP's reducer does not know parameters that other code has unfrozen:
    the processes would drift apart in them.

    Raises:
        UserError: other code has frozen or unfrozen a parameter.
    """
    for parameter, trains in expected:
        if parameter.requires_grad != trains:
            name = next((name for name, own in module.named_parameters() if own is parameter), "a parameter that was removed")
            change = "frozen" if trains else "unfrozen"
            raise UserError(f"{name!r} was {change} by something other than StagedFinetuning: let only the schedule decide what trains")


def describe_schedule(schedule: Schedule) -> list[str]:
    """Lines of text that are equal for equal schedules: one for each stage and each learning-rate factor."""
    rates = [f"rate of {pattern}: x {factor!r}" for pattern, factor in schedule.lr_scale]
    return [*map(_describe_stage, schedule.stages), *rates]


def _describe_stage(stage: Stage) -> str:
    until = f" ({stage.until!r})" if stage.until else ""
    weights = ", from the best weights" if stage.from_best else ""
    return f"stage {stage.name!r}: {', '.join(stage.train)} from {stage.begins}; batchnorm {stage.policy}{until}{weights}"


def check_same_schedule(saved: Sequence[str], given: Sequence[str]) -> None:
    """Raise `UserError` with the first difference between the schedules that two results of `describe_schedule` describe."""
    for before, now in zip_longest(saved, given, fillvalue="nothing"):
        if before != now:
            raise UserError(
                f"this checkpoint was made with another schedule: {before}; now {now}. Give the same schedule, or start a new run"
            )
