"""LrMonitor: log the learning rates at least once an epoch."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor

from ftlit.lit.trainer_internals import log_at_least_every


class LrMonitor(LearningRateMonitor):
    """Lightning's LearningRateMonitor, which logs every `log_every_n_steps` steps, for epochs that have fewer steps."""

    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Lower `trainer.log_every_n_steps` to the steps of an epoch."""
        super().on_train_start(trainer, *args, **kwargs)
        log_at_least_every(trainer, trainer.num_training_batches)
