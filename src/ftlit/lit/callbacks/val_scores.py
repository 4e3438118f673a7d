"""ValScores: keep, with the best checkpoint, how a trained network scores val, for prediction sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ftlit.inference.prediction_sets import KEY, calibration_of
from ftlit.lit.checkpoint_io import writes_atomically
from ftlit.tensor_files import load_checkpoint, save_checkpoint


class ValScores(Callback):
    """Collects what `FineTuner.validation_step` returns while `trainer.validate` runs, and adds the scores to a checkpoint.

    The images of val chose the best epoch, so the scores are slightly too good where there are few of them and many epochs.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the outputs of an earlier validation."""
        self._batches = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the logits of a batch, if no training is in progress."""
        if trainer.state.fn == "validate" and isinstance(outputs, Mapping):
            self._batches.append((outputs["logits"].detach().float().cpu(), outputs["targets"].cpu()))

    def add_to(self, path: Path, trainer: Trainer) -> None:
        """Add the scores on val to a checkpoint file, in the first process; a no-op on data with several labels, or without val."""
        batches = self._batches
        if trainer.world_size > 1:
            gathered: list[list[tuple[Tensor, Tensor]]] | None = [[]] * trainer.world_size if trainer.is_global_zero else None
            torch.distributed.gather_object(batches, gathered)
            batches = [batch for own in gathered or [] for batch in own]
        if not batches or batches[0][1].ndim != 1 or not trainer.is_global_zero or not path.is_file() or not writes_atomically(trainer):
            return
        logits, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        if len(labels) and logits.isfinite().all():
            save_checkpoint({**load_checkpoint(path), KEY: calibration_of(logits, labels).record()}, path)
