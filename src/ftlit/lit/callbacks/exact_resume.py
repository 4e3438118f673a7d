"""Exact resume (invariant 5): LastCheckpoint saves between two optimizer steps."""

import shutil
import time
from contextlib import ExitStack
from math import inf
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from ftlit.errors import UserError
from ftlit.files import part_of
from ftlit.formatting import shell_word
from ftlit.lit.callbacks.metrics_file import MetricsFile
from ftlit.lit.checkpoint_io import use_checked_checkpoints, writes_atomically
from ftlit.lit.cluster_internals import leave_signals, requeues
from ftlit.lit.datamodules.epoch_position import follow_data_module
from ftlit.lit.delayed_values import DelayedValues
from ftlit.lit.resumed_checkpoint import (
    began_in_epoch_0,
    check_best,
    check_loaders,
    check_order_seeds,
    continuing,
    follow_folder,
    order_seeds,
)
from ftlit.lit.sharding.fsdp2 import Fsdp2Strategy
from ftlit.lit.stop_signals import STOP_SIGNALS, owned_signals
from ftlit.lit.trainer_internals import leave_fit, mark_batch_not_begun, restart_loaders, running_loader, step_skipped_plateau_schedulers
from ftlit.plain_arguments import plain_arguments
from ftlit.run_folder import RUN_STATE

OLD_STATE = "resuming"  # the key of earlier releases in a checkpoint, which is not read


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
        pause_at: number of epochs after which `fit` returns, with a checkpoint, where more would follow; `None` for never.
        paused: whether the last fit ended so.
    """

    @plain_arguments
    def __init__(self, path: str | PathLike[str], *, every_seconds: float = 120, every_n_steps: int | None = None) -> None:
        self.path, self.every_seconds, self.every_n_steps = Path(path), every_seconds, every_n_steps
        self.run: str | None = None
        self.pause_at: int | None = None
        self.paused = False
        self._before_step = self._heeds_signals = self._owns_signals = False
        self._saved_at = -inf  # by `time.monotonic`; before the first checkpoint of a fit
        self._seeds: list[int | None] = []  # of the order of each train loader
        self._seeds_before: list[int | None] = []  # those of the checkpoint that is resumed
        self._continuing = ExitStack()  # of a resumed run, until its first step
        self._signals = ExitStack()  # during a fit
        self._asked = DelayedValues()  # of several processes: how many have received a signal, and whether a checkpoint is due

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the trainer write and read checkpoints atomically and checked; in a fit, receive signals, where the program does not."""
        use_checked_checkpoints(trainer)
        if isinstance(trainer.strategy, Fsdp2Strategy):
            trainer.strategy.resumes_from = self.path
        if stage == "fit" and not STOP_SIGNALS.owned and not requeues(trainer):
            self._signals.enter_context(owned_signals(answers=trainer.is_global_zero))
            self._owns_signals = STOP_SIGNALS.owned
            leave_signals(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._signals.close()
        self._owns_signals = False

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what this callback adds to a checkpoint depends on the trainer, see `on_save_checkpoint`."""
        return {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on a signal ends training between two steps. All processes ask, or none, whether one has come.

        Raises:
            UserError: a loader keeps its own position, which would be one batch ahead in each checkpoint; on resuming: the order of a
                loader has another seed than before.
        """
        check_loaders(loaders := running_loader(trainer))
        self._seeds = order_seeds(loaders)
        if trainer.ckpt_path:
            check_order_seeds(self._seeds_before, loaders)
            self._continuing.enter_context(continuing(loaders))
            if began_in_epoch_0(loaders):
                restart_loaders(trainer)
        STOP_SIGNALS.deferred = STOP_SIGNALS.owned
        self._heeds_signals = trainer.strategy.reduce_boolean_decision(STOP_SIGNALS.owned, all=False)
        self._saved_at, self.paused = -inf, False
        self._asked.take()  # of an earlier fit

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Ask the other processes whether a signal has come, and tell them whether a checkpoint is due. The next step reads the answer."""
        if trainer.world_size > 1:
            stops, due = self._heeds_signals and STOP_SIGNALS.requested, trainer.is_global_zero and self._is_due()
            self._asked.put(trainer, torch.tensor([float(stops), float(due)], device=pl_module.device))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save before the first step, where a checkpoint is due, and before the step that a signal, or `pause_at`, prevents."""
        self._continuing.close()
        if batch_idx % trainer.accumulate_grad_batches:
            return
        stops, due = self._decided(trainer)
        pauses = self.pause_at is not None and trainer.current_epoch >= self.pause_at
        if stops or due or pauses or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            self._before_step = True
            self._save(trainer)
            self._before_step = False
        if stops:
            self._stop(trainer)
        if pauses:
            self.paused, STOP_SIGNALS.deferred = True, False
            leave_fit()

    def _stop(self, trainer: Trainer) -> None:
        """End the program, after a checkpoint. Where it does not handle signals itself, say how to go on."""
        if self._owns_signals and trainer.is_global_zero:
            path = str(self.path)
            call, option = f"trainer.fit(module, data, ckpt_path={path!r})", f"--ckpt_path {shell_word(path)}"
            print(f"stopped, with a checkpoint; to go on: {call}, or with LightningCLI: {option}", flush=True)
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
            self._stop(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """From now on a signal ends the program at once."""
        self._continuing.close()
        STOP_SIGNALS.deferred = False
        self._signals.close()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the rows that were logged, the run, whether a callback has ended training, and the seeds of the order."""
        written = [logger.flush() for logger in _metrics_files(trainer)] if trainer.is_global_zero else []
        checkpoint[RUN_STATE] = {
            "rows": [count for count, _ in written],
            "row_hashes": [digest for _, digest in written],
            "should_stop": trainer.should_stop,
            "run": self.run,
            "order_seeds": self._seeds,
        }
        if self._before_step:
            mark_batch_not_begun(trainer, checkpoint["loops"])

    def _save(self, trainer: Trainer) -> None:
        """Replace the file as a whole. What other plugins than ours, and other strategies that shard, write is written beside it first."""
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
        follow_data_module(trainer, checkpoint)
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
        self._seeds_before = state.get("order_seeds", [])


def _metrics_files(trainer: Trainer) -> list[MetricsFile]:
    return [logger for logger in trainer.loggers if isinstance(logger, MetricsFile)]
