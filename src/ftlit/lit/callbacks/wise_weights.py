"""WiseWeights: keep the weights at the beginning of training, to interpolate them with those of the best epoch afterwards."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ftlit.errors import UserError
from ftlit.lit.callbacks.best_checkpoint import BestCheckpoint
from ftlit.lit.strategies import keeps_whole_weights
from ftlit.lit.trainer_internals import find_callback

END = "end"  # name of the checkpoint of the best epoch, beside the one of the result


class WiseWeights(Callback):
    """Saves a checkpoint before the first step, of the fitted head and the pretrained backbone. `BestCheckpoint` writes the best epoch to
    `end.ckpt`; which weights between the two are the result of a run, and are `best.ckpt`, is chosen after training.

    Args:
        path: file of the checkpoint of the beginning.
        alphas: shares of the best epoch that are tried besides 0 and 1, between 0 and 1.

    Raises:
        UserError: a share out of range; when training begins: a strategy that shards the weights; on resuming: the file is missing.
    """

    def __init__(self, path: str | PathLike[str], alphas: Sequence[float] = (0.25, 0.5, 0.75)) -> None:
        if wrong := [alpha for alpha in alphas if not 0 <= alpha <= 1]:
            raise UserError(
                f"average.alphas holds {wrong[0]}: give numbers from 0 (the weights before training) to 1 (those of the best epoch), "
                "such as [0.25,0.5,0.75]"
            )
        self.path, self.alphas = Path(path), tuple(sorted({0.0, *map(float, alphas), 1.0}))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the best epoch have a file of its own."""
        if not keeps_whole_weights(type(trainer.strategy)):
            name = type(trainer.strategy).__name__
            raise UserError(f"average=wise does not work with {name}, which shards the weights: give trainer.strategy=ddp")
        if stage == "fit" and (best := find_callback(trainer, BestCheckpoint)):
            best.filename = END

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the beginning, unless training resumes."""
        if trainer.ckpt_path is None:
            trainer.save_checkpoint(self.path)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Miss a lost file before training goes on."""
        if trainer.state.fn == "fit" and not self.path.is_file():
            raise UserError(f"{self.path}, the weights at the beginning of training, is missing: restore it, or start a new run")


def no_average() -> None:
    """No callback: the weights of the best epoch as they are. An option of the group `average`."""
