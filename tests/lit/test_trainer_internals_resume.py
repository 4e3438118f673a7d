"""Contract: Lightning still does this, when it resumes a run, stops early and writes metrics.csv (ftlit.lit.trainer_internals)."""

from math import inf

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyExperiment
from lightning_net import BATCHES, At, Net, fit, numbers
from torch.utils.data import DataLoader

from ftlit.lit import trainer_internals as internals

pytestmark = pytest.mark.filterwarnings("ignore")  # advice of Lightning on loaders, logging and modes


class SaveBefore(pl.Callback):
    """Save in `on_train_batch_start` of each batch, as LastCheckpoint does."""

    def __init__(self, folder, mark):
        self.folder, self.mark, self.saving = folder, mark, False

    def on_train_batch_start(self, running, module, batch, batch_idx):
        self.saving = True
        running.save_checkpoint(self.folder / f"{running.current_epoch}.{batch_idx}.ckpt")
        self.saving = False

    def on_save_checkpoint(self, running, module, checkpoint):
        if self.saving and self.mark:
            internals.mark_batch_not_begun(running, checkpoint["loops"])


class Resumable(DataLoader):
    """A loader that begins at the batch at which training continues, as the loader of ImageData does."""

    def __init__(self, begin):
        super().__init__(torch.arange(float(BATCHES)))
        self.begin = begin

    def __iter__(self):
        begin, self.begin = self.begin, 0
        yield from torch.arange(float(BATCHES))[begin:].unsqueeze(1)


VALIDATION = [{}, {"val_check_interval": 2}, {"check_val_every_n_epoch": 2}, {"check_val_every_n_epoch": None, "val_check_interval": 3}]


def loop_state(running):
    loop = running.fit_loop.epoch_loop
    return running.global_step, running.current_epoch, loop._batches_that_stepped, loop.total_batch_idx, loop.batch_progress.current.ready


@pytest.mark.parametrize("settings", VALIDATION)
@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (0, 2), (0, 3), (1, 0), (1, 2)])
def test_a_resumed_training_begins_with_the_batch_that_is_marked_as_not_begun(tmp_path, settings, epoch, batch):
    settings = {"num_sanity_val_steps": 0, **settings}
    whole, model = fit(SaveBefore(tmp_path, mark=True), val=numbers(1), **settings)
    resumed, again = fit(ckpt_path=tmp_path / f"{epoch}.{batch}.ckpt", loader=Resumable(batch), val=numbers(1), **settings)
    assert again.steps == model.steps[epoch * BATCHES + batch :]
    assert loop_state(resumed) == loop_state(whole) and torch.equal(model.weight, again.weight)


def test_without_the_mark_a_resumed_training_has_another_loop_state(tmp_path):
    """Negative control: if this test fails, `mark_batch_not_begun` is no longer needed."""
    whole, _ = fit(SaveBefore(tmp_path, mark=False))
    resumed, _ = fit(ckpt_path=tmp_path / "0.2.ckpt", loader=Resumable(2))
    assert loop_state(resumed) != loop_state(whole)


@pytest.mark.parametrize("correct", [True, False])
def test_lightning_skips_a_plateau_scheduler_at_the_end_of_a_resumed_epoch(tmp_path, correct):
    whole, _ = fit(SaveBefore(tmp_path, mark=True), model=Net(plateau=True), max_epochs=3)
    step = [At("on_train_epoch_end", internals.step_skipped_plateau_schedulers)] if correct else []
    resumed, _ = fit(*step, ckpt_path=tmp_path / "1.2.ckpt", loader=Resumable(2), model=Net(plateau=True), max_epochs=3)
    rates = [running.optimizers[0].param_groups[0]["lr"] for running in (whole, resumed)]
    assert (rates[0] == rates[1]) == correct


def test_the_hooks_around_a_checkpoint_run_in_the_order_that_stages_need(tmp_path):
    """The stage is applied in `setup` or `on_load_checkpoint`, both before the optimizer is built."""
    fit(SaveBefore(tmp_path, mark=True))
    model, found = Net(), {}
    hooks = [At(hook, lambda _, hook=hook: model.hooks.append(hook)) for hook in ("setup", "on_fit_start", "on_train_start")]

    class Loading(pl.Callback):
        def on_load_checkpoint(self, running, module, checkpoint):
            model.hooks.append("on_load_checkpoint")
            found.update(checkpoint)

    fit(*hooks, Loading(), model=model, ckpt_path=tmp_path / "1.2.ckpt", loader=Resumable(2))
    assert model.hooks[:5] == ["setup", "on_load_checkpoint", "configure_optimizers", "on_fit_start", "on_train_start"]
    assert (found["epoch"], found["global_step"]) == (1, BATCHES + 2) and {"callbacks", "loops", "state_dict"} <= set(found)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_early_stopping_takes_other_limits_and_restarts(mode):
    stopping = EarlyStopping("loss", mode=mode, patience=1, stopping_threshold=0.0 if mode == "min" else 2.0)
    given = internals.StoppingLimits.of(stopping)
    assert given == internals.StoppingLimits(1, stopping.stopping_threshold)
    epochs = []

    def change(running):
        epochs.append(running.current_epoch)
        if running.current_epoch == 0:
            internals.StoppingLimits().apply(stopping)
        if running.current_epoch == 4:
            given.apply(stopping)
            internals.restart_early_stopping(stopping)

    fit(At("on_train_epoch_start", change), stopping, max_epochs=9)
    assert epochs == [0, 1, 2, 3, 4, 5]  # no progress: patience ends training one epoch after the restart
    assert stopping.patience == 1


def test_without_stopping_limits_a_metric_that_is_not_finite_ends_training():
    class Broken(Net):
        def training_step(self, batch, batch_idx):
            self.log("score", inf, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    stopping = EarlyStopping("score", mode="max", check_finite=True)
    internals.StoppingLimits().apply(stopping)
    running, _ = fit(stopping, model=Broken(), max_epochs=5)
    assert running.current_epoch == 1


def test_a_csv_logger_lists_the_rows_that_it_has_not_written_and_writes_those_that_are_inserted_first(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    assert not internals.has_csv_writer(logger)
    logger.log_metrics({"loss": 2.0}, step=1)
    assert internals.has_csv_writer(logger)
    assert internals.waiting_rows(logger.experiment) == [{"loss": 2.0, "step": 1}]
    internals.waiting_rows(logger.experiment)[:0] = [{"loss": "1.0", "step": "0"}]
    logger.save()
    assert internals.waiting_rows(logger.experiment) == []
    assert (tmp_path / "metrics.csv").read_text().split() == ["loss,step", "1.0,0", "2.0,1"]
    assert internals.waiting_rows(DummyExperiment()) == []  # the experiment of processes other than the first


def test_building_the_writer_of_a_csv_logger_removes_an_existing_file(tmp_path):
    (tmp_path / "metrics.csv").write_text("loss,step\n1.0,0\n")
    _ = CSVLogger(tmp_path, name="", version="").experiment
    assert not (tmp_path / "metrics.csv").exists()
