"""The options of the Hydra group `data`: callables `(input_spec) -> ImageData`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftlit.data.builtin import NO_FLIP, digits, torchvision_dataset
from ftlit.data.dataset import Split
from ftlit.data.image_files import collect, list_csv, list_folder, list_unlabelled
from ftlit.data.images import image_reader
from ftlit.data.input_spec import InputSpec
from ftlit.lit.datamodules.image_data import ImageData


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


def unlabelled_data(
    input_spec: InputSpec,
    *,
    root: str | Path,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    split_seed: int = 0,
    on_bad_image: str = "stop",
    augment: str = "none",
    batch_size: int = 32,
    num_workers: int | None = None,
    seed: int = 0,
) -> ImageData:
    """All image files below a folder, without labels: for `recipe=pretrain`.

    Args:
        input_spec: what the network expects.
        root: the folder; see `listing.list_unlabelled`.
        val_fraction: part of the images that val gets.
        test_fraction: part that test gets, which no pretraining sees.
        split_seed: draws them.
        on_bad_image: stop or skip; see `listing.collect`.
        augment: see `ImageData`; of the lowest layer's images.
        batch_size: images in a batch.
        num_workers: processes that load.
        seed: of the order.

    Raises:
        UserError: files or arguments that cannot be used.
    """
    collection = collect(
        list_unlabelled(root),
        load=image_reader(input_spec),
        on_bad_image=on_bad_image,
        fractions=_fractions(val_fraction, test_fraction),
        split_seed=split_seed,
        multilabel=True,  # of no label at all
    )
    return ImageData(collection, input_spec, augment=augment, batch_size=batch_size, num_workers=num_workers, seed=seed)


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
