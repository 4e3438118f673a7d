"""Contract: Lightning still does this. Each test fails if Lightning changes a part that ftlit.lit.trainer_internals relies on."""

import csv
import os
import subprocess
import sys
from math import inf

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyExperiment
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import MeanMetric

from ftlit import UserError
from ftlit.lit import trainer_internals as internals

pytestmark = pytest.mark.filterwarnings("ignore")  # advice of Lightning on loaders, logging and modes
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
BATCHES = 4  # in an epoch


class Net(pl.LightningModule):
    """One weight; its gradient is the mean of a batch. Records the hooks that run."""

    def __init__(self, plateau=False):
        super().__init__()
        self.weight, self.plateau = nn.Parameter(torch.zeros(1)), plateau
        self.hooks, self.steps = [], []  # names; batches by their first value

    def training_step(self, batch, batch_idx):
        self.steps.append(float(batch.flatten()[0]))
        self.log("loss", 1.0, on_step=False, on_epoch=True)
        return (self.weight * batch).mean()

    def validation_step(self, batch, batch_idx):
        self.hooks.append("validation_step")

    def configure_optimizers(self):
        self.hooks.append("configure_optimizers")
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        if not self.plateau:
            return optimizer
        scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss", "interval": "epoch"}}


class At(pl.Callback):
    """Calls a function with the trainer in one hook."""

    def __init__(self, hook, call):
        setattr(self, hook, lambda trainer, *_, **__: call(trainer))


def numbers(count=BATCHES):
    return DataLoader(torch.arange(float(count)))


def trainer(*callbacks, **settings):
    return pl.Trainer(**{"accelerator": "cpu", "max_epochs": 2, "callbacks": list(callbacks), **QUIET, **settings})


def fit(*callbacks, model=None, loader=None, ckpt_path=None, val=None, **settings):
    running, model = trainer(*callbacks, **settings), model or Net()
    running.fit(model, numbers() if loader is None else loader, val, ckpt_path=ckpt_path)
    return running, model


def test_callbacks_keep_their_order_but_checkpoints_come_last():
    first, second, saving = At("on_fit_start", id), LearningRateMonitor(), ModelCheckpoint()
    running = trainer(saving, first, second, enable_checkpointing=True, logger=True)
    assert internals.callbacks_of(running) == [first, second, saving]
    assert internals.find_callback(running, LearningRateMonitor) is second and internals.find_callback(running, EarlyStopping) is None


def test_hooks_of_callbacks_run_in_the_order_of_the_list_and_before_those_of_the_module():
    seen = []

    class Module(Net):
        def on_train_batch_start(self, batch, batch_idx):
            seen.append("module")

    noting = [At("on_train_batch_start", lambda _, name=name: seen.append(name)) for name in ("first", "second")]
    fit(*noting, model=Module(), max_steps=1)
    assert seen == ["first", "second", "module"]


def test_a_datamodule_is_kept_and_loaders_are_none():
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return numbers()

    running, data = trainer(), Data()
    running.fit(Net(), data)
    assert internals.datamodule_of(running) is data
    assert internals.datamodule_of(fit()[0]) is None


@pytest.mark.parametrize("batches", [False, 1, True])
def test_fast_dev_run_is_kept(batches):
    assert internals.is_trial_run(trainer(fast_dev_run=batches)) == bool(batches)


@pytest.mark.parametrize(("interval", "rows"), [(50, 1), (2, 2), (0, 0)])  # of four steps
def test_the_logging_interval_may_be_changed_when_training_starts(tmp_path, interval, rows):
    class Module(Net):
        def training_step(self, batch, batch_idx):
            self.log("step_loss", 1.0)
            return super().training_step(batch, batch_idx)

    lowering = At("on_train_start", lambda running: internals.log_at_least_every(running, BATCHES))
    logger = CSVLogger(tmp_path, name="", version="")
    fit(lowering, model=Module(), logger=logger, log_every_n_steps=interval, max_epochs=1)
    table = tmp_path / "metrics.csv"
    logged = [row for row in csv.DictReader(table.read_text().splitlines()) if row.get("step_loss")] if table.is_file() else []
    assert len(logged) == rows


@pytest.mark.parametrize(("settings", "steps"), [({}, 4), ({"accumulate_grad_batches": 3}, 2), ({"limit_train_batches": 3}, 3)])
def test_the_steps_of_an_epoch_are_known_as_soon_as_optimizers_are_built(settings, steps):
    found = []

    class Module(Net):
        def configure_optimizers(self):
            found.append((internals.steps_per_epoch(self.trainer), internals.training_length(self.trainer)))
            return super().configure_optimizers()

    fit(model=Module(), **settings)
    fit(model=Module(), max_epochs=-1, max_steps=2 * steps, **settings)
    assert found == [(steps, (2 * steps, 2))] * 2


def test_a_training_without_an_end_and_a_loader_without_a_length_are_refused():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from torch.zeros(3)

    with pytest.raises(UserError, match=r"set trainer.max_epochs or trainer.max_steps"):
        fit(At("on_train_start", internals.training_length), max_epochs=-1)
    with pytest.raises(UserError, match=r"set trainer.limit_train_batches"):
        fit(At("on_train_start", internals.steps_per_epoch), loader=DataLoader(Endless()))


def test_the_batches_of_an_epoch_are_counted_when_they_are_complete():
    counted = []
    note = At("on_train_batch_start", lambda running: counted.append(internals.completed_batches(running)))
    running, _ = fit(note, max_epochs=2)
    assert counted == [*range(BATCHES)] * 2 and internals.completed_batches(running) == BATCHES


def test_fit_can_end_before_its_first_step_with_the_optimizers_of_the_whole_training():
    steps = []
    find = At("on_fit_start", lambda running: steps.append(running.estimated_stepping_batches))
    running, model = fit(find, At("on_fit_start", internals.end_before_first_step))
    assert model.steps == [] and running.global_step == 0 and steps == [2 * BATCHES] and len(running.optimizers) == 1


def test_one_process_has_all_of_the_data_and_a_strategy_of_several_knows_the_share_of_each():
    assert internals.process_share(None) == internals.process_share(trainer()) == (1, 0)
    running = trainer(strategy="ddp", devices=2)
    assert internals.process_share(running) == (2, 0)


class Epochs(DistributedSampler):
    """All items; `set_epoch` is recorded."""

    def __init__(self, data):
        super().__init__(data, 1, 0, shuffle=False)
        self.epochs = []

    def set_epoch(self, epoch):
        super().set_epoch(epoch)
        self.epochs.append(epoch)


class Loader:
    """A loader that is not a DataLoader."""

    batch_sampler = None

    def __init__(self, sampler, running):
        self.sampler, self.running = sampler, running

    def __len__(self):
        return BATCHES

    def __iter__(self):
        internals.check_sampler_epoch(self.running(), self.sampler.epoch)
        yield from torch.arange(float(BATCHES))


def test_the_epoch_is_set_on_the_sampler_of_any_loader_before_it_is_read():
    sampler, running = Epochs(range(BATCHES)), trainer(max_epochs=3)
    running.fit(Net(), Loader(sampler, lambda: running))
    assert sorted(set(sampler.epochs)) == [0, 1, 2]


def test_a_loader_whose_epoch_is_not_set_is_an_error():
    sampler, running = Epochs(range(BATCHES)), trainer(max_epochs=3)
    sampler.set_epoch = lambda epoch: None
    with pytest.raises(RuntimeError, match="the training sampler is in epoch 0, training in epoch 1"):
        running.fit(Net(), Loader(sampler, lambda: running))


def test_a_distributed_sampler_stays_in_place_under_ddp():
    data = torch.arange(float(BATCHES))
    sampler, found = Epochs(data), []
    note = At("on_train_start", lambda running: found.append(running.train_dataloader.sampler))
    fit(note, loader=DataLoader(data, sampler=sampler), strategy="ddp", devices=1, max_epochs=1)
    assert found == [sampler]


class SaveBefore(pl.Callback):
    """Saves in `on_train_batch_start` of each batch, as LastCheckpoint does."""

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
    """Begins at the batch that training continues with, as ImageData does."""

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
def test_a_batch_that_is_marked_as_not_begun_is_the_first_of_the_resumed_training(tmp_path, settings, epoch, batch):
    settings = {"num_sanity_val_steps": 0, **settings}
    whole, model = fit(SaveBefore(tmp_path, mark=True), val=numbers(1), **settings)
    resumed, again = fit(ckpt_path=tmp_path / f"{epoch}.{batch}.ckpt", loader=Resumable(batch), val=numbers(1), **settings)
    assert again.steps == model.steps[epoch * BATCHES + batch :]
    assert loop_state(resumed) == loop_state(whole) and torch.equal(model.weight, again.weight)


def test_without_the_mark_a_step_is_lost_or_counted_twice(tmp_path):
    """The control: when this no longer fails, `mark_batch_not_begun` is no longer needed."""
    whole, _ = fit(SaveBefore(tmp_path, mark=False))
    resumed, _ = fit(ckpt_path=tmp_path / "0.2.ckpt", loader=Resumable(2))
    assert loop_state(resumed) != loop_state(whole)


@pytest.mark.parametrize("correct", [True, False])
def test_a_scheduler_that_needs_a_metric_is_left_out_in_an_epoch_that_was_resumed(tmp_path, correct):
    whole, _ = fit(SaveBefore(tmp_path, mark=True), model=Net(plateau=True), max_epochs=3)
    step = [At("on_train_epoch_end", internals.step_skipped_plateau_schedulers)] if correct else []
    resumed, _ = fit(*step, ckpt_path=tmp_path / "1.2.ckpt", loader=Resumable(2), model=Net(plateau=True), max_epochs=3)
    rates = [running.optimizers[0].param_groups[0]["lr"] for running in (whole, resumed)]
    assert (rates[0] == rates[1]) == correct


@pytest.mark.parametrize("mode", ["min", "max"])
def test_early_stopping_takes_other_limits_and_begins_again(mode):
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
    assert epochs == [0, 1, 2, 3, 4, 5]  # never better: patience ends it one epoch after it began again
    assert stopping.patience == 1


def test_the_limits_that_are_no_limits_leave_a_metric_that_is_not_finite():
    class Broken(Net):
        def training_step(self, batch, batch_idx):
            self.log("score", inf, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    stopping = EarlyStopping("score", mode="max", check_finite=True)
    internals.StoppingLimits().apply(stopping)
    running, _ = fit(stopping, model=Broken(), max_epochs=5)
    assert running.current_epoch == 1


def test_a_csv_logger_writes_rows_that_are_put_first(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    assert not internals.has_csv_writer(logger)
    logger.log_metrics({"loss": 2.0}, step=1)
    assert internals.has_csv_writer(logger)
    internals.put_rows_first(logger.experiment, [{"loss": "1.0", "step": "0"}])
    logger.save()
    assert (tmp_path / "metrics.csv").read_text().split() == ["loss,step", "1.0,0", "2.0,1"]
    internals.put_rows_first(DummyExperiment(), [{"loss": "1.0"}])  # of further processes


def test_building_the_writer_of_a_csv_logger_removes_the_file_that_is_there(tmp_path):
    (tmp_path / "metrics.csv").write_text("loss,step\n1.0,0\n")
    _ = CSVLogger(tmp_path, name="", version="").experiment
    assert not (tmp_path / "metrics.csv").exists()


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


def test_a_metric_that_is_logged_in_the_first_batch_is_computed_over_all_batches_and_reset():
    found = []

    class Counting(Net):
        def __init__(self):
            super().__init__()
            self.mean = MeanMetric()

        def training_step(self, batch, batch_idx):
            self.mean.update(batch[0])
            if batch_idx == 0:
                self.log("mean", self.mean, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    fit(At("on_train_epoch_end", lambda running: found.append(float(running.callback_metrics["mean"]))), model=Counting())
    fit(At("on_train_end", lambda running: found.append(float(running.callback_metrics["mean"]))), model=Counting())
    assert found[-1] == sum(range(BATCHES)) / BATCHES and set(found) == {found[-1]}


def test_the_loss_of_a_batch_comes_divided_by_the_batches_of_a_step():
    losses = []

    class Noting(pl.Callback):
        def on_train_batch_end(self, running, module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    class Constant(Net):
        def training_step(self, batch, batch_idx):
            return self.weight.sum() * 0 + 6.0

    fit(Noting(), model=Constant(), accumulate_grad_batches=3, max_epochs=1)
    assert losses == [2.0] * BATCHES


def test_a_trainer_keeps_overfit_batches():
    assert internals.overfits_batches(trainer(overfit_batches=2)) and internals.overfits_batches(trainer(overfit_batches=0.5))
    assert not internals.overfits_batches(trainer()) and not internals.overfits_batches(None)


@pytest.mark.parametrize(("rank", "expected"), [("2", 2), (None, 0)])
def test_the_rank_is_known_from_the_environment_before_there_is_a_trainer(rank, expected):
    code = "from ftlit.lit.trainer_internals import rank_before_trainer as rank; print(rank())"
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in names} | ({"RANK": rank} if rank else {})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == expected


def test_an_interruption_ends_fit_with_a_system_exit():
    def interrupt(running):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        fit(At("on_train_batch_start", interrupt))
