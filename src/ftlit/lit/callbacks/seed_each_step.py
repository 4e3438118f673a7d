"""SeedEachStep: make dropout and other random numbers of a training step a function of the step."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ftlit.errors import UserError
from ftlit.plain_arguments import plain_arguments
from ftlit.seeding import derived_seed


class SeedEachStep(Callback):
    """Seeds torch's random number generators before each training batch from (seed, epoch, batch, process).

    A resumed run draws the numbers of the run that never stopped, without a generator's state in the checkpoint.

    Args:
        seed: seed of the run.

    Raises:
        UserError: on resuming: the checkpoint was written with another seed.
    """

    @plain_arguments
    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def state_dict(self) -> dict[str, int]:
        """Return the seed, to compare it on resuming."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Compare the seed of the checkpoint with this one."""
        if state_dict["seed"] != self.seed:
            raise UserError(
                f"the checkpoint was written with SeedEachStep({state_dict['seed']}), but this run has SeedEachStep({self.seed}): give "
                f"SeedEachStep({state_dict['seed']}), or start a new run"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the generators of the CPU and of the module's device. `torch.manual_seed` would prepare CUDA's on a CPU run, at 0.4 ms."""
        seed, device = derived_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank), pl_module.device
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)
