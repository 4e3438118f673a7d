"""Training ends at the first loss that is not finite, before it changes the weights."""

from math import inf, nan

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from ftlit.errors import UserError
from ftlit.lit.callbacks.finite_loss import MAX_SKIPPED, FiniteLoss, check_results


class Scripted(pl.LightningModule):
    """A module with given losses, one for each batch, but for a weight close to 1."""

    def __init__(self, losses):
        super().__init__()
        self.losses, self.weight = losses, torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return (1 + self.weight.sum()) * self.losses[batch_idx]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(losses, *callbacks, **options):
    module = Scripted(losses)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=list(callbacks), **quiet, **options)
    try:
        trainer.fit(module, DataLoader(torch.zeros(len(losses), 1)))
    finally:
        module.steps = trainer.global_step
    return module


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}])
def test_training_ends_at_the_first_loss_that_is_not_finite(bad, options):
    with pytest.raises(UserError, match=f"^training stops: the loss of step . in epoch 0 is {bad}.*callbacks.finite_loss=null") as caught:
        fit([1.0, 1.0, 1.0, bad, 1.0], FiniteLoss(), **options)
    assert "\n" not in str(caught.value)


def test_without_the_callback_training_goes_on():
    assert fit([1.0, nan, 1.0]).steps == 3


def test_a_step_that_grad_scaler_skips_is_not_an_error_but_many_in_a_row_are():
    def scaled(losses):
        plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
        return fit(losses, FiniteLoss(), plugins=[plugin])

    assert scaled([1.0, inf, 1.0, nan, 1.0]).weight.isfinite().all()
    with pytest.raises(UserError, match="training stops"):
        scaled([inf] * (MAX_SKIPPED + 1))


def test_results_that_are_not_finite_are_an_error():
    check_results({"val/loss": 0.5, "test/loss": 0.4, "val/f1": nan})
    with pytest.raises(UserError, match="test/loss of the trained network is nan"):
        check_results({"val/loss": 0.5, "test/loss": nan})
