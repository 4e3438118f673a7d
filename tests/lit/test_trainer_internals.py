"""Contract: Lightning still does this. Each test fails if Lightning changes a part that ftlit.lit.trainer_internals relies on.

test_trainer_internals_resume.py has the tests of resuming, early stopping and loggers.
"""

import csv
import os
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning_net import BATCHES, At, Net, fit, numbers, trainer
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import MeanMetric

from ftlit import UserError
from ftlit.lit import trainer_internals as internals

pytestmark = pytest.mark.filterwarnings("ignore")  # advice of Lightning on loaders, logging and modes


def test_callbacks_keep_their_order_but_checkpoints_come_last():
    first, second, saving = At("on_fit_start", id), LearningRateMonitor(), ModelCheckpoint()
    running = trainer(saving, first, second, enable_checkpointing=True, logger=True)
    assert internals.callbacks_of(running) == [first, second, saving]
    assert internals.find_callback(running, LearningRateMonitor) is second and internals.find_callback(running, EarlyStopping) is None


def test_hooks_of_callbacks_run_in_list_order_and_before_the_hook_of_the_module():
    seen = []

    class Module(Net):
        def on_train_batch_start(self, batch, batch_idx):
            seen.append("module")

    noting = [At("on_train_batch_start", lambda _, name=name: seen.append(name)) for name in ("first", "second")]
    fit(*noting, model=Module(), max_steps=1)
    assert seen == ["first", "second", "module"]


def test_the_trainer_keeps_a_datamodule_and_none_for_loaders():
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return numbers()

    running, data = trainer(), Data()
    running.fit(Net(), data)
    assert internals.datamodule_of(running) is data
    assert internals.datamodule_of(fit()[0]) is None


@pytest.mark.parametrize("batches", [False, 1, True])
def test_the_trainer_keeps_fast_dev_run(batches):
    assert internals.is_trial_run(trainer(fast_dev_run=batches)) == bool(batches)


def test_the_trainer_keeps_overfit_batches():
    assert internals.overfits_batches(trainer(overfit_batches=2)) and internals.overfits_batches(trainer(overfit_batches=0.5))
    assert not internals.overfits_batches(trainer()) and not internals.overfits_batches(None)


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
def test_the_steps_of_an_epoch_are_known_when_optimizers_are_built(settings, steps):
    found = []

    class Module(Net):
        def configure_optimizers(self):
            found.append((internals.steps_per_epoch(self.trainer), internals.training_length(self.trainer)))
            return super().configure_optimizers()

    fit(model=Module(), **settings)
    fit(model=Module(), max_epochs=-1, max_steps=2 * steps, **settings)
    assert found == [(steps, (2 * steps, 2))] * 2


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({}, 1),
        ({"val_check_interval": 0.5}, 2),
        ({"check_val_every_n_epoch": 2}, 0.5),
        ({"val_check_interval": 8, "check_val_every_n_epoch": None}, 0.5),
        ({"limit_val_batches": 0}, 1),
    ],
)
def test_the_validations_of_an_epoch_are_known_when_training_starts(settings, number):
    found = []
    fit(At("on_train_start", lambda running: found.append(internals.validations_per_epoch(running))), val=numbers(), **settings)
    assert found == [number]


def test_training_without_an_end_and_a_loader_without_a_length_are_errors():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from torch.zeros(3)

    with pytest.raises(UserError, match=r"set trainer.max_epochs or trainer.max_steps"):
        fit(At("on_train_start", internals.training_length), max_epochs=-1)
    with pytest.raises(UserError, match=r"set trainer.limit_train_batches"):
        fit(At("on_train_start", internals.steps_per_epoch), loader=DataLoader(Endless()))


def test_a_batch_is_counted_when_it_is_complete():
    counted = []
    note = At("on_train_batch_start", lambda running: counted.append(internals.completed_batches(running)))
    running, _ = fit(note, max_epochs=2)
    assert counted == [*range(BATCHES)] * 2 and internals.completed_batches(running) == BATCHES


def test_after_an_epoch_no_batch_of_the_next_is_complete():
    found = []
    note = [At(hook, lambda running: found.append(internals.epoch_position(running))) for hook in ("on_train_epoch_end", "on_train_end")]
    fit(*note, max_epochs=1)
    assert found == [{"epoch": 0, "batch": BATCHES}, {"epoch": 1, "batch": 0}]


def test_a_loader_begins_again_in_the_epoch_of_training():
    started = []

    class Counted(DataLoader):
        def __iter__(self):
            started.append(None)
            return super().__iter__()

    _, model = fit(At("on_train_start", internals.restart_loaders), loader=Counted(torch.arange(float(BATCHES))), max_epochs=2)
    assert len(started) == 3 and model.steps == [*range(BATCHES)] * 2


def test_fit_can_end_before_its_first_step_and_has_built_the_optimizers():
    steps = []
    find = At("on_fit_start", lambda running: steps.append(running.estimated_stepping_batches))
    running, model = fit(find, At("on_fit_start", internals.end_before_first_step))
    assert model.steps == [] and running.global_step == 0 and steps == [2 * BATCHES] and len(running.optimizers) == 1


def test_the_strategy_knows_the_number_of_processes_and_the_rank():
    assert internals.process_share(None) == internals.process_share(trainer()) == (1, 0)
    running = trainer(strategy="ddp", devices=2)
    assert internals.process_share(running) == (2, 0)


def test_the_loader_that_is_read_now_is_that_of_the_running_loop():
    loaders, found = [DataLoader(torch.arange(float(BATCHES))) for _ in range(3)], []

    class Noting(Net):
        def training_step(self, batch, batch_idx):
            found.append(internals.running_loader(self.trainer))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            found.append(internals.running_loader(self.trainer))

    running, model = trainer(max_epochs=1, num_sanity_val_steps=1), Noting()
    running.fit(model, *loaders[:2])
    running.validate(model, loaders[2], verbose=False)
    places = [next(i for i, loader in enumerate(loaders) if each is loader) for each in found]
    assert places == [1, *[0] * BATCHES, *[1] * BATCHES, *[2] * BATCHES]
    assert internals.running_loader(running) is internals.running_loader(None) is None


class Epochs(DistributedSampler):
    """A sampler of all items that records the calls of `set_epoch`."""

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
    with pytest.raises(RuntimeError, match="the training sampler is in epoch 0, but the trainer is in epoch 1"):
        running.fit(Net(), Loader(sampler, lambda: running))


def test_a_distributed_sampler_stays_in_place_under_ddp():
    data = torch.arange(float(BATCHES))
    sampler, found = Epochs(data), []
    note = At("on_train_start", lambda running: found.append(running.train_dataloader.sampler))
    fit(note, loader=DataLoader(data, sampler=sampler), strategy="ddp", devices=1, max_epochs=1)
    assert found == [sampler]


def test_a_metric_logged_in_the_first_batch_is_computed_over_all_batches_and_reset():
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


def test_the_loss_of_a_batch_is_divided_by_the_batches_of_a_step():
    losses = []

    class Noting(pl.Callback):
        def on_train_batch_end(self, running, module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    class Constant(Net):
        def training_step(self, batch, batch_idx):
            return self.weight.sum() * 0 + 6.0

    fit(Noting(), model=Constant(), accumulate_grad_batches=3, max_epochs=1)
    assert losses == [2.0] * BATCHES


@pytest.mark.e2e
def test_the_rank_is_read_from_the_environment_before_a_trainer_exists():
    code = "from ftlit.lit.trainer_internals import rank_before_trainer as rank; print(rank())"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "RANK": "2"}, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 2 and internals.rank_before_trainer() == 0  # a process started by hand


def test_fit_can_be_left_in_a_step_with_loggers_that_end_well_and_without_the_hooks_of_an_end(tmp_path):
    class Ends(CSVLogger):
        ended = ()

        def finalize(self, status):
            self.ended += (status,)

    logger, ended = Ends(tmp_path), []
    hooks = ("on_train_epoch_end", "on_train_end", "on_exception", "teardown")
    ends = [At(hook, lambda _, hook=hook: ended.append(hook)) for hook in hooks]
    left = At("on_train_batch_start", lambda running: internals.leave_fit() if running.global_step == BATCHES + 1 else None)
    running, _ = fit(left, *ends, logger=logger)
    assert running.global_step == BATCHES + 1 and ended == ["on_train_epoch_end", "teardown"] and logger.ended == ("success",)


def test_a_keyboard_interrupt_ends_fit_with_a_system_exit():
    def interrupt(running):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        fit(At("on_train_batch_start", interrupt))
