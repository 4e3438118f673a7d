"""Dropout and whatever else a training step draws, as a function of where training is."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ftlit.seeding import derived_seed


class SeedEachStep(Callback):
    """Seeds torch's random numbers before each training batch from (seed, epoch, batch, process): a run that was stopped draws
    what it would have drawn (invariant 5), and no state of a generator needs to be kept.

    Args:
        seed: the run's.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed all devices."""
        torch.manual_seed(derived_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))
