"""The progress bar, with the name of the stage; a line an epoch where nobody watches."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from ftlit.lit.staged_finetuning import StagedFinetuning


class StageProgressBar(RichProgressBar):
    """Lightning's rich progress bar that also shows which stage is in force. Where stdout is no terminal it prints a line an epoch."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw only on a terminal."""
        super().setup(trainer, pl_module, stage)
        if not sys.stdout.isatty():
            self.disable()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The line of this epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        if not sys.stdout.isatty() and trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            values = " ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()) if _shown(name))
            print(f"epoch {trainer.current_epoch} ({_stage(trainer)}): {values}", flush=True)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Metrics for the end of the bar: the stage's name, then loss and accuracy of each split."""
        shown = {name: value for name, value in super().get_metrics(trainer, pl_module).items() if _shown(name)}
        return {"stage": _stage(trainer), **shown} if trainer.training else shown


def _shown(name: str) -> bool:
    return name.endswith(("loss", "accuracy"))


def _stage(trainer: Trainer) -> str:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback.stage.name for callback in callbacks if isinstance(callback, StagedFinetuning)), "no stages")
