"""The optimizer steps of a run, counted before its trainer has seen the data."""

import warnings
from typing import Any

import lightning.pytorch as pl

from ftlit.data.samplers import TrainOrder
from ftlit.errors import UserError
from ftlit.finetuning.lr_schedule import Rates
from ftlit.lit.module import FineTuner
from ftlit.lit.stages.stage_checks import accumulation_varies
from ftlit.lit.trainer_internals import steps_of
from ftlit.recipes.run.artifacts import images_of


def steps_per_epoch(trainer: pl.Trainer, data: Any) -> int | None:
    """Optimizer steps of an epoch; `None` for data of another kind than ours, or where epochs differ in them."""
    batches = _batches_per_epoch(trainer, data)
    return None if batches is None or accumulation_varies(trainer) else steps_of(trainer, batches)


def training_steps(trainer: pl.Trainer, data: Any) -> int | None:
    """Optimizer steps of the whole training; `None` for data of another kind than ours, or training without an end."""
    per_epoch, epochs = steps_per_epoch(trainer, data), trainer.max_epochs
    if per_epoch is None:
        return None
    ends = [per_epoch * epochs] if epochs is not None and epochs >= 0 else []
    ends += [trainer.max_steps] if trainer.max_steps >= 0 else []
    return min(ends, default=None)


def rates_of(model: FineTuner, trainer: pl.Trainer, data: Any) -> Rates | None:
    """The learning rates over time as training will have them; `None` for a scheduler of another class, or a length that is not known."""
    steps, per_epoch = training_steps(trainer, data), steps_per_epoch(trainer, data)
    if steps is None or per_epoch is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come when training begins
        rates = model.build_scheduler(model.build_optimizer(), steps, -(-steps // per_epoch))
    return rates if isinstance(rates, Rates) else None


def check_batches(trainer: pl.Trainer, data: Any) -> None:
    """Check what Lightning finds only when training begins.

    Raises:
        UserError: a `limit_train_batches` that leaves no batch, or a `val_check_interval` after which no epoch has a validation.
    """
    batches, interval, limit = _batches_per_epoch(trainer, data), trainer.val_check_interval, trainer.limit_train_batches
    if batches is None:
        return
    if not batches and isinstance(limit, float) and limit:
        raise UserError(
            f"trainer.limit_train_batches={limit:g} leaves less than one batch of an epoch: give a number of batches, 1 or more, or a "
            "larger share"
        )
    if trainer.check_val_every_n_epoch is None:
        return
    if isinstance(interval, int) and interval > batches:
        raise UserError(
            f"trainer.val_check_interval={interval}: an epoch has only {batches} batches; give a number from 1 to {batches}, "
            "a share of an epoch such as 0.5, or trainer.check_val_every_n_epoch=null to count batches across epochs"
        )


def _batches_per_epoch(trainer: pl.Trainer, data: Any) -> int | None:
    images = images_of(data)
    if images is None or images.batch_overrides:
        return None
    batches = len(TrainOrder(images.collection.splits["train"], images.batch_size, processes=trainer.world_size))
    limit = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)
