"""ValScores: keep, with the best checkpoint, how a trained network scores val, for prediction sets, and the subspace of its features."""

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ftlit.inference.novelty import KEY as SUBSPACE
from ftlit.inference.novelty import MAX_IMAGES, feature_subspace
from ftlit.inference.prediction_sets import KEY as CALIBRATION
from ftlit.inference.prediction_sets import calibration_of
from ftlit.lit.checkpoint_io import writes_atomically
from ftlit.tensor_files import load_checkpoint, save_checkpoint


class ValScores(Callback):
    """Collects what `FineTuner.validation_step` returns while `trainer.validate` runs, and adds the scores to a checkpoint.

    The images of val chose the best epoch, so the scores are slightly too good where there are few of them and many epochs.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the outputs of an earlier validation."""
        self._batches = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep logits, targets and features of a batch, if no training is in progress."""
        if trainer.state.fn == "validate" and isinstance(outputs, Mapping):
            most = max(1, ceil(MAX_IMAGES / trainer.num_val_batches[0]))  # some of each batch
            logits, features = (outputs[name].detach().float().cpu() for name in ("logits", "features"))
            self._batches.append((logits, outputs["targets"].cpu(), features[:most]))

    def add_to(self, path: Path, trainer: Trainer) -> None:
        """Add the scores and the subspace to a checkpoint file, in the first process. Data with several labels have no scores."""
        batches = self._batches
        if trainer.world_size > 1:
            gathered: list[list[tuple[Tensor, Tensor, Tensor]]] | None = [[]] * trainer.world_size if trainer.is_global_zero else None
            torch.distributed.gather_object(batches, gathered)
            batches = [batch for own in gathered or [] for batch in own]
        if not batches or not trainer.is_global_zero or not path.is_file() or not writes_atomically(trainer):
            return
        logits, targets, features = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        found = {}
        if targets.ndim == 1 and len(targets) and logits.isfinite().all():
            found[CALIBRATION] = calibration_of(logits, targets).record()
        if len(targets) and (subspace := feature_subspace(features)) is not None:
            found[SUBSPACE] = subspace.record()
        save_checkpoint({**load_checkpoint(path), **found}, path)
