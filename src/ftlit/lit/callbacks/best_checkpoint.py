"""BestCheckpoint: keep the weights of the best epoch. It decides which epoch is the result of a run."""

from math import inf, isnan
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from ftlit.errors import UserError
from ftlit.lit.trainer_internals import is_trial_run

TIE_BREAK = "val/loss"
MODES = {"loss": "min", "error": "min", "accuracy": "max", "f1": "max", "auroc": "max", "precision": "max", "recall": "max"}


def mode_of(monitor: str) -> str | None:
    """Whether the least or the greatest value of a metric is best, by the last part of its name; `None` for a name that is not known."""
    name = monitor.rpartition("/")[2].lower()
    return next((mode for known, mode in MODES.items() if known in name), None)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, except for equal values, the direction of the metric, and training without validation.

    - Of epochs with the same value, the one with the least `val/loss` is best, then the last one. Small val sets are full of ties.
    - The direction follows from the metric.
    - If nothing was validated during training, the weights at its end are saved as the best.

    Args:
        dirpath: folder of the checkpoint.
        filename: name of the file, without its suffix.
        monitor: metric that decides.
        mode: `min` or `max`; `None`: `min` for a loss, `max` for accuracy, f1 and other scores.
        options: of `ModelCheckpoint`.

    Attributes:
        best_epoch: the epoch whose weights are kept; `None` before the first.

    Raises:
        UserError: a metric of unknown direction without `mode`.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = "best",
        monitor: str = "val/accuracy",
        mode: str | None = None,
        **options: Any,
    ) -> None:
        if mode is None and (mode := mode_of(monitor)) is None:
            raise UserError(f"monitor={monitor}: give callbacks.best.mode=max if higher values are better, otherwise min")
        super().__init__(dirpath, filename, monitor, mode=mode, **{"enable_version_counter": False, **options})
        self.best_epoch: int | None = None
        self._best_loss = inf

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether this epoch is kept; if it is the best so far, note its number and loss."""
        loss = float(trainer.callback_metrics.get(TIE_BREAK, inf))
        loss = inf if isnan(loss) else loss
        best = trainer.strategy.reduce_boolean_decision(current is not None and self._is_best(current, loss))
        if best:
            self.best_epoch, self._best_loss = trainer.current_epoch, loss
        return (best and self.save_top_k == 1) or super().check_monitor_top_k(trainer, current)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the weights as they are, if there is no best epoch and training took steps."""
        super().on_train_end(trainer, pl_module)
        if not self.best_model_path and trainer.global_step and not is_trial_run(trainer):
            self.best_model_path = self.format_checkpoint_name({})
            trainer.save_checkpoint(self.best_model_path, self.save_weights_only)

    def describe(self) -> str:
        """The weights that are kept, in words."""
        if self.best_epoch is None:
            return "no epoch was validated, so the results are from the last weights"
        return f"the results are from epoch {self.best_epoch}, the best by {self.monitor}"

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {**super().state_dict(), "best_epoch": self.best_epoch, "best_loss": self._best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        super().load_state_dict(state_dict)
        self.best_epoch, self._best_loss = state_dict["best_epoch"], state_dict["best_loss"]

    def _is_best(self, value: Tensor, loss: float) -> bool:
        """Whether a value is better than the best so far, or as good with no higher loss. NaN is neither."""
        if self.best_model_score is None:
            return True
        new, old = float(value), float(self.best_model_score)
        return (new < old if self.mode == "min" else new > old) or (new == old and loss <= self._best_loss)
