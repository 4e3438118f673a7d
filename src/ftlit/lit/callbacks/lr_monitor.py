"""Learning rates in the loggers, once an epoch at least."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor


class RateMonitor(LearningRateMonitor):
    """Lightning's, which asks for a row in `log_every_n_steps` steps: an epoch may have fewer."""

    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Lower `trainer.log_every_n_steps` to the steps of an epoch."""
        super().on_train_start(trainer, *args, **kwargs)
        steps: Any = trainer.num_training_batches
        trainer.log_every_n_steps = max(1, min(trainer.log_every_n_steps, steps)) if trainer.log_every_n_steps else 0  # type: ignore[attr-defined]
