"""What a new stage does besides freezing: it has a line on the console, and everything that counts from its beginning starts again."""

import sys
from collections.abc import Callable
from math import inf

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from ftlit.errors import UserError
from ftlit.finetuning.examine import examine
from ftlit.finetuning.lr_schedule import Rates
from ftlit.finetuning.schedule import Schedule
from ftlit.lit.stages.stage_checks import accumulation_varies
from ftlit.lit.trainer_internals import (
    callbacks_of,
    datamodule_of,
    is_trial_run,
    restart_early_stopping,
    steps_per_epoch,
    training_length,
    validations_per_epoch,
)
from ftlit.models.backbone import Backbone


def schedule_of(function: Callable[[nn.Module], Schedule], module: LightningModule) -> Schedule:
    """The schedule that a function makes for a module. Raises `UserError` where it makes something else."""
    schedule = function(module) if callable(function) else function
    if not isinstance(schedule, Schedule):
        raise UserError(
            f"StagedFinetuning got a {type(schedule).__name__} as its schedule: give Schedule([...]) of the stages, or a function that "
            "takes the module and returns a Schedule"
        )
    return schedule


def print_plan(schedule: Schedule, trainer: Trainer, module: LightningModule, *, whole: bool) -> None:
    """Print, in the first process, what the schedule does to the module: the whole plan, or only its warnings."""
    if len(trainer.optimizers) != 1:
        if whole:
            module.print(f"no plan is printed, because the module has {len(trainer.optimizers)} optimizers, and the plan shows one")
        return
    steps = inf if is_trial_run(trainer) or accumulation_varies(trainer) else trainer.estimated_stepping_batches
    data = getattr(datamodule_of(trainer), "images", datamodule_of(trainer))  # of FeatureData
    # FitProbeHead needs a Backbone and ImageData; its class is not imported here, because data modules import this package
    may_fit = any(isinstance(part, Backbone) for part in module.modules()) and hasattr(data, "batch_overrides")
    length = int(steps) if steps < inf else None
    resumes = bool(trainer.ckpt_path) or trainer.global_step > 0  # then the head has trained
    fits = resumes or any(getattr(callback, "fits_head", False) for callback in callbacks_of(trainer))
    sizes = (getattr(own, "batch_size", None) for own in (trainer.train_dataloader, data))
    plan = examine(
        module,
        schedule,
        {"optimizer": trainer.optimizers[0], "lr_scheduler": [config.scheduler for config in trainer.lr_scheduler_configs]},
        batch_size=next((size for size in sizes if isinstance(size, int)), None),
        processes=trainer.world_size,
        steps=length,
        max_epochs=planned_epochs(trainer),
        validations=validations_per_epoch(trainer),
        fits_head=fits,
        may_fit_head=may_fit,
    )
    for line in [plan.describe()] if whole else plan.warning_lines:
        module.print(line)


def planned_epochs(trainer: Trainer) -> int | None:
    """Number of epochs after which training ends; `None` where a number of steps or a trial run may end it before, or nothing does."""
    counts = trainer.max_steps < 0 < (trainer.max_epochs or 0) and not is_trial_run(trainer)
    return trainer.max_epochs if counts else None


def print_begin(schedule: Schedule, index: int, trainer: Trainer, module: LightningModule) -> None:
    """Print, in the first process and above a progress bar, that a stage begins now."""
    stage = schedule.stages[index]
    begins = f"epoch {trainer.current_epoch}" if stage.step is None else f"step {trainer.global_step}"
    module.print(f"stage {index} begins at {begins}: {stage.name}")
    sys.stdout.flush()  # a progress bar's `print` takes no `flush`


def print_resumed(schedule: Schedule, index: int, trainer: Trainer, module: LightningModule) -> None:
    """Print, in the first process and above a progress bar, where training goes on, and in which stage."""
    last = len(schedule.stages) - 1
    stage = f"stage {index} (of 0 to {last})" if last else "the only stage"
    module.print(f"resumed at epoch {trainer.current_epoch}, step {trainer.global_step}, in {stage}: {schedule.stages[index].name}")
    sys.stdout.flush()


def restart_counts(schedule: Schedule, index: int, trainer: Trainer) -> None:
    """Set the factor of the stage, and restart everything that counts from its beginning: some schedulers, and `EarlyStopping`."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    staged = [scheduler for scheduler in schedulers if isinstance(scheduler, Rates)]
    for rates in staged:
        rates.set_stage(index)
    if restarting := [rates for rates in staged if rates.restarts]:
        steps, epochs = _length(schedule, index, trainer)
        for rates in restarting:
            rates.begin_stage(steps, epochs)
    for callback in trainer.early_stopping_callbacks:
        restart_early_stopping(callback)


def _length(schedule: Schedule, index: int, trainer: Trainer) -> tuple[int, int]:
    """(optimizer steps, epochs) from now until the next stage begins at the latest, or until training ends."""
    per_epoch = steps_per_epoch(trainer)
    ends = [*schedule.latest_steps(per_epoch)[index + 1 :], training_length(trainer)[0]]
    steps = next(end for end in ends if end is not None) - trainer.global_step
    return steps, -(-steps // per_epoch)
