"""SeedEachStep: make dropout and other random numbers of a training step a function of the step."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ftlit.seeding import derived_seed


class SeedEachStep(Callback):
    """Seeds torch's random number generators before each training batch from (seed, epoch, batch, process).

    A resumed run draws the numbers of the run that never stopped, without a generator's state in the checkpoint.

    Args:
        seed: seed of the run.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the generators of the CPU and of the module's device. `torch.manual_seed` would prepare CUDA's on a CPU run, at 0.4 ms."""
        seed, device = derived_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank), pl_module.device
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)
