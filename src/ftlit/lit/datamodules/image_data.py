"""The data module: batches of images of a collection, in three splits."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ftlit.data.collate import MixedCollate
from ftlit.data.dataset import SPLITS, Batch, Collection, Examples, LabelledImages, Split
from ftlit.data.input_spec import InputSpec
from ftlit.data.loading import default_workers
from ftlit.data.pixels import Normalization, SplitView
from ftlit.data.samplers import Batches, EvalOrder, TrainOrder
from ftlit.data.splitting.one_split import all_in_train
from ftlit.data.splitting.splits import draw_per_class, draw_share
from ftlit.data.tokens import TextSpec
from ftlit.data.transforms import Transform
from ftlit.errors import UserError, shorten
from ftlit.features.image_hashes import cached_hashes
from ftlit.features.stored_pixels import StoredImages
from ftlit.identity.fingerprint import fingerprint
from ftlit.lit.datamodules.device_normalization import NormalizesOnDevice, normalizes_batches
from ftlit.lit.datamodules.epoch_position import ContinuesEpoch
from ftlit.lit.trainer_internals import overfits_batches, process_share
from ftlit.registry import Registry

BATCH_METHODS = (
    "train_dataloader",
    "val_dataloader",
    "test_dataloader",
    "loader",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)
AUTO_VIEWS = 4
AUTO_AUGMENTED = 640  # augmented images in all, which are cheap beside the rest of a run
DATA_SOURCES: Registry[Callable[..., LightningDataModule]] = Registry("data source")


class ImageData(ContinuesEpoch, NormalizesOnDevice):
    """Batches (images float32 (N, 3, S, S) or token ids int64 (N, T) of texts, targets) of a collection, as a network expects them.

    Targets are class numbers, int64 (N,); with several labels, or mixed, float32 (N, num_classes).
    Order, augmentation and mixing are functions of (seed, epoch, image), see `ftlit.data.samplers`. A checkpoint keeps the position in the
    epoch, and resumed training continues from there. While a trainer runs with this data module, batches hold images of 8 bits until
    they are on its device, where `on_after_batch_transfer` normalises them; not with `mix`, nor where a subclass or the trainer's module
    overrides a method that sees them before.

    Args:
        collection: the images, in three splits.
        input_spec: what the network expects.
        augment: see `InputSpec.views`; texts know `none` only.
        mix: see `ftlit.data.collate.MixedCollate`.
        batch_size: images in a batch of one process.
        num_workers: processes that load; `None`: see `ftlit.data.loading.default_workers`.
        seed: of the order, of augmentation and mixing, and of the choice by `per_class`.
        per_class: number of training images of each class, chosen by a hash of (seed, image), see `draw_per_class`; `None`: all.
        views: number of augmented views of each training image, where features are computed once: a fitted head is fitted on the plain
            view and on these; training by gradient from stored features reads one of them per epoch, in turn (0: the plain view).
            `auto`: for a head that is fitted and not trained after up to `AUTO_VIEWS`, as many as make `AUTO_AUGMENTED` images; else 0.

    Raises:
        UserError: an argument out of its range, or a collection without one of the splits.
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
        views: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        if missing := [split for split in SPLITS if split not in collection.splits]:
            raise UserError(f"the Collection lacks {' and '.join(missing)}: give all of the splits {', '.join(SPLITS)}")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("per_class", per_class, 1),
            ("views", views, 0),
        ):
            if isinstance(value, int) and value < least:
                raise UserError(f"data.{name}={value}: give a whole number, {least} or more")
        self.seed, self.per_class = seed, per_class
        self.collection = self.all_images = collection
        if per_class is not None:
            self.collection = self.with_few(per_class).collection
        self.class_names = collection.class_names
        self.num_classes = len(collection.class_names)
        self.multilabel = collection.multilabel
        self.notes = list(collection.notes)
        if per_class is not None and (
            short := [f"{name!r} ({number})" for name, number in self.counts["train"].items() if number < per_class]
        ):
            self.notes.append(
                f"all training {input_spec.noun} of these classes are used, because they are fewer than data.per_class={per_class}: "
                f"{shorten(short)}"
            )
        self.batch_size = batch_size
        self._shares: dict[tuple[float, int], tuple[Examples, list[int]]] = {}
        self._num_workers = num_workers
        self.mix = mix
        self.input_spec = input_spec
        train, evaluation = input_spec.views(augment)
        self.transforms: dict[Split, Transform] = {"train": train, "val": evaluation, "test": evaluation}
        self.views = views
        if views not in ("auto", 0) and not self.augments:
            self.notes.append(f"data.views={views} is ignored: without augmentation (data.augment={augment}) all views are equal")
        self._collate = {split: MixedCollate(mix if split == "train" else "none", self.num_classes) for split in SPLITS}

    @property
    def augments(self) -> bool:
        """Whether training images are augmented."""
        return fingerprint(self.transforms["train"]) != fingerprint(self.transforms["val"])

    def number_of_views(self, fitted_on: Sequence[Split] = ()) -> int:
        """Augmented views that are read of each image; `fitted_on`: by a head that is fitted on these splits, and not trained after."""
        if self.views == 0 or (self.views == "auto" and not fitted_on) or not self.augments:
            return 0
        if self.views != "auto":
            return self.views
        return min(AUTO_VIEWS, AUTO_AUGMENTED // max(1, sum(len(self.collection.splits[split]) for split in fitted_on)))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return shuffled, augmented, mixed batches."""
        return self.loader("train", self.order("train"))

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return batches of the val split, in order, in the evaluation view."""
        return self.loader("val", self.order("val"))

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return batches of the test split, in order, in the evaluation view."""
        return self.loader("test", self.order("test"))

    def order(self, split: Split) -> TrainOrder | EvalOrder:
        """Return the images of each batch of this process; for train, from the batch at which training continues."""
        if overfits_batches(self.trainer):
            raise UserError("overfit_batches is not supported: use limit_train_batches and data.augment=none")
        images = self.collection.splits[split]
        if split != "train":
            return EvalOrder(images, self.batch_size, **self._place())
        order = TrainOrder(images, self.batch_size, seed=self.seed, **self._place())
        order.begin_at(*self.begin)
        return order

    def loader(self, split: Split, order: TrainOrder | EvalOrder, stored: StoredImages | None = None) -> DataLoader[Batch]:
        """Return the batches of an order; of `stored` pixels in place of the images."""
        return DataLoader(
            Batches(self._labelled(split, stored), self._collate[split], self.seed),
            sampler=order,
            batch_size=None,  # an item is a batch
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # seeds the workers; without it, loading would change the global random state
        )

    def _labelled(self, split: Split, stored: StoredImages | None) -> LabelledImages:
        on_device = self.normalization is not None and not self._collate[split].steps and not self.batch_overrides
        collection = replace(self.collection, splits={split: stored.examples}) if stored else self.collection
        transform = stored.transform if stored else self.transforms[split]
        return LabelledImages(collection, split, transform, as_pixels=on_device and normalizes_batches(self.trainer))

    @property
    def normalization(self) -> Normalization | None:
        """Of the images in all splits; `None` where a view cannot be split, or where the views differ in it."""
        views = [SplitView.of(transform) for transform in self.transforms.values()]
        found = {view.normalization if view else None for view in views}
        return found.pop() if len(found) == 1 else None

    @property
    def num_workers(self) -> int:
        """Processes that load images for this one."""
        if self._num_workers is not None:
            return self._num_workers
        return default_workers(self.trainer.num_devices if self.trainer else 1)  # processes on this machine

    @property
    def counts(self) -> dict[Split, dict[str, int]]:
        """Images of each class by split."""
        return self.collection.counts

    @property
    def batch_overrides(self) -> list[str]:
        """Names of the methods that a subclass overrides and that change its batches: features of the collection cannot replace them."""
        return [name for name in BATCH_METHODS if getattr(type(self), name) is not getattr(ImageData, name)]

    def with_few(self, per_class: int) -> Self:
        """Return the same data with at most this number of training images of each class."""
        train = self.collection.splits["train"]
        return self._with(draw_per_class(train, cached_hashes(train), per_class, self.seed))

    def with_share(self, share: float) -> Self:
        """Return the same data with this share of the training images of each class, but at least two of each."""
        train = self.collection.splits["train"]
        known = self._shares.get((share, self.seed))
        if known is None or known[0] is not train:  # a run asks five times, and a draw from a million images takes 3 s
            self._shares[share, self.seed] = known = train, draw_share(train, cached_hashes(train), share, self.seed)
        return self._with(known[1])

    def _with(self, places: Sequence[int]) -> Self:
        other, collection = copy(self), self.collection
        splits = {**collection.splits, "train": collection.splits["train"].subset(places)}
        other.collection = Collection(splits, collection.class_names, collection.multilabel, collection.notes)
        return other

    def _place(self) -> dict[str, int]:
        """Return the number of processes that share the images, and the rank of this one."""
        processes, rank = process_share(self.trainer)
        return {"processes": processes, "rank": rank}


def with_all_in_train(data: ImageData) -> ImageData:
    """The same data with the images of val and test in train, without notes on its splits."""
    other = copy(data)
    other.notes = [note for note in data.notes if note not in data.all_images.split_notes]
    other.collection = all_in_train(data.collection)
    other.all_images = other.collection if data.collection is data.all_images else all_in_train(data.all_images)
    return other


def images_only(data: Any, *, pooled: bool = False) -> Any:
    """Return `data`: every stage trains on images. An option of the group `cache`."""
    return data
