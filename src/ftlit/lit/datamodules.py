"""The options of the Hydra group `data`: callables `(input_spec) -> ImageData`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler

from ftlit.dataset import Batch, Collection, LabelledImages, MixedCollate, Split, image_reader
from ftlit.errors import UserError
from ftlit.listing import collect, list_csv, list_folder
from ftlit.published import NO_FLIP, digits, torchvision_dataset
from ftlit.splitting import draw_per_class
from ftlit.transform import InputSpec, eval_transform, train_transform


class ImageData(LightningDataModule):
    """Batches (images float32 (N, 3, S, S), targets) of a collection, as a network wants them.

    Targets are class numbers, int64 (N,); with several labels, or mixed, float32 (N, num_classes).
    The order of the training images is a function of (seed, epoch): one process with batches of 2 N sees in each step the images
    that two processes with N see together. Where a last training batch of one image would remain it is left out: BatchNorm
    cannot normalise a single value.

    Args:
        collection: the images, in three splits.
        input_spec: what the network expects.
        augment: see `transform.train_transform`.
        mix: see `dataset.MixedCollate`.
        batch_size: images in a batch of one process.
        num_workers: processes that load; `None`: half of the cores, at most 8.
        seed: of the order, of what workers draw, and of `per_class`.
        per_class: train on so many images of each class, drawn by seed; `None` for all.

    Raises:
        UserError: an argument out of its range.
    """

    def __init__(
        self,
        collection: Collection,
        input_spec: InputSpec,
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
        self.collection = collection if per_class is None else _with_few(collection, per_class, seed)
        self.class_names = collection.class_names
        self.num_classes = len(collection.class_names)
        self.multilabel = collection.multilabel
        self.counts = self.collection.counts
        self.notes = collection.notes
        self.batch_size = batch_size
        self.num_workers = _half_the_cores() if num_workers is None else num_workers
        self.seed = seed
        self._transforms = {"train": train_transform(input_spec, augment), "eval": eval_transform(input_spec)}
        self._mix = MixedCollate(mix, self.num_classes)
        self._generators: dict[Split, torch.Generator] = {}

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, augmented, mixed batches."""
        images = LabelledImages(self.collection, "train", self._transforms["train"])
        # torch's sampler serves one process as well; Lightning calls its set_epoch and leaves it in place under ddp
        replicas, rank = self._place()
        sampler: DistributedSampler[Batch] = DistributedSampler(images, replicas, rank, shuffle=True, seed=self.seed)
        drop_last = len(sampler) > 1 and len(sampler) % self.batch_size == 1
        return self._loader("train", images, sampler=sampler, collate_fn=self._mix, drop_last=drop_last)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of the val split, in order, in the evaluation view."""
        return self._loader("val", LabelledImages(self.collection, "val", self._transforms["eval"]))

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the test split, in order, in the evaluation view."""
        return self._loader("test", LabelledImages(self.collection, "test", self._transforms["eval"]))

    def _loader(self, split: Split, images: LabelledImages, **how: Any) -> DataLoader[Batch]:
        return DataLoader(
            images,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # its own generator: seeds the workers, and loading takes nothing from the global random state
            generator=self._generators.setdefault(split, torch.Generator().manual_seed(self.seed + self._place()[1])),
            **how,
        )

    def _place(self) -> tuple[int, int]:
        """How many processes share the images, and which of them this is."""
        place = getattr(self.trainer, "distributed_sampler_kwargs", None) or {"num_replicas": 1, "rank": 0}
        return place["num_replicas"], place["rank"]


def _with_few(collection: Collection, per_class: int, seed: int) -> Collection:
    train = collection.splits["train"]
    few = train.subset(draw_per_class(train.labels, per_class, seed))
    return Collection({**collection.splits, "train": few}, collection.class_names, collection.multilabel, collection.notes)


def _half_the_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores // 2)


def _fractions(val: float, test: float) -> dict[Split, float]:
    return {"val": val, "test": test}


def digits_data(
    input_spec: InputSpec,
    *,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    augment: str = "none",
    mix: str = "none",
    batch_size: int = 32,
    num_workers: int | None = 0,
    seed: int = 0,
    per_class: int | None = None,
) -> ImageData:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, which come with it.

    Args:
        input_spec: what the network expects.
        val_fraction: part of the images that val gets.
        test_fraction: part that test gets.
        split_seed: draws the splits, stratified. Apart from `seed`, so that a new seed leaves the test images what they were.
        augment: see `ImageData`, as all that follow.
        mix: none, mixup, cutmix or both.
        batch_size: images in a batch.
        num_workers: processes that load; 0 is fastest for images this small.
        seed: of the order.
        per_class: training images of each class, `None` for all.

    Raises:
        UserError: an argument out of its range.
    """
    collection = digits(fractions=_fractions(val_fraction, test_fraction), split_seed=split_seed)
    return ImageData(
        collection,
        input_spec,
        augment=augment,
        mix=mix,
        batch_size=batch_size,
        num_workers=num_workers,
        seed=seed,
        per_class=per_class,
    )


def folder_data(
    input_spec: InputSpec,
    *,
    root: str | Path,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    on_bad_image: str = "stop",
    augment: str = "photo",
    mix: str = "none",
    batch_size: int = 32,
    num_workers: int | None = None,
    seed: int = 0,
    per_class: int | None = None,
) -> ImageData:
    """Image files in one folder for each class, with or without train, val and test folders above them.

    Args:
        input_spec: what the network expects.
        root: folder of the class folders, or of train, val (or valid, validation) and test. See `listing.list_folder`.
        val_fraction: part of the training images that val gets where there is no val folder.
        test_fraction: the same for test.
        split_seed: draws them, stratified.
        on_bad_image: stop or skip; see `listing.collect`.
        augment: see `ImageData`, as all that follow.
        mix: none, mixup, cutmix or both.
        batch_size: images in a batch.
        num_workers: processes that load.
        seed: of the order.
        per_class: training images of each class, `None` for all.

    Raises:
        UserError: files or arguments that cannot be used.
    """
    collection = collect(
        list_folder(root),
        load=image_reader(input_spec),
        on_bad_image=on_bad_image,
        fractions=_fractions(val_fraction, test_fraction),
        split_seed=split_seed,
    )
    return ImageData(
        collection,
        input_spec,
        augment=augment,
        mix=mix,
        batch_size=batch_size,
        num_workers=num_workers,
        seed=seed,
        per_class=per_class,
    )


def csv_data(
    input_spec: InputSpec,
    *,
    csv: str | Path,
    root: str | Path | None = None,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str = "split",
    label_separator: str | None = None,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    on_bad_image: str = "stop",
    augment: str = "photo",
    mix: str = "none",
    batch_size: int = 32,
    num_workers: int | None = None,
    seed: int = 0,
    per_class: int | None = None,
) -> ImageData:
    """Image files listed in a csv with the columns path, label and, where the splits are given, split. See `listing.list_csv`.

    Args:
        input_spec: what the network expects.
        csv: the file, UTF-8, with a header line.
        root: what relative paths start from; `None` is the csv's own folder.
        path_column: column with the image's path.
        label_column: column with its label.
        split_column: column with train, val or test; it may be missing.
        label_separator: what divides several labels in one cell, such as `|`; `None`: a cell is one label.
        val_fraction: part of the training images that val gets where the csv has none.
        test_fraction: the same for test.
        split_seed: draws them, stratified.
        on_bad_image: stop or skip; see `listing.collect`.
        augment: see `ImageData`, as all that follow.
        mix: none, mixup, cutmix or both.
        batch_size: images in a batch.
        num_workers: processes that load.
        seed: of the order.
        per_class: training images of each class, `None` for all.

    Raises:
        UserError: files or arguments that cannot be used.
    """
    files = list_csv(
        csv, root=root, path_column=path_column, label_column=label_column, split_column=split_column, label_separator=label_separator
    )
    collection = collect(
        files,
        load=image_reader(input_spec),
        on_bad_image=on_bad_image,
        fractions=_fractions(val_fraction, test_fraction),
        split_seed=split_seed,
        multilabel=label_separator is not None,
    )
    return ImageData(
        collection,
        input_spec,
        augment=augment,
        mix=mix,
        batch_size=batch_size,
        num_workers=num_workers,
        seed=seed,
        per_class=per_class,
    )


def torchvision_data(
    input_spec: InputSpec,
    *,
    name: str,
    root: str | Path = "data",
    download: bool = False,
    options: Mapping[str, Any] | None = None,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    augment: str | None = None,
    mix: str = "none",
    batch_size: int = 32,
    num_workers: int | None = None,
    seed: int = 0,
    per_class: int | None = None,
) -> ImageData:
    """A classification data set of torchvision, by class name.

    Args:
        input_spec: what the network expects.
        name: `CIFAR10`, `Flowers102`, ...; `published.DATASETS` has them all.
        root: folder that it is in.
        download: whether to download what is not there.
        options: more arguments of the data set's class, such as `split` of EMNIST or `size` of FakeData.
        val_fraction: part of the training images that val gets where the data set has none.
        test_fraction: the same for test.
        split_seed: draws them, stratified.
        augment: see `ImageData`, as all that follow; `None`: photo, but none for letters and signs, which a flip would change.
        mix: none, mixup, cutmix or both.
        batch_size: images in a batch.
        num_workers: processes that load.
        seed: of the order.
        per_class: training images of each class, `None` for all.

    Raises:
        UserError: a data set that is unknown or not there, or arguments that cannot be used.
    """
    collection = torchvision_dataset(
        name,
        root=root,
        download=download,
        options=options or {},
        fractions=_fractions(val_fraction, test_fraction),
        split_seed=split_seed,
    )
    return ImageData(
        collection,
        input_spec,
        augment=augment or ("none" if name in NO_FLIP else "photo"),
        mix=mix,
        batch_size=batch_size,
        num_workers=num_workers,
        seed=seed,
        per_class=per_class,
    )
