"""What a report needs to know that only a run sees: its stages as they pass, and what the network says of each test image."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ftlit.dataset import Collection, Examples
from ftlit.lit.staging import StagedFinetuning
from ftlit.report.evidence import Answers, StageRecord, read_stages, write_stages

MOST_CODES = 1000  # test images whose codes are kept


class Recorder(Callback):
    """Writes `report/stages.json` while training runs, and keeps what `FineTuner.test_step` gives, in the order of the images.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.tested: Answers | None = None
        self.codes: dict[str, Tensor] = {}  # codes float16 (n, C) and labels int64 (n,) of some test images
        self._stages: list[StageRecord] = []
        self._since = 0.0
        self._seen: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count, or go on with what a run that stopped has written."""
        self._stages = [stage for stage in read_stages(self.folder) if stage.step <= trainer.global_step] if trainer.global_step else []
        self._since = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note a stage that has begun."""
        staging = next((callback for callback in _callbacks(trainer) if isinstance(callback, StagedFinetuning)), None)
        if staging is None or staging.index < len(self._stages):
            return
        self._count()
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
        """Keep little of a batch: classes, how sure, and the codes of some images."""
        if not isinstance(outputs, Mapping):  # another module's
            return
        logits, codes, targets = outputs["logits"].float(), outputs["codes"], outputs["targets"]
        done, world = sum(len(part["places"]) for part in self._seen), trainer.world_size
        places = [trainer.global_rank + world * (done + i) for i in range(len(logits))]  # as `EvalOrder` shares them
        every = -(-len(collection.splits["test"]) // MOST_CODES) if (collection := _collection_of(trainer)) else 1
        some = [i for i, place in enumerate(places) if place % every == 0]
        items = items_of(collection.splits["test"], places) if collection else [str(place) for place in places]
        part = {"places": places, "codes": codes[some].half().cpu(), "of": [places[i] for i in some]}
        self._seen.append({**part, **vars(tested_by(logits, targets, items))})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the parts of all batches and processes together."""
        parts = self._seen
        if trainer.world_size > 1:
            everyone: list[list[dict[str, Any]]] = [[]] * trainer.world_size
            torch.distributed.all_gather_object(everyone, parts)
            parts = [part for own in everyone for part in own]
        if not parts:
            return
        rows = sorted(row for part in parts for row in zip(*(part[name] for name in ("places", *_COLUMNS)), strict=True))
        places, items, labels, predicted, probability = zip(*rows, strict=True)
        self.tested = Answers(items, labels, predicted, np.array(probability))
        label_of = {place: label[0] if label else -1 for place, label in zip(places, labels, strict=True)}
        numbers = [label_of[place] for part in parts for place in part["of"]]
        self.codes = {"codes": torch.cat([part["codes"] for part in parts]), "labels": torch.tensor(numbers)}


_COLUMNS = ("items", "labels", "predicted", "probability")


def bytes_in_use(device: torch.device) -> int:
    """The most that was allocated on a GPU, or that this process has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _callbacks(trainer: Trainer) -> list[Any]:
    return trainer.callbacks  # type: ignore[attr-defined, no-any-return]


def _hot(row: Tensor) -> tuple[int, ...]:
    return tuple(row.nonzero().flatten().tolist())


def _collection_of(trainer: Trainer) -> Collection | None:
    """What our own data modules serve."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    found = getattr(getattr(data, "images", data), "collection", None)
    return found if isinstance(found, Collection) else None


def items_of(examples: Examples, places: Iterable[int]) -> list[str]:
    """Path, number or text of these images."""
    sources = examples.sources
    return [str(sources[place]) if isinstance(sources[place], str | Path) else str(place) for place in places]


def tested_by(logits: Tensor, targets: Tensor, items: Sequence[str]) -> Answers:
    """What logits (N, K) say of images with these targets: class numbers (N,), or (N, K) where there are several labels."""
    several = targets.ndim == 2
    shares = logits.sigmoid() if several else logits.softmax(dim=1)
    predicted = [_hot(row) for row in shares >= 0.5] if several else [(i,) for i in shares.argmax(dim=1).tolist()]
    labels = [_hot(row) for row in targets >= 0.5] if several else [(i,) for i in targets.tolist()]
    return Answers(items, labels, predicted, shares.amax(dim=1).cpu().numpy())
