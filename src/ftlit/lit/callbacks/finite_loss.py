"""FiniteLoss: end training at the first loss that is not a finite number."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ftlit.errors import UserError
from ftlit.lit.delayed_values import DelayedValues

MAX_SKIPPED = 20  # steps in a row: GradScaler has then halved its scale from 65,536 to below 1


class FiniteLoss(Callback):
    """Ends training with an error at the first loss that is not finite. No checkpoint holds weights that such a loss has changed.

    The loss of a batch is checked on its device, and the result is read before the next batch (`DelayedValues`), so that no step waits for
    the device. The step of the bad loss has then changed the weights in memory. The result is therefore also read before anything that
    keeps or judges weights: before each checkpoint, before validation, and at the end of training.

    Under `precision=16-mixed` GradScaler skips a step whose gradients are not finite and lowers its scale. There training ends after
    `MAX_SKIPPED` such losses in a row. All processes decide together. With `callbacks.finite_loss=null` training goes on.

    Raises:
        UserError: while training: the loss is not finite.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._not_finite, self._loss = DelayedValues(), torch.zeros(())
        self._at = (0, 0)  # step and epoch of the loss

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the losses of an earlier fit."""
        self._in_a_row = 0
        self._not_finite.take()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Queue the check of the loss of a batch."""
        self._loss, self._at = loss.detach(), (trainer.global_step, trainer.current_epoch)
        self._not_finite.put(trainer, (~torch.isfinite(self._loss)).any().float().reshape(1))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at the loss of the batch before."""
        self._check(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last loss before the weights are judged."""
        self._check(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look at the last loss before the weights are kept."""
        self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last loss of an epoch without validation."""
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        for bad in self._not_finite.take():
            self._in_a_row = self._in_a_row + 1 if bad else 0
            if self._in_a_row > (MAX_SKIPPED if _skips_steps(trainer) else 0):
                value = f"not finite in {bad:.0f} of {trainer.world_size} processes" if trainer.world_size > 1 else f"{float(self._loss)}"
                raise UserError(_message(*self._at, value))


def _skips_steps(trainer: Trainer) -> bool:
    """Whether a GradScaler skips steps whose gradients are not finite."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _message(step: int, epoch: int, value: str) -> str:
    return (
        f"training stops, because the loss of step {step} in epoch {epoch} is {value}. Give a lower optimizer.lr or "
        "trainer.gradient_clip_val=1, or check the data; to continue anyway, give callbacks.finite_loss=null"
    )


def check_results(results: Mapping[str, float]) -> None:
    """Raise `UserError` where the loss on val or test is not finite: the network then predicts nothing."""
    for name in ("val/loss", "test/loss"):
        if not isfinite(results.get(name, 0.0)):
            raise UserError(f"{name} of the trained network is {results[name]}: give a lower optimizer.lr, or check the data")
