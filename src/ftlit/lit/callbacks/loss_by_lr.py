"""LossByRate: record learning rate and loss of each optimizer step, for the range test."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from ftlit.errors import UserError
from ftlit.finetuning.lr_range_test import diverged
from ftlit.finetuning.lr_schedule import Rates


class LossByRate(Callback):
    """Records for each optimizer step the factor of a `ftlit.Rates` scheduler and the training loss, a mean over batches and processes.

    Ends training when the loss diverges (`ftlit.finetuning.lr_range_test.diverged`) or is not finite; a loss that is not finite is not
    recorded.

    Attributes:
        rates: factor on the base learning rates, by step.
        losses: mean loss, by step.

    Raises:
        UserError: the loss of the first step is not finite.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._batches: list[torch.Tensor] = []  # losses since the last step
        self._rate: float | None = None  # of the optimizer step that this batch ends; None if it ends none

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Note the rate here: when the batch ends the scheduler has stepped."""
        scheduler = trainer.lr_scheduler_configs[0].scheduler
        assert isinstance(scheduler, Rates)
        self._rate = scheduler.factor

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record the step, if this batch ended one."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        self._batches.append(loss.detach() * trainer.accumulate_grad_batches)  # Lightning divides it by these
        if self._rate is not None:
            mean = trainer.strategy.reduce(torch.stack(self._batches).mean(), reduce_op="mean")
            self._record(trainer, self._rate, float(mean))
            self._batches, self._rate = [], None

    def _record(self, trainer: Trainer, rate: float, loss: float) -> None:
        if not isfinite(loss):
            if not self.losses:
                raise UserError(f"the loss is {loss} in the first step, before any update of the weights: check data, loss and precision")
            trainer.should_stop = True
            return
        self.rates.append(rate)
        self.losses.append(loss)
        trainer.should_stop = diverged(self.rates, self.losses)
