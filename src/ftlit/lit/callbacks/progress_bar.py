"""StageProgressBar: a progress bar with the name of the stage; without a terminal, one line for each epoch."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from ftlit.lit.staged_finetuning import StagedFinetuning
from ftlit.lit.trainer_internals import find_callback


class StageProgressBar(RichProgressBar):
    """Lightning's RichProgressBar with the name of the current stage. If stdout is not a terminal it prints a line for each epoch."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw a bar only on a terminal."""
        super().setup(trainer, pl_module, stage)
        if not sys.stdout.isatty():
            self.disable()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of this epoch."""
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
    staging = find_callback(trainer, StagedFinetuning)
    return staging.stage.name if staging else "no stages"
