"""The data module: images of a collection in three splits, batch by batch."""

import os
from collections.abc import Sequence
from copy import copy

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ftlit.data.collate import MixedCollate
from ftlit.data.dataset import SPLITS, Batch, Collection, LabelledImages, Split
from ftlit.data.input_spec import InputSpec
from ftlit.data.samplers import Batches, EvalOrder, TrainOrder
from ftlit.data.splits import draw_per_class, draw_share
from ftlit.data.tokens import TextSpec
from ftlit.data.transforms import Transform
from ftlit.errors import UserError, shorten
from ftlit.lit.trainer_internals import completed_batches, process_share


class ImageData(LightningDataModule):
    """Batches (images float32 (N, 3, S, S), or token ids int64 (N, T) of texts, targets) of a collection, as a network wants them.

    Targets are class numbers, int64 (N,); with several labels, or mixed, float32 (N, num_classes).
    Order, augmentation and mixing are functions of (seed, epoch, image), see `ftlit.data.samplers`; a checkpoint keeps how far an epoch is, and
    resumed training goes on from there.

    Args:
        collection: the images, in three splits.
        input_spec: what the network expects.
        augment: see `transform.train_transform`; texts know `none` only.
        mix: see `dataset.MixedCollate`.
        batch_size: images in a batch of one process.
        num_workers: processes that load; `None`: half of the cores, at most 8.
        seed: of the order, of what is drawn to augment and to mix, and of `per_class`.
        per_class: train on so many images of each class, drawn by seed; `None` for all.

    Raises:
        UserError: an argument out of its range.
    """

    def __init__(
        self,
        collection: Collection,
        input_spec: InputSpec | TextSpec,
        *,
        augment: str = "photo",
        mix: str = "none",
        batch_size: int = 32,
        num_workers: int | None = None,
        seed: int = 0,
        per_class: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("per_class", per_class, 1)):
            if value is not None and value < least:
                raise UserError(f"data.{name}={value}: give a whole number, {least} or more")
        self.seed, self.per_class = seed, per_class
        self.collection = collection
        if per_class is not None:
            self.collection = self.with_few(per_class).collection
        self.class_names = collection.class_names
        self.num_classes = len(collection.class_names)
        self.multilabel = collection.multilabel
        self.notes = list(collection.notes)
        if per_class is not None and (short := [name for name, count in self.counts["train"].items() if count < per_class]):
            self.notes.append(
                f"classes with fewer than per_class={per_class} training {input_spec.noun}, all of which are taken: {shorten(short)}"
            )
        self.batch_size = batch_size
        self.num_workers = _half_the_cores() if num_workers is None else num_workers
        self.mix = mix
        self.input_spec = input_spec
        train, evaluation = input_spec.views(augment)
        self.transforms: dict[Split, Transform] = {"train": train, "val": evaluation, "test": evaluation}
        self._collate = {split: MixedCollate(mix if split == "train" else "none", self.num_classes) for split in SPLITS}
        self._begin = (0, 0)  # epoch and batch that training goes on from

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, augmented, mixed batches."""
        return self.loader("train", self.order("train"))

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of the val split, in order, in the evaluation view."""
        return self.loader("val", self.order("val"))

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the test split, in order, in the evaluation view."""
        return self.loader("test", self.order("test"))

    def order(self, split: Split) -> TrainOrder | EvalOrder:
        """Which images come in which batch of this process; that of train begins where training goes on."""
        if getattr(self.trainer, "overfit_batches", 0):
            raise UserError("overfit_batches puts an order of Lightning's own in place: take limit_train_batches and data.augment=none")
        images = self.collection.splits[split]
        if split != "train":
            return EvalOrder(images, self.batch_size, **self._place())
        order = TrainOrder(images, self.batch_size, seed=self.seed, **self._place())
        order.begin_at(*self._begin)
        return order

    def loader(self, split: Split, order: TrainOrder | EvalOrder) -> DataLoader[Batch]:
        """The batches of an order."""
        return DataLoader(
            Batches(LabelledImages(self.collection, split, self.transforms[split]), self._collate[split], self.seed),
            sampler=order,
            batch_size=None,  # an item is a batch
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # workers are seeded from it: without, loading would draw from the global random state
        )

    @property
    def counts(self) -> dict[Split, dict[str, int]]:
        """Images of each class by split."""
        return self.collection.counts

    def with_few(self, per_class: int) -> "ImageData":
        """The same with at most so many training images of each class."""
        return self._with(draw_per_class(self.collection.splits["train"].labels, per_class, self.seed))

    def with_share(self, share: float) -> "ImageData":
        """The same with this share of the training images of each class, of two at least."""
        return self._with(draw_share(self.collection.splits["train"].labels, share, self.seed))

    def _with(self, places: Sequence[int]) -> "ImageData":
        other, all_of = copy(self), self.collection
        splits = {**all_of.splits, "train": all_of.splits["train"].subset(places)}
        other.collection = Collection(splits, all_of.class_names, all_of.multilabel, all_of.notes)
        return other

    def state_dict(self) -> dict[str, int]:
        """How far training is; Lightning keeps it in a checkpoint."""
        if self.trainer is None:
            return {}
        return {"epoch": self.trainer.current_epoch, "batch": completed_batches(self.trainer)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from there: the batches that the epoch has seen are left out."""
        if state_dict:
            self._begin = state_dict["epoch"], state_dict["batch"]

    def teardown(self, stage: str) -> None:
        """What a checkpoint said holds for one fit."""
        if stage == "fit":
            self._begin = (0, 0)

    def _place(self) -> dict[str, int]:
        """How many processes share the images, and which of them this is."""
        processes, rank = process_share(self.trainer)
        return {"processes": processes, "rank": rank}


def _half_the_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores // 2)
