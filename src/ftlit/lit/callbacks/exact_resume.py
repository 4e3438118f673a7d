"""What a run needs to go on as if it had never stopped (invariant 5): a checkpoint between two steps, and its file of metrics."""

import csv
import os
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, which begins a new `metrics.csv`; this one can go on with the one that is there."""

    def __init__(self, save_dir: str | Path, name: str | None = "", version: int | str | None = "") -> None:
        super().__init__(save_dir, name=name, version=version)
        self._before: list[dict[str, str]] = []

    @property
    def experiment(self) -> Any:
        """The writer of the file; rows that it finds there are remembered before it removes them."""
        path = Path(self.log_dir, "metrics.csv")
        if self._experiment is None and path.is_file():
            with path.open(newline="") as file:
                self._before = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
        return super().experiment

    def written(self) -> int:
        """Write what is still in memory. Returns the number of rows in the file."""
        path = Path(self.log_dir, "metrics.csv")
        self.save()
        if not path.is_file():
            return 0
        with path.open() as file:
            return sum(1 for _ in file) - 1  # less the header

    def go_on_after(self, rows: int) -> None:
        """Put the first `rows` rows of the file that was there before the rows to come."""
        if isinstance(self.experiment.metrics, list):  # only the first process has a writer
            self.experiment.metrics[:0] = self._before[:rows]


class LastCheckpoint(Callback):
    """Writes where training is to one file, each time over the one before: at the beginning of each epoch, every `every_n_steps`
    steps, and at the end. Each lies between two optimizer steps, after all that belongs to the first, so that a run that is killed
    at any time goes on from it bit for bit. Put it before callbacks that log.

    Args:
        path: of the file.
        every_n_steps: optimizer steps between two checkpoints within an epoch.
    """

    def __init__(self, path: str | PathLike[str], every_n_steps: int = 500) -> None:
        self.path, self.every_n_steps = Path(path), every_n_steps
        self._between = False

    def state_dict(self) -> dict[str, Any]:
        """Nothing of its own; what it adds to a checkpoint depends on the trainer, see `on_save_checkpoint`."""
        return {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save before the first step of an epoch and before each n-th."""
        accumulated = batch_idx % trainer.accumulate_grad_batches == 0
        if batch_idx == 0 or (accumulated and trainer.global_step % self.every_n_steps == 0):
            self._between = True
            self._save(trainer)
            self._between = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Step schedulers that look at a metric: Lightning leaves them out in the epoch in which it was resumed."""
        for config in trainer.lr_scheduler_configs if trainer.fit_loop.restarting else ():
            if config.reduce_on_plateau and config.interval == "epoch" and (trainer.current_epoch + 1) % config.frequency == 0:
                config.scheduler.step(float(trainer.callback_metrics[str(config.monitor)]))  # type: ignore[arg-type]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end, from which nothing goes on."""
        self._save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the number of rows that were logged, and whether training was ended before its time."""
        rows = [logger.written() for logger in trainer.loggers if isinstance(logger, MetricsFile) and trainer.is_global_zero]
        checkpoint["resuming"] = {"rows": rows, "stopped": trainer.should_stop}
        if self._between:
            loops = checkpoint["loops"]["fit_loop"]
            progress = loops["epoch_loop.batch_progress"]
            progress["is_last_batch"] = False  # Lightning counts a batch as ready before its hooks: this one is not
            for counts in (progress["total"], progress["current"]):
                counts["ready"] -= 1
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= _just_validated(trainer)

    def _save(self, trainer: Trainer) -> None:
        """Beside the file, then in its place: Lightning's own write moves a temporary file, which between file systems is a copy."""
        beside = self.path.with_name(f"{self.path.name}.part")
        trainer.save_checkpoint(beside, weights_only=False)
        if trainer.is_global_zero:
            if beside.is_dir():  # sharded
                shutil.rmtree(self.path, ignore_errors=True)
            else:
                with beside.open("rb") as file:
                    os.fsync(file.fileno())
            beside.replace(self.path)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with the file of metrics."""
        state = checkpoint.get("resuming")
        if trainer.state.fn != "fit" or state is None:
            return
        for logger, rows in zip((logger for logger in trainer.loggers if isinstance(logger, MetricsFile)), state["rows"], strict=False):
            logger.go_on_after(rows)
        trainer.should_stop = state["stopped"]


def _just_validated(trainer: Trainer) -> bool:
    """Whether a validation lies before this batch. On resuming Lightning passes over it, and counts a step for the logger as it does."""
    every, after = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or after is None or (every is not None and (trainer.current_epoch + 1) % every):
        return False
    loop = trainer.fit_loop.epoch_loop
    return (loop.total_batch_idx if every is None else loop.batch_idx) % after == 0
