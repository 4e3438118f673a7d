"""ValScores: keep the scores of a trained network on val, for prediction sets, and the subspace of its features, in its checkpoint."""

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ftlit.files import WriteError
from ftlit.inference.novelty import KEY as SUBSPACE
from ftlit.inference.novelty import MAX_IMAGES, feature_subspace
from ftlit.inference.prediction_sets import KEY as CALIBRATION
from ftlit.inference.prediction_sets import Calibration, own_scores
from ftlit.lit.checkpoint_io import CheckedCheckpointIO
from ftlit.printing import print_line
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
        """Keep the scores of a batch and some of its features, if no training is in progress."""
        if trainer.state.fn == "validate" and isinstance(outputs, Mapping):
            most = max(1, ceil(MAX_IMAGES / trainer.num_val_batches[0]))  # some of each batch
            logits, targets = (outputs[name].detach().cpu() for name in ("logits", "targets"))
            scores = own_scores(logits.float(), targets) if targets.ndim == 1 else torch.zeros(0)
            self._batches.append((scores, outputs["features"].detach()[:most].to("cpu", torch.float32, copy=True)))

    def add_to(self, path: Path, trainer: Trainer) -> None:
        """Add the scores and the subspace to a checkpoint file, in the first process, and forget them. Data with several labels have no
        scores. The results of a run do not need them: where the file cannot be written, it stays as it is, and a note says so.
        """
        batches, self._batches = self._batches, []
        if trainer.world_size > 1:
            gathered: list[list[tuple[Tensor, Tensor]]] | None = [[]] * trainer.world_size if trainer.is_global_zero else None
            torch.distributed.gather_object(batches, gathered)
            batches = [batch for own in gathered or [] for batch in own]
        if not batches or not trainer.is_global_zero or not path.is_file():
            return
        if not isinstance(trainer.strategy.checkpoint_io, CheckedCheckpointIO):  # the file may be in a format of its own
            return
        scores, features = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        found = {}
        if len(scores) and scores.isfinite().all():
            found[CALIBRATION] = Calibration.of(scores).record()
        if len(features) and (subspace := feature_subspace(features)) is not None:
            found[SUBSPACE] = subspace.record()
        try:
            save_checkpoint({**load_checkpoint(path), **found}, path)
        except WriteError as error:
            print_line(
                f"note: the scores of val were not added to {path.name}, so ftlit predict gives no prediction sets for this run: {error}"
            )
