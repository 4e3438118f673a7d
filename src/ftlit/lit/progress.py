"""The progress bar, with the name of the stage."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from ftlit.lit.staging import StagedFinetuning


class StageProgressBar(RichProgressBar):
    """Lightning's rich progress bar that also shows which stage is in force."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Metrics for the end of the bar: the stage's name, then loss and accuracy of each split."""
        metrics = super().get_metrics(trainer, pl_module)
        shown = {name: value for name, value in metrics.items() if name.endswith(("loss", "accuracy"))}
        stages = [callback.stage.name for callback in trainer.callbacks if isinstance(callback, StagedFinetuning)]  # type: ignore[attr-defined]
        return {**({"stage": stages[0]} if stages and trainer.training else {}), **shown}
