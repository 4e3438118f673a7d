"""FiniteLoss: end training at the first loss that is not a finite number."""

from collections.abc import Mapping
from math import isfinite

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ftlit.errors import UserError

MAX_SKIPPED = 20  # steps in a row: GradScaler has then halved its scale from 65,536 to below 1


class FiniteLoss(Callback):
    """Ends training with an error at the first loss that is not finite, before it changes the weights.

    Under `precision=16-mixed` GradScaler skips a step whose gradients are not finite and lowers its scale. There training ends after
    `MAX_SKIPPED` such losses in a row. All processes decide together. With `callbacks.finite_loss=null` training goes on.

    Raises:
        UserError: while training: the loss is not finite.
    """

    def __init__(self) -> None:
        self._in_a_row = 0

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss of a batch."""
        finite = trainer.strategy.reduce_boolean_decision(bool(torch.isfinite(loss.detach()).all()))
        self._in_a_row = 0 if finite else self._in_a_row + 1
        if self._in_a_row > (MAX_SKIPPED if _skips_steps(trainer) else 0):
            raise UserError(_message(trainer, float(loss.detach())))


def _skips_steps(trainer: Trainer) -> bool:
    """Whether a GradScaler skips steps whose gradients are not finite."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _message(trainer: Trainer, loss: float) -> str:
    value = "not finite in another process" if isfinite(loss) else f"{loss}"
    return (
        f"training stops: the loss of step {trainer.global_step} in epoch {trainer.current_epoch} is {value}. Give a lower optimizer.lr or "
        "trainer.gradient_clip_val=1, or check the images (callbacks.finite_loss=null goes on)"
    )


def check_results(results: Mapping[str, float]) -> None:
    """Raise `UserError` where the loss on val or test is not finite: the network then predicts nothing."""
    for name in ("val/loss", "test/loss"):
        if not isfinite(results.get(name, 0.0)):
            raise UserError(f"{name} of the trained network is {results[name]}: give a lower optimizer.lr, or check the images")
