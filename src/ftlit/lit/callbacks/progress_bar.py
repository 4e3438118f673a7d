"""StageProgressBar: a line for each epoch; on a terminal, a progress bar below them."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from ftlit.lit.stages.staged_finetuning import StagedFinetuning
from ftlit.lit.trainer_internals import find_callback


class StageProgressBar(RichProgressBar):
    """Lightning's RichProgressBar without metrics: each epoch has a line with them, after the line of a stage that begins
    (`StagedFinetuning`). There is no bar if stdout is not a terminal.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw a bar only on a terminal."""
        super().setup(trainer, pl_module, stage)
        self._ended: str | None = None  # the epoch that has ended, while its line is not printed
        self._validated = False  # in this epoch
        if not sys.stdout.isatty():
            self.disable()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch before."""
        super().on_train_epoch_start(trainer, pl_module)
        self._print_epoch(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the metrics of val are of this epoch."""
        super().on_validation_end(trainer, pl_module)
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the epoch whose line is due: the module logs its metrics of train after this hook."""
        super().on_train_epoch_end(trainer, pl_module)
        self._ended = f"epoch {trainer.current_epoch} ({_stage(trainer)})"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the last epoch."""
        super().on_train_end(trainer, pl_module)
        self._print_epoch(trainer)

    def _print_epoch(self, trainer: Trainer) -> None:
        """Print the line of the epoch that has ended, without metrics of val if it had no validation."""
        if self._ended and trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if _shown(name)}
            kept = {name: value for name, value in metrics.items() if self._validated or not name.startswith("val/")}
            print(f"{self._ended}: {' '.join(f'{name} {value:.4f}' for name, value in sorted(kept.items()))}", flush=True)
        self._ended, self._validated = None, False

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """No metrics at the end of the bar: they would fold it on a narrow terminal, and each epoch has a line."""
        return {}


def _shown(name: str) -> bool:
    return name.endswith(("loss", "accuracy"))


def _stage(trainer: Trainer) -> str:
    staging = find_callback(trainer, StagedFinetuning)
    return staging.stage.name if staging else "no stages"
