"""What a report needs to know that only a run sees: its stages as they pass, and what the network says of each test image."""

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ftlit.data.dataset import Collection, Examples
from ftlit.lit.staged_finetuning import StagedFinetuning
from ftlit.report.contents import Predictions, StageRecord
from ftlit.report.run_files import write_stages

MOST_FEATURES = 1000  # test images whose features are kept
HALF = torch.finfo(torch.float16).max


class Recorder(Callback):
    """Writes `report/stages.json` while training runs, and keeps what `FineTuner.test_step` gives, in the order of the images.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.tested: Predictions | None = None
        self.features: dict[str, Tensor] = {}  # features float16 (n, C) and labels int64 (n,) of some test images
        self._stages: list[StageRecord] = []
        self._since = 0.0
        self._seen: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count, or go on with what the checkpoint of a run that stopped holds."""
        self._stages = self._stages if trainer.global_step else []
        self._since = time.perf_counter()
        reset_peak(pl_module.device)

    def state_dict(self) -> dict[str, Any]:
        """The stages so far, as plain values."""
        self._count()
        return {"stages": [asdict(stage) for stage in self._stages]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._stages = [StageRecord(**stage) for stage in state_dict["stages"]]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note a stage that has begun."""
        staging = next((callback for callback in _callbacks(trainer) if isinstance(callback, StagedFinetuning)), None)
        if staging is None or staging.index < len(self._stages):
            return
        self._count(bytes_in_use(pl_module.device))
        reset_peak(pl_module.device)
        for stage in staging.schedule.stages[len(self._stages) : staging.index + 1]:
            self._stages.append(StageRecord(stage.name, trainer.current_epoch, trainer.global_step))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what has passed."""
        self._count(bytes_in_use(pl_module.device))
        if trainer.is_global_zero:
            write_stages(self.folder, self._stages)

    def _count(self, memory: int = 0) -> None:
        now = time.perf_counter()
        if self._stages:
            self._stages[-1].seconds += now - self._since
            self._stages[-1].bytes = max(self._stages[-1].bytes, memory)
        self._since = now

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._seen = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep little of a batch: classes, how sure, and the features of some images."""
        if not isinstance(outputs, Mapping):  # another module's
            return
        logits, features, targets = outputs["logits"].float(), outputs["features"], outputs["targets"]
        done, world = sum(len(part["places"]) for part in self._seen), trainer.world_size
        collection = _collection_of(trainer)
        number = len(collection.splits["test"]) if collection else _number_of(trainer)
        places = [trainer.global_rank + world * (done + i) for i in range(len(logits))]  # as `EvalOrder` and Lightning's sampler share them
        own = [i for i, place in enumerate(places) if place < number]  # that sampler repeats some, so that each process has as many
        places, logits, features, targets = [places[i] for i in own], logits[own], features[own], targets[own]
        every = -(-number // MOST_FEATURES)
        some = [i for i, place in enumerate(places) if place % every == 0]
        items = items_of(collection.splits["test"], places) if collection else [str(place) for place in places]
        self._seen.append(
            {
                "places": places,
                "features": as_kept(features[some]),
                "of": [places[i] for i in some],
                **vars(answers_of(logits, targets, items)),
            }
        )

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the parts of all batches and processes together."""
        parts = self._seen
        if trainer.world_size > 1:
            everyone: list[list[dict[str, Any]]] | None = [[]] * trainer.world_size if trainer.is_global_zero else None
            torch.distributed.gather_object(parts, everyone)
            parts = [part for own in everyone or [] for part in own]
        if not parts:
            return
        rows = sorted(row for part in parts for row in zip(*(part[name] for name in ("places", *_COLUMNS)), strict=True))
        places, items, labels, predicted, probability = zip(*rows, strict=True)
        self.tested = Predictions(items, labels, predicted, np.array(probability))
        label_of = {place: label[0] if label else -1 for place, label in zip(places, labels, strict=True)}
        numbers = [label_of[place] for part in parts for place in part["of"]]
        self.features = {"features": torch.cat([part["features"] for part in parts]), "labels": torch.tensor(numbers)}


_COLUMNS = ("items", "labels", "predicted", "probability")


def bytes_in_use(device: torch.device) -> int:
    """The most that was allocated on a GPU since `reset_peak`, or what this process holds."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "win32":
        return 0
    import resource  # which knows the most so far only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak(device: torch.device) -> None:
    """Count a GPU's memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _callbacks(trainer: Trainer) -> list[Any]:
    return trainer.callbacks  # type: ignore[attr-defined, no-any-return]


def _collection_of(trainer: Trainer) -> Collection | None:
    """What our own data modules serve."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    found = getattr(getattr(data, "images", data), "collection", None)
    return found if isinstance(found, Collection) else None


def as_kept(features: Tensor) -> Tensor:
    """Features in half the bytes, within what these can hold."""
    return features.clamp(-HALF, HALF).half().cpu().contiguous()


def _number_of(trainer: Trainer) -> int:
    """Test images; far more than there can be, where their loader does not know."""
    loader: Any = trainer.test_dataloaders
    dataset: Any = getattr(loader, "dataset", None)
    return len(dataset) if hasattr(dataset, "__len__") else sys.maxsize


def items_of(examples: Examples, places: Iterable[int]) -> list[str]:
    """Path, number or text of these images."""
    sources = examples.sources
    return [str(sources[place]) if isinstance(sources[place], str | Path) else str(place) for place in places]


def answers_of(logits: Tensor, targets: Tensor, items: Sequence[str]) -> Predictions:
    """What logits (N, K) say of images with these targets: class numbers (N,), or (N, K) where there are several labels."""
    logits, targets = logits.detach().cpu(), targets.cpu()
    if targets.ndim == 1:
        one, other = ([(number,) for number in numbers.tolist()] for numbers in (targets, logits.argmax(dim=1)))
        return Predictions(items, one, other, logits.softmax(dim=1).amax(dim=1).numpy())
    shares, true = logits.sigmoid(), targets >= 0.5
    said, sure = shares >= 0.5, torch.maximum(shares, 1 - shares)
    wrong = said != true
    surest = torch.where(wrong.any(dim=1), (sure * wrong).amax(dim=1), sure.amax(dim=1))
    labels, predicted = ([tuple(np.flatnonzero(row).tolist()) for row in rows.numpy()] for rows in (true, said))
    return Predictions(items, labels, predicted, surest.numpy())
