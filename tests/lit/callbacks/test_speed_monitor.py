"""SpeedMonitor logs examples per second, waiting for data and memory of each epoch, to loggers other than metrics.csv."""

import time

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader, Dataset

from ftlit.lit.callbacks import speed_monitor
from ftlit.lit.callbacks.metrics_file import MetricsFile
from ftlit.lit.callbacks.speed_monitor import SpeedMonitor, _examples_in

BATCHES, BATCH = 5, 4


class Kept(Logger):
    """Keeps what is logged."""

    name, version = "kept", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        if any(key.startswith("speed/") for key in metrics):
            self.rows.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass


class Slow(Dataset):
    """Examples that each take `seconds` to read."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __len__(self):
        return BATCHES * BATCH

    def __getitem__(self, place):
        time.sleep(self.seconds)
        return torch.ones(3), place % 2


class Net(LightningModule):
    """A step that takes `seconds`, and a validation that takes long."""

    def __init__(self, seconds):
        super().__init__()
        self.layer, self.seconds = torch.nn.Linear(3, 2), seconds

    def training_step(self, batch, batch_idx):
        time.sleep(self.seconds)
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        time.sleep(0.2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(tmp_path, read, step, **options):
    """The rows of two epochs."""
    kept = Kept()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=[kept, MetricsFile(tmp_path)],
        callbacks=[SpeedMonitor()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(Net(step), DataLoader(Slow(read), BATCH), DataLoader(Slow(0.0), BATCH))
    assert not (tmp_path / "metrics.csv").exists() or "speed/" not in (tmp_path / "metrics.csv").read_text()
    return kept.rows


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2}])
def test_waiting_and_speed_are_those_of_training_whatever_validation_takes(tmp_path, options):
    rows = fitted(tmp_path, read=0.005, step=0.01, **options)  # a batch takes 20 ms to read, 10 ms to train on
    assert [step for step, _ in rows] == [BATCHES - 1, 2 * BATCHES - 1] and [row["epoch"] for _, row in rows] == [0, 1]
    for _, row in rows:
        assert 0.2 < row["speed/data_wait"] < 0.97
        assert 2 < row["speed/examples_per_second"] <= BATCH / 0.03
        assert row["speed/memory_gib"] > 0.01


def test_a_long_wait_is_noted_once_with_what_to_try(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed_monitor, "SLOW_SECONDS", 0.05)
    fitted(tmp_path, read=0.005, step=0.0)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert len(notes) == 1 and "waiting for data: try more workers (data.num_workers)" in notes[0]


def test_a_short_wait_is_not_noted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed_monitor, "SLOW_SECONDS", 0.05)
    fitted(tmp_path, read=0.0, step=0.2)
    assert "note:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("batch", "examples"),
    [(torch.ones(3, 2), 3), ({"ids": torch.ones(4, 2), "n": torch.tensor(4)}, 4), (["a", "b"], 0), ([torch.ones(2), (torch.ones(5),)], 5)],
)
def test_the_examples_of_any_batch_are_counted(batch, examples):
    assert _examples_in(batch) == examples


def test_an_epoch_that_is_resumed_in_its_middle_counts_from_there(monkeypatch):
    clock = iter([100.0, 101.0, 103.0])
    monkeypatch.setattr(speed_monitor, "perf_counter", lambda: next(clock))
    monitor = SpeedMonitor()
    monitor.on_train_start(None, None)
    monitor.on_train_batch_start(None, None, None, 3)
    monitor.on_train_batch_end(None, None, None, (torch.ones(BATCH, 3), torch.ones(BATCH)), 3)
    assert (monitor._examples, monitor._waits, monitor._busy) == (BATCH, 1.0, 2.0)
