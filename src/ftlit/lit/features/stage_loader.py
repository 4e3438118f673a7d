"""The loader of `FeatureData`: it serves features, images or stored pixels, whichever the current stage reads, in the same order."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from ftlit.data.dataset import Batch, Split
from ftlit.features.batches import read_batches
from ftlit.features.stage_input import stages_of_epoch
from ftlit.features.stored_pixels import StoredImages
from ftlit.features.table import Rows
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.stages.staged_finetuning import StagedFinetuning
from ftlit.lit.trainer_internals import completed_batches, steps_per_epoch
from ftlit.models.feature_batch import FeatureBatch


@dataclass(frozen=True)
class ServedFeatures:
    """Features that replace the images of a split: rows by cut, the lowest first, and the dtype of the batches."""

    rows: Mapping[str, Rows]
    dtype: torch.dtype


Serve = Callable[[Split, int], ServedFeatures | StoredImages | None]  # split, epoch -> features, or stored pixels; None: images


def stages_read(trainer: Trainer, staging: StagedFinetuning, split: Split) -> set[int]:
    """The stages whose input the loader of a split has to serve now: for train, of all stages that this epoch may reach."""
    stages = {staging.index}
    if split == "train":
        begin = trainer.global_step - completed_batches(trainer) // trainer.accumulate_grad_batches
        steps = range(begin, begin + steps_per_epoch(trainer))
        stages |= stages_of_epoch(staging.schedule, staging.index, trainer.current_epoch, steps, staging.trigger.decided)
    return stages


class StageLoader:
    """The loader of a split. Each iteration serves what the current stage reads.

    Args:
        images: the image data.
        split: of the loader.
        serve: chooses features, or images, for an epoch.
    """

    def __init__(self, images: ImageData, split: Split, serve: Serve) -> None:
        self._images, self._split, self._serve = images, split, serve
        self.sampler = images.order(split)  # Lightning sets the epoch on these two attributes
        self.batch_sampler = None
        self._image_loader: tuple[StoredImages | None, DataLoader[Batch]] | None = None

    def __len__(self) -> int:
        """Batches in an epoch, the same in every stage."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor | FeatureBatch, Tensor]]:
        served = self._serve(self._split, self.sampler.epoch)  # runs at the first batch, after the stage has begun
        last, self._image_loader = self._image_loader, None  # worker processes end when no stage needs them
        if not isinstance(served, ServedFeatures):
            loader = last[1] if last and last[0] is served else self._images.loader(self._split, self.sampler, served)
            self._image_loader = served, loader
            yield from loader
        else:
            targets = self._images.collection.targets(self._split)
            yield from read_batches(self.sampler, served.rows, targets, served.dtype)
