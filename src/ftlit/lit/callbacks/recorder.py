"""Recorder: record, for the report, the stages of a run and the predictions on test images."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ftlit.data.dataset import Examples
from ftlit.formatting import printable
from ftlit.lit.callbacks.probe_head import FitProbeHead
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.features.feature_data import FeatureData
from ftlit.lit.hardware import bytes_in_use, reset_peak
from ftlit.lit.stages.staged_finetuning import StagedFinetuning
from ftlit.lit.trainer_internals import datamodule_of, find_callback
from ftlit.report.contents import Predictions, StageRecord
from ftlit.report.run_files import write_stages

MOST_FEATURES = 1000  # test images whose features are kept
HALF_MAX = torch.finfo(torch.float16).max


class Recorder(Callback):
    """Writes `report/stages.json` during training, and keeps what `FineTuner.test_step` returns, in the order of the test images.

    Args:
        folder: folder of the run.

    Attributes:
        tested: predictions on the test images, in the first process; `None` before a test.
        features: `features` float16 (n, C), `labels` int64 (n,) and `wrong` bool (n,), whether the prediction is wrong, of at most
            `MOST_FEATURES` test images; empty before a test.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.tested: Predictions | None = None
        self.features: dict[str, Tensor] = {}
        self._stages: list[StageRecord] = []
        self._since = 0.0
        self._batches: list[BatchRecord] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, with no stages, or with those of the checkpoint."""
        self._stages = self._stages if trainer.global_step else []
        self._since = time.perf_counter()
        reset_peak(pl_module.device)

    def state_dict(self) -> dict[str, Any]:
        """The stages so far, as plain values."""
        self._add_time()
        return {"stages": [asdict(stage) for stage in self._stages]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the stages."""
        self._stages = [StageRecord(**stage) for stage in state_dict["stages"]]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add a record of each stage that has begun."""
        staging = find_callback(trainer, StagedFinetuning)
        if staging is None or staging.index < len(self._stages):
            return
        self._add_time(bytes_in_use(pl_module.device))
        reset_peak(pl_module.device)
        for stage in staging.schedule.stages[len(self._stages) : staging.index + 1]:
            self._stages.append(StageRecord(stage.name, trainer.current_epoch, trainer.global_step))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the stages so far."""
        self._add_time(bytes_in_use(pl_module.device))
        if trainer.is_global_zero:
            write_stages(self.folder, self._stages)

    def _add_time(self, memory: int = 0) -> None:
        """Add the time since the last call to the current stage, and keep the most memory that it has used."""
        now = time.perf_counter()
        if self._stages:
            self._stages[-1].seconds += now - self._since
            self._stages[-1].bytes = max(self._stages[-1].bytes, memory)
        self._since = now

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the predictions of an earlier test."""
        self._batches = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the predictions of a batch, and the features of some of its images."""
        if not isinstance(outputs, Mapping):  # of another LightningModule
            return
        done = sum(len(batch.places) for batch in self._batches)
        # EvalOrder and Lightning's sampler give each process every world_size-th image
        places = [trainer.global_rank + trainer.world_size * (done + i) for i in range(len(outputs["targets"]))]
        examples = _test_examples(trainer)
        number = _number_of_test_images(trainer) if examples is None else len(examples)
        fitted = find_callback(trainer, FitProbeHead)
        self._batches.append(keep_batch(outputs, places, number, examples, fitted.temperature if fitted else None))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the batches of all processes in the first one."""
        batches = self._batches
        if trainer.world_size > 1:
            gathered: list[list[BatchRecord]] | None = [[]] * trainer.world_size if trainer.is_global_zero else None
            torch.distributed.gather_object(batches, gathered)
            batches = [batch for own in gathered or [] for batch in own]
        if batches:
            self.tested, self.features = join_batches(batches)


@dataclass(frozen=True)
class BatchRecord:
    """The part of a test batch that is kept.

    Args:
        places: of its images in the test split.
        predictions: on them, in the same order.
        kept: places of the images whose features are kept.
        features: float16 (len(kept), C), on the CPU.
    """

    places: list[int]
    predictions: Predictions
    kept: list[int]
    features: Tensor


def keep_batch(
    outputs: Mapping[str, Tensor], places: Sequence[int], number: int, examples: Examples | None, temperature: float | None = None
) -> BatchRecord:
    """The record of a test batch.

    Args:
        outputs: `logits` (N, K), pooled `features` (N, C) and `targets` of the batch, as `FineTuner.test_step` returns them.
        places: of its images in the test split. Those from `number` on are padding of Lightning's sampler, and left out.
        number: images of the test split.
        examples: the test split; `None` if it is not known.
        temperature: by which the logits were divided; `None` if they were not.
    """
    every = -(-number // MOST_FEATURES)
    own = [i for i, place in enumerate(places) if place < number]
    kept = [i for i in own if places[i] % every == 0]
    own_places = [places[i] for i in own]
    items = [str(place) for place in own_places] if examples is None else items_of(examples, own_places)
    logits = outputs["logits"][own].float()
    predictions = predictions_of(logits, outputs["targets"][own], items)
    if temperature is not None:
        predictions = replace(predictions, uncalibrated=(logits * temperature).softmax(dim=1).amax(dim=1).cpu().numpy())
    return BatchRecord(own_places, predictions, [places[i] for i in kept], to_half(outputs["features"][kept]))


def join_batches(batches: Sequence[BatchRecord]) -> tuple[Predictions, dict[str, Tensor]]:
    """Predictions on all test images in their order, and `features`, `labels` (-1: none) and `wrong` of some."""
    rows = sorted(row for batch in batches for row in zip(batch.places, *_columns(batch.predictions), strict=True))
    places, items, labels, predicted, *values = zip(*rows, strict=True)
    label_of = {place: label[0] if label else -1 for place, label in zip(places, labels, strict=True)}
    wrong = {place: label != guess for place, label, guess in zip(places, labels, predicted, strict=True)}
    kept = [place for batch in batches for place in batch.kept]
    features = {
        "features": torch.cat([batch.features for batch in batches]),
        "labels": torch.tensor([label_of[place] for place in kept]),
        "wrong": torch.tensor([wrong[place] for place in kept], dtype=torch.bool),
    }
    names = ["probability", *batches[0].predictions.optional]
    return Predictions(items, labels, predicted, **{name: np.array(own) for name, own in zip(names, values, strict=True)}), features


def _columns(predictions: Predictions) -> tuple[Iterable[Any], ...]:
    return predictions.items, predictions.labels, predictions.predicted, predictions.probability, *predictions.optional.values()


def predictions_of(logits: Tensor, targets: Tensor, items: Sequence[str]) -> Predictions:
    """Predictions from logits (N, K).

    Args:
        logits: of N images.
        targets: class numbers (N,), or (N, K) from 0 to 1 for several labels.
        items: path, number or text of each image.
    """
    logits, targets = logits.detach().cpu(), targets.cpu()
    if targets.ndim == 1:
        probabilities = logits.softmax(dim=1)
        first = logits.argmax(dim=1)
        single, top = ([(number,) for number in numbers.tolist()] for numbers in (targets, first))
        own, others = probabilities.gather(1, targets[:, None])[:, 0], probabilities.scatter(1, first[:, None], -1.0).max(dim=1)
        second = others.indices.numpy(), others.values.numpy()
        return Predictions(items, single, top, probabilities.amax(dim=1).numpy(), None, own.numpy(), *second)
    probabilities, true = logits.sigmoid(), targets >= 0.5
    positive, confidence = probabilities >= 0.5, torch.maximum(probabilities, 1 - probabilities)
    wrong = positive != true
    reported = torch.where(wrong.any(dim=1), (confidence * wrong).amax(dim=1), confidence.amax(dim=1))
    labels, predicted = ([tuple(np.flatnonzero(row).tolist()) for row in rows.numpy()] for rows in (true, positive))
    return Predictions(items, labels, predicted, reported.numpy())


def items_of(examples: Examples, places: Iterable[int]) -> list[str]:
    """Path, number or text of the images at these places."""
    sources = examples.sources
    return [printable(str(sources[place])) if isinstance(sources[place], str | Path) else str(place) for place in places]


def to_half(features: Tensor) -> Tensor:
    """Features as float16 on the CPU, clipped to its range."""
    return features.clamp(-HALF_MAX, HALF_MAX).half().cpu().contiguous()


def _test_examples(trainer: Trainer) -> Examples | None:
    """The test split of a built-in data module; `None` for a custom one."""
    data = datamodule_of(trainer)
    images = data.images if isinstance(data, FeatureData) else data
    return images.collection.splits["test"] if isinstance(images, ImageData) else None


def _number_of_test_images(trainer: Trainer) -> int:
    """Number of test images; `sys.maxsize` if their loader does not know it."""
    dataset: Any = getattr(trainer.test_dataloaders, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else sys.maxsize
