"""The optimizer steps of a run, counted before its trainer has seen the data."""

from typing import Any

import lightning.pytorch as pl

from ftlit.data.samplers import TrainOrder
from ftlit.recipes.run.artifacts import images_of


def steps_per_epoch(trainer: pl.Trainer, data: Any) -> int | None:
    """Optimizer steps of an epoch; `None` for data of another kind than ours."""
    images = images_of(data)
    if images is None or images.batch_overrides:
        return None
    batches = len(TrainOrder(images.collection.splits["train"], images.batch_size, processes=trainer.world_size))
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return -(-batches // trainer.accumulate_grad_batches)


def training_steps(trainer: pl.Trainer, data: Any) -> int | None:
    """Optimizer steps of the whole training; `None` for data of another kind than ours, or training without an end."""
    per_epoch, epochs = steps_per_epoch(trainer, data), trainer.max_epochs
    if per_epoch is None:
        return None
    ends = [per_epoch * epochs] if epochs is not None and epochs >= 0 else []
    ends += [trainer.max_steps] if trainer.max_steps >= 0 else []
    return min(ends, default=None)
