"""SpeedMonitor: log examples per second, the share of time in which data are waited for, and memory, of each epoch of training."""

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ftlit.lit.callbacks.metrics_file import MetricsFile
from ftlit.lit.hardware import bytes_in_use
from ftlit.printing import print_line

REMEDY = "try more workers (data.num_workers), or, for images that are read from files, cache.pixels=true"
SLOW_WAIT, SLOW_SECONDS = 0.3, 30.0  # a note from this share of waiting on, in an epoch that takes so long


class SpeedMonitor(Callback):
    """Logs the speed of each epoch of training, without validation, to all loggers but `metrics.csv`, which has the same bytes in each run.

    - `speed/examples_per_second`: of all processes together.
    - `speed/data_wait`: share of the time between the end of an optimizer step and the arrival of the next batch on the device, 0 to 1;
      of the process that waits longest. Checkpoints that are written between two steps count too.
    - `speed/memory_gib`: on a GPU the most since the stage began, on a CPU what the process holds; with several processes one value
      for each, `speed/memory_gib/0` and so on.

    Prints a note, once, where an epoch of at least `SLOW_SECONDS` waits for data for more than `SLOW_WAIT` of its time.
    """

    def __init__(self) -> None:
        self._noted = False
        self._start(0.0)

    def _start(self, now: float) -> None:
        self._examples, self._busy, self._waits, self._last = 0, 0.0, 0.0, now

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock: a run that is resumed within an epoch does not start it."""
        self._start(perf_counter())

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again: data-loading workers start after this hook, and are waited for."""
        self._start(perf_counter())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch has arrived on the device."""
        now = perf_counter()
        self._waits += now - self._last
        self._last = now

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the examples of the batch."""
        now = perf_counter()
        self._busy += now - self._last
        self._last = now
        self._examples += _examples_in(batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out the time of a validation within an epoch."""
        self._last = perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log, and print the note. Processes exchange their values."""
        own = torch.tensor([self._examples, self._busy, self._waits, bytes_in_use(pl_module.device) / 2**30], dtype=torch.float32)
        gathered = trainer.strategy.all_gather(own.to(pl_module.device)).reshape(-1, len(own)).double().cpu()
        seconds = gathered[:, 1] + gathered[:, 2]
        if not seconds.max() > 0 or not self._examples:
            return
        wait = float((gathered[:, 2] / seconds.clamp(min=1e-9)).max())
        several = len(gathered) > 1
        values = {"speed/examples_per_second": float(gathered[:, 0].sum() / seconds.max()), "speed/data_wait": wait}
        values |= {f"speed/memory_gib{f'/{rank}' if several else ''}": float(row[3]) for rank, row in enumerate(gathered)}
        for logger in trainer.loggers:
            if not isinstance(logger, MetricsFile):
                logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)
        if wait > SLOW_WAIT and seconds.max() > SLOW_SECONDS and not self._noted and trainer.is_global_zero:
            self._noted = True
            print_line(f"note: {wait:.0%} of the time of epoch {trainer.current_epoch} was spent waiting for data: {REMEDY}")


def _examples_in(batch: Any) -> int:
    """Examples of a batch: the largest length of a tensor in it."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return max(map(_examples_in, parts), default=0)
