"""BestCheckpoint: keep the weights of the best epoch. It decides which epoch is the result of a run."""

from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from ftlit.errors import UserError
from ftlit.files import write_atomically
from ftlit.finetuning.stage import mode_of
from ftlit.intervals import paired_interval
from ftlit.lit.trainer_internals import is_trial_run
from ftlit.run_folder import TIE_BREAK


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, except for equal values, the direction of the metric, and training without validation.

    - Of epochs with the same value, the one with the least `val/loss` is best, then the last one. Small val sets are full of ties.
    - The direction follows from the metric.
    - If nothing was validated during training, the weights at its end are saved as the best.
    - It may begin with weights that were validated before training, see `begin_with`, and end with others, see `end_with`.

    Args:
        dirpath: folder of the checkpoint.
        filename: name of the file, without its suffix.
        monitor: metric that decides.
        mode: `min` or `max`; `None`: `min` for a loss, `max` for accuracy, f1 and other scores.
        options: of `ModelCheckpoint`.

    Attributes:
        best_epoch: the epoch whose weights are kept; `None` before the first, and while those of `begin_with` are kept.
        best_of_epochs: the best value of an epoch; `None` before the first, NaN if none is a number.

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
            raise UserError(
                f"callbacks.best.monitor={monitor}: give callbacks.best.mode=max if higher values are better, or callbacks.best.mode=min "
                "if lower values are better"
            )
        super().__init__(dirpath, filename, monitor, mode=mode, **{"enable_version_counter": False, **options})
        self.best_epoch: int | None = None
        self.best_of_epochs: float | None = None
        self._best_loss = inf
        self._first: tuple[Path, float, float] | None = None
        self._began_with_first, self._margin, self._at_once, self._images = False, 0.0, True, 0

    @property
    def keeps_first(self) -> bool:
        """Whether the weights of `begin_with` are still the best."""
        return self._began_with_first and self.best_epoch is None

    def begin_with(self, path: Path, value: float, margin: float = 0.0, *, at_once: bool = True, images: int = 0) -> None:
        """Take weights for the best so far, which are copied when training begins, unless it resumes from a checkpoint.

        Args:
            path: of their checkpoint.
            value: of the metric that decides.
            margin: by more than which the first epoch that replaces them must be better, 0 or more.
            at_once: whether epochs compete with them; otherwise only what `end_with` gets does.
            images: number of val images whose share the metric is; 0: it is not a share of images.
        """
        self._first, self._at_once, self._images = (path, value, margin), at_once, images

    def end_with(self, path: Path, value: float, *, writes: bool) -> None:
        """Take weights for the best after training, which were made from those of the best epoch, unless those of `begin_with` compete with
        them and they are not better by more than the margin: then these replace the file.

        Args:
            path: of their checkpoint.
            value: of the metric that decides.
            writes: whether this process replaces the file.
        """
        self.best_model_path = str(path)  # `best_of_epochs` stays that of an epoch: a search compares settings of training by it
        if self._first is None or self._at_once:
            return
        first, before, margin = self._first
        if not self._better_by(value, before) > margin:
            self._began_with_first, self.best_epoch = True, None
            if writes:
                write_atomically(path, first.read_bytes())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the weights of `begin_with`."""
        super().on_train_start(trainer, pl_module)
        if self._first is None or not self._at_once or trainer.ckpt_path is not None:
            return
        path, value, self._margin = self._first
        self._began_with_first = True
        self.best_model_path = self.kth_best_model_path = self.format_checkpoint_name({})
        self.best_model_score = self.kth_value = torch.tensor(value)
        self.best_k_models = {self.best_model_path: self.best_model_score}
        if trainer.is_global_zero:
            write_atomically(Path(self.best_model_path), path.read_bytes())

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether this epoch is kept; if it is the best so far, note its number and loss."""
        loss = float(trainer.callback_metrics.get(TIE_BREAK, inf))
        loss = inf if isnan(loss) else loss
        self._note(current)
        best = trainer.strategy.reduce_boolean_decision(current is not None and self._is_best(current, loss))
        if best:
            self.best_epoch, self._best_loss = trainer.current_epoch, loss
        return best if self.save_top_k == 1 else super().check_monitor_top_k(trainer, current)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the weights as they are, if there is no best epoch and training took steps."""
        super().on_train_end(trainer, pl_module)
        if not self.best_model_path and trainer.global_step and not is_trial_run(trainer):
            self.best_model_path = self.format_checkpoint_name({})
            trainer.save_checkpoint(self.best_model_path, self.save_weights_only)

    def describe(self) -> str:
        """The weights that are kept, in words."""
        if self.keeps_first:
            why = "no epoch was validated during training (callbacks.best=null keeps the last weights)"
            if self.best_of_epochs is not None:
                why = f"no epoch was clearly better by {self.monitor} (best: {self.best_of_epochs:.4f}{self._counts(self.best_of_epochs)})"
            return f"the results are from the linear probe, because {why}; the trained network is last.ckpt"
        if self.best_epoch is None:
            return "no epoch was validated, so the results are from the last weights"
        replaced = self._began_with_first and self.best_model_score is not None
        compared = self._counts(float(self.best_model_score)) if replaced else ""  # type: ignore[arg-type]
        return f"the results are from epoch {self.best_epoch}, the best by {self.monitor}{compared}"

    def _counts(self, value: float) -> str:
        """How many val images are right at this accuracy and with the weights of `begin_with`, and whether more may be right by chance.

        Which images they are is not known: the interval of the difference is the narrowest that these counts allow.
        """
        if self._first is None or not self._images or isnan(value):
            return ""
        now, before = (round(share * self._images) for share in (value, self._first[1]))
        chance = ": the difference may be chance" if now > before and paired_interval(now - before, 0, self._images)[0] <= 0 else ""
        return f", with {now:,} of {self._images:,} val images right (linear probe: {before:,}){chance}"

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        own = {"best_epoch": self.best_epoch, "best_of_epochs": self.best_of_epochs, "best_loss": self._best_loss}
        return {**super().state_dict(), **own, "began_with_first": self._began_with_first, "margin": self._margin}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        super().load_state_dict(state_dict)
        self.best_epoch, self._best_loss = state_dict["best_epoch"], state_dict["best_loss"]
        # earlier versions have none of these
        self.best_of_epochs, self._margin = state_dict.get("best_of_epochs"), state_dict.get("margin", 0.0)
        self._began_with_first = state_dict.get("began_with_first", False)

    def _note(self, value: Tensor | None) -> None:
        if value is None:
            return
        known = [own for own in (self.best_of_epochs, float(value)) if own is not None and not isnan(own)]
        self.best_of_epochs = (min if self.mode == "min" else max)(known, default=nan)

    def _is_best(self, value: Tensor, loss: float) -> bool:
        """Whether a value is better than the best so far, or as good with no higher loss. NaN is neither."""
        if self.best_model_score is None:
            return True
        new, old = float(value), float(self.best_model_score)
        if self._began_with_first and self.best_epoch is None:
            return self._better_by(new, old) > self._margin
        return (new < old if self.mode == "min" else new > old) or (new == old and loss <= self._best_loss)

    def _better_by(self, new: float, old: float) -> float:
        return old - new if self.mode == "min" else new - old
