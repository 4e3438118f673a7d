"""Exact resume (invariant 5): LastCheckpoint saves between two optimizer steps, and MetricsFile continues `metrics.csv`."""

import shutil
import time
import warnings
from contextlib import ExitStack
from math import inf
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from xxhash import xxh3_64

from ftlit.errors import UserError
from ftlit.files import naming, part_of
from ftlit.formats import reading
from ftlit.lit.callbacks.metric_rows import Row, add_rows, complete_rows
from ftlit.lit.checkpoint_io import use_checked_checkpoints, writes_atomically
from ftlit.lit.delayed_values import DelayedValues
from ftlit.lit.resumed_checkpoint import check_best, check_loaders, continuing, follow_folder
from ftlit.lit.stop_signals import STOP_SIGNALS, owned_signals
from ftlit.lit.trainer_internals import (
    has_csv_writer,
    leave_signals,
    mark_batch_not_begun,
    requeues,
    running_loader,
    step_skipped_plateau_schedulers,
    waiting_rows,
)
from ftlit.run_folder import RUN_STATE

OLD_STATE = "resuming"  # the key of earlier releases in a checkpoint, which is not read


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, which always begins a new `metrics.csv`, able to continue the one of the run that is resumed."""

    def __init__(self, save_dir: str | Path, name: str | None = "", version: int | str | None = "") -> None:
        super().__init__(save_dir, name=name, version=version)
        self._earlier_rows: list[Row] = []
        self._replaces = False  # whether it removes rows of an earlier run
        self._count, self._hash = 0, xxh3_64()  # of the rows that were written

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.log_dir, "metrics.csv")

    @property
    def experiment(self) -> Any:
        """The writer of the file. Rows that are in the file already are read before the writer removes it."""
        if not has_csv_writer(self) and self.path.is_file():
            with reading(self.path, "remove it; only its rows are lost"):
                self._earlier_rows = complete_rows(self.path.read_text())
            self._replaces = bool(self._earlier_rows)
        with naming(self.path), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Experiment logs directory .* exists and is not empty")  # see `save`
            return super().experiment

    def save(self) -> None:
        """Write the rows that are in memory. Raises `WriteError`."""
        rows = waiting_rows(self.experiment)
        if rows and self._replaces:
            self._replaces = False
            warnings.warn(f"replacing the rows of an earlier run in {self.path}", stacklevel=2)
        with naming(self.path):
            super().save()
        self._count += len(rows)
        add_rows(self._hash, rows)

    def flush(self) -> tuple[int, str]:
        """Write rows that are still in memory. Returns the number of rows in the file, and a hash of them."""
        self.save()
        return self._count, self._hash.hexdigest()

    def continue_after(self, count: int, digest: str | None) -> None:
        """Keep the first rows of the file that was there; new rows follow them. A warning reports rows that are missing, or have changed.

        Args:
            count: how many rows to keep.
            digest: the hash of these rows, as `flush` gave it; `None` in checkpoints of earlier releases.
        """
        writer = self.experiment  # first, because it reads the earlier rows
        self._replaces = False
        kept = self._earlier_rows[:count]
        found = xxh3_64()
        add_rows(found, kept)
        if len(kept) < count:
            damage = f"was cut off: only {len(kept)} of {count} rows left" if kept else f"is missing or empty: rows lost: {count}"
            warnings.warn(f"{self.path} {damage}; the rows that are left stay, and new rows follow them", stacklevel=2)
        elif digest not in (None, found.hexdigest()):
            warnings.warn(f"{self.path} was changed: the first {count} rows differ from the rows that the run wrote", stacklevel=2)
        waiting_rows(writer)[:0] = kept


class LastCheckpoint(Callback):
    """Saves the state of training to one file: before the first step, whenever `every_seconds` have passed, and at the end.

    A signal that ends the program (`ftlit.lit.stop_signals`) ends training before the next step, after a checkpoint. In a program that
    handles signals itself, and under SLURM with automatic requeueing, its own handlers stay.

    A checkpoint lies between two optimizer steps, after everything that belongs to the first, so that a run that is killed at any time
    resumes from it bit for bit. The file is replaced as a whole. Put this callback before callbacks that log. A loader that shuffles by a
    generator, as `DataLoader(shuffle=True)`, is a warning: its order after a resume is another one.

    Args:
        path: file of the checkpoint.
        every_seconds: time between two checkpoints, by the clock of the first process.
        every_n_steps: optimizer steps between two checkpoints, besides those by time; `None`: by time only.

    Attributes:
        run: a digest that identifies the run, written to each checkpoint; a checkpoint with another one is not resumed.
    """

    def __init__(self, path: str | PathLike[str], *, every_seconds: float = 120, every_n_steps: int | None = None) -> None:
        self.path, self.every_seconds, self.every_n_steps = Path(path), every_seconds, every_n_steps
        self.run: str | None = None
        self._before_step = self._heeds_signals = False
        self._saved_at = -inf  # by `time.monotonic`; before the first checkpoint of a fit
        self._continuing = ExitStack()  # of a resumed run, until its first step
        self._signals = ExitStack()  # during a fit
        self._asked = DelayedValues()  # of several processes: how many have received a signal, and whether a checkpoint is due

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the trainer write and read checkpoints atomically and checked; in a fit, receive signals, where the program does not."""
        use_checked_checkpoints(trainer)
        if stage == "fit" and not STOP_SIGNALS.owned and not requeues(trainer):
            self._signals.enter_context(owned_signals(answers=trainer.is_global_zero))
            leave_signals(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._signals.close()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what this callback adds to a checkpoint depends on the trainer, see `on_save_checkpoint`."""
        return {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on a signal ends training between two steps. All processes ask, or none, whether one has come.

        Raises:
            UserError: a loader keeps its own position, which would be one batch ahead in each checkpoint.
        """
        check_loaders(loaders := running_loader(trainer))
        if trainer.ckpt_path:
            self._continuing.enter_context(continuing(loaders))
        STOP_SIGNALS.deferred = STOP_SIGNALS.owned
        self._heeds_signals = trainer.strategy.reduce_boolean_decision(STOP_SIGNALS.owned, all=False)
        self._saved_at = -inf
        self._asked.take()  # of an earlier fit

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Ask the other processes whether a signal has come, and tell them whether a checkpoint is due. The next step reads the answer."""
        if trainer.world_size > 1:
            stops, due = self._heeds_signals and STOP_SIGNALS.requested, trainer.is_global_zero and self._is_due()
            self._asked.put(trainer, torch.tensor([float(stops), float(due)], device=pl_module.device))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save before the first step, where a checkpoint is due, and before the step that a signal prevents."""
        self._continuing.close()
        if batch_idx % trainer.accumulate_grad_batches:
            return
        stops, due = self._decided(trainer)
        if stops or due or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            self._before_step = True
            self._save(trainer)
            self._before_step = False
        if stops:
            STOP_SIGNALS.stop()

    def _decided(self, trainer: Trainer) -> tuple[bool, bool]:
        """Whether a signal has come to any process, and whether a checkpoint is due; the same in all processes."""
        if trainer.world_size == 1:
            return self._heeds_signals and STOP_SIGNALS.requested, self._is_due()
        stops, due = self._asked.take() or (0.0, float(self._saved_at == -inf))
        return bool(stops), bool(due)

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved_at >= self.every_seconds

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Step the schedulers that need a metric in an epoch that was resumed."""
        step_skipped_plateau_schedulers(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of training."""
        self._continuing.close()  # there may have been no step
        self._save(trainer)
        STOP_SIGNALS.deferred = False
        if self._heeds_signals and trainer.strategy.reduce_boolean_decision(STOP_SIGNALS.requested, all=False):
            STOP_SIGNALS.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """From now on a signal ends the program at once."""
        self._continuing.close()
        STOP_SIGNALS.deferred = False
        self._signals.close()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the number of rows that were logged, their hash, the run, and whether a callback has ended training."""
        written = [logger.flush() for logger in _metrics_files(trainer)] if trainer.is_global_zero else []
        checkpoint[RUN_STATE] = {
            "rows": [count for count, _ in written],
            "row_hashes": [digest for _, digest in written],
            "should_stop": trainer.should_stop,
            "run": self.run,
        }
        if self._before_step:
            mark_batch_not_begun(trainer, checkpoint["loops"])

    def _save(self, trainer: Trainer) -> None:
        """Replace the file as a whole. Other plugins than ours, and a folder of shards, are written beside it first."""
        self._saved_at = time.monotonic()
        if writes_atomically(trainer):
            return trainer.save_checkpoint(self.path, weights_only=False)
        beside = part_of(self.path)
        trainer.save_checkpoint(beside, weights_only=False)
        if trainer.is_global_zero:
            if beside.is_dir():  # sharded
                shutil.rmtree(self.path, ignore_errors=True)
            beside.replace(self.path)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue the files of metrics, and the best checkpoint where the run's folder is now.

        Raises:
            UserError: a checkpoint of an older version, or of another run; a best checkpoint that is missing, damaged, or of another run.
        """
        state = checkpoint.get(RUN_STATE)
        saved = checkpoint.get("callbacks", {})
        bests = [best for best in trainer.checkpoint_callbacks if isinstance(best, ModelCheckpoint) and best.state_key in saved]
        for best in bests:
            follow_folder(saved[best.state_key], best.dirpath)
        if trainer.state.fn == "fit" and OLD_STATE in checkpoint:
            raise UserError(
                "this checkpoint is from an older version of ftlit and cannot be resumed: start a new run with backbone.weights=..."
            )
        if trainer.state.fn != "fit" or state is None:
            return
        if self.run and state.get("run", self.run) != self.run:
            raise UserError(
                f"{trainer.ckpt_path} is the checkpoint of another run: restore the checkpoint of the run that is resumed, or "
                "start a new run"
            )
        for best in bests:
            check_best(saved[best.state_key], self.run)
        if trainer.is_global_zero:
            written = zip(state["rows"], state.get("row_hashes", [None] * len(state["rows"])), strict=True)
            for logger, (count, digest) in zip(_metrics_files(trainer), written, strict=False):
                logger.continue_after(count, digest)
        trainer.should_stop = state["should_stop"]


def _metrics_files(trainer: Trainer) -> list[MetricsFile]:
    return [logger for logger in trainer.loggers if isinstance(logger, MetricsFile)]
