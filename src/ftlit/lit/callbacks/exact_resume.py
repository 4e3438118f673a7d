"""Exact resume (invariant 5): LastCheckpoint saves between two optimizer steps, and MetricsFile continues `metrics.csv`."""

import csv
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from ftlit.errors import UserError
from ftlit.files import PART, naming
from ftlit.formats import reading
from ftlit.lit.checkpoint_io import use_checked_checkpoints, writes_atomically
from ftlit.lit.trainer_internals import has_csv_writer, mark_batch_not_begun, put_rows_first, step_skipped_plateau_schedulers

STATE, OLD_STATE = "exact_resume", "resuming"  # keys in a checkpoint; the old one is not read


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, which always begins a new `metrics.csv`, able to continue the one of the run that is resumed."""

    def __init__(self, save_dir: str | Path, name: str | None = "", version: int | str | None = "") -> None:
        super().__init__(save_dir, name=name, version=version)
        self._earlier_rows: list[dict[str, str]] = []

    @property
    def experiment(self) -> Any:
        """The writer of the file. Rows that are in the file already are read before the writer removes it."""
        path = Path(self.log_dir, "metrics.csv")
        if not has_csv_writer(self) and path.is_file():
            with reading(path, "remove it; its rows are lost, the run is not"), path.open(newline="") as file:
                self._earlier_rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
        with naming(path):
            return super().experiment

    def save(self) -> None:
        """Write the rows that are in memory. Raises `WriteError`."""
        with naming(Path(self.log_dir, "metrics.csv")):
            super().save()

    def flush(self) -> int:
        """Write rows that are still in memory. Returns the number of rows in the file."""
        path = Path(self.log_dir, "metrics.csv")
        self.save()
        if not path.is_file():
            return 0
        with path.open() as file:
            return sum(1 for _ in file) - 1  # less the header

    def continue_after(self, rows: int) -> None:
        """Keep the first `rows` rows of the file that was there; new rows follow them."""
        writer = self.experiment  # first, because it reads the earlier rows
        put_rows_first(writer, self._earlier_rows[:rows])


class LastCheckpoint(Callback):
    """Saves the state of training to one file: at the beginning of each epoch, every `every_n_steps` steps, and at the end.

    A checkpoint lies between two optimizer steps, after everything that belongs to the first, so that a run that is killed at any time
    resumes from it bit for bit. The file is replaced as a whole. Put this callback before callbacks that log.

    Args:
        path: file of the checkpoint.
        every_n_steps: optimizer steps between two checkpoints within an epoch.
    """

    def __init__(self, path: str | PathLike[str], every_n_steps: int = 500) -> None:
        self.path, self.every_n_steps = Path(path), every_n_steps
        self._before_step = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the trainer write and read checkpoints atomically and checked."""
        use_checked_checkpoints(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what this callback adds to a checkpoint depends on the trainer, see `on_save_checkpoint`."""
        return {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save before the first step of an epoch and before each n-th."""
        first_of_step = batch_idx % trainer.accumulate_grad_batches == 0
        if batch_idx == 0 or (first_of_step and trainer.global_step % self.every_n_steps == 0):
            self._before_step = True
            self._save(trainer)
            self._before_step = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Step the schedulers that need a metric in an epoch that was resumed."""
        step_skipped_plateau_schedulers(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of training."""
        self._save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the number of rows that were logged, and whether a callback has ended training."""
        rows = [logger.flush() for logger in _metrics_files(trainer)] if trainer.is_global_zero else []
        checkpoint[STATE] = {"rows": rows, "should_stop": trainer.should_stop}
        if self._before_step:
            mark_batch_not_begun(trainer, checkpoint["loops"])

    def _save(self, trainer: Trainer) -> None:
        """Replace the file as a whole. Other plugins than ours, and a folder of shards, are written beside it first."""
        if writes_atomically(trainer):
            return trainer.save_checkpoint(self.path, weights_only=False)
        beside = self.path.with_name(f"{self.path.name}{PART}")
        trainer.save_checkpoint(beside, weights_only=False)
        if trainer.is_global_zero:
            if beside.is_dir():  # sharded
                shutil.rmtree(self.path, ignore_errors=True)
            beside.replace(self.path)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue the files of metrics. Raises `UserError` for a checkpoint of an older version."""
        state = checkpoint.get(STATE)
        if trainer.state.fn == "fit" and OLD_STATE in checkpoint:
            raise UserError("an older version of ftlit made this checkpoint, and it cannot be resumed: start a new run from its weights")
        if trainer.state.fn != "fit" or state is None:
            return
        for logger, rows in zip(_metrics_files(trainer), state["rows"], strict=False):
            logger.continue_after(rows)
        trainer.should_stop = state["should_stop"]


def _metrics_files(trainer: Trainer) -> list[MetricsFile]:
    return [logger for logger in trainer.loggers if isinstance(logger, MetricsFile)]
