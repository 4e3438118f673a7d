"""Training ends at the first loss that is not finite, and no checkpoint holds the weights that it has changed."""

from math import inf, nan

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from ftlit.errors import UserError
from ftlit.lit.callbacks.exact_resume import LastCheckpoint
from ftlit.lit.callbacks.finite_loss import MAX_SKIPPED, FiniteLoss, check_results
from ftlit.lit.delayed_values import DelayedValues
from ftlit.lit.stop_signals import STOP_SIGNALS


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
    with pytest.raises(
        UserError, match=f"^training stops, because the loss of step . in epoch 0 is {bad}.*callbacks.finite_loss=null"
    ) as caught:
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


class HostWaits(TorchDispatchMode):
    """Operations that read a tensor into Python, during training steps: on a GPU each waits for all that was queued before."""

    NAMES = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if any(name in str(operation) for name in self.NAMES):
            self.seen.append(str(operation))
        return operation(*args, **(kwargs or {}))


class CountHostWaits(pl.Callback):
    """Counts from the start of a batch to the start of the next. It is the first callback."""

    def __init__(self):
        self.waits = HostWaits()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            self.waits.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == trainer.num_training_batches - 1:
            self.waits.__exit__(None, None, None)


def test_no_step_waits_for_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(STOP_SIGNALS, "owned", True)
    count = CountHostWaits()
    fit([1.0] * 6, count, LastCheckpoint(tmp_path / "last.ckpt"), FiniteLoss())
    assert count.waits.seen == []


def test_the_values_of_a_step_are_read_after_the_next_one_has_begun(tmp_path, monkeypatch):
    """On the CPU reading is no operation that `HostWaits` sees."""
    events = []

    class Begins(pl.Callback):
        def on_train_batch_start(self, *_):
            events.append("begin")

    for name in ("put", "take"):
        whole = getattr(DelayedValues, name)
        monkeypatch.setattr(DelayedValues, name, lambda *given, name=name, whole=whole: (events.append(name), whole(*given))[1])
    fit([1.0] * 4, Begins(), LastCheckpoint(tmp_path / "last.ckpt"), FiniteLoss())
    steps = "".join(event[0] for event in events).split("b")[1:-1]
    assert len(steps) == 3 and all(set(step[step.index("p") :]) == {"p"} for step in steps)


@pytest.mark.parametrize("bad", range(4))
def test_no_checkpoint_holds_weights_that_are_not_finite(tmp_path, bad):
    losses = [1.0] * 4
    losses[bad] = nan
    with pytest.raises(UserError, match=f"the loss of step {bad} in epoch 0 is nan"):
        fit(losses, LastCheckpoint(tmp_path / "last.ckpt", every_n_steps=1), FiniteLoss())
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert state["weight"].isfinite().all()
