"""Data sources of images, the options of the config group `data`: callables `(input_spec) -> ImageData`."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ftlit.data.csv_format import USUAL, CsvFormat
from ftlit.data.dataset import Split
from ftlit.data.input_spec import InputSpec
from ftlit.data.sources.builtin import NO_FLIP, digits, torchvision_dataset
from ftlit.data.sources.csv_files import SPLIT_COLUMN
from ftlit.data.sources.folder_files import list_folder, list_unlabelled
from ftlit.data.sources.image_files import collect, list_csv
from ftlit.features.image_hashes import cached_headers
from ftlit.lit.datamodules.image_data import DATA_SOURCES, ImageData
from ftlit.lit.datamodules.source_options import Loading, Splits, flat_options

SPLITS, LOADING = Splits(), Loading()
SMALL_IMAGES = Loading(augment="none", num_workers=0)  # without processes images this small load fastest
UNLABELLED, UNLABELLED_SPLITS = Loading(augment="none"), Splits(val_fraction=0.1, test_fraction=0.1)


@DATA_SOURCES.register("digits")
@flat_options()
def digits_data(input_spec: InputSpec, *, splits: Splits = SPLITS, loading: Loading = SMALL_IMAGES) -> ImageData:
    """Load scikit-learn's 1,797 handwritten digits, 8x8 pixels in grey, which are installed with it.

    Args:
        input_spec: what the network expects.
        splits: see `Splits`.
        loading: see `Loading`.

    Raises:
        UserError: an argument out of its range.
    """
    input_spec.check_pictures("data=digits")
    return ImageData(digits(splits.rule), input_spec, **asdict(loading))


@DATA_SOURCES.register("folder")
@flat_options()
def folder_data(
    input_spec: InputSpec,
    *,
    root: str | Path,
    layout: str | None = None,
    group_pattern: str | None = None,
    on_bad_image: str = "stop",
    splits: Splits = SPLITS,
    loading: Loading = LOADING,
) -> ImageData:
    """Load image files from one folder per class, with or without train, val and test folders above them. See `folder_files.list_folder`.
    The fractions of splits are for val and test where there is no folder.

    Args:
        input_spec: what the network expects.
        root: folder of the class folders, or of train, val (or valid, validation, dev) and test.
        layout: the meaning of each level of folders, such as `class`, `split/class`, `group/class` or `class/group`; `None`: the first
            or the second of these, whichever the folder has.
        group_pattern: regular expression that finds the group of an image (patient, video, site) in its path below `root`. A split keeps
            the images of a group together. `None`: groups are those of `layout`, if it has any.
        on_bad_image: stop or skip; see `image_files.collect`.
        splits: see `Splits`.
        loading: see `Loading`.

    Raises:
        UserError: files or arguments that cannot be used.
    """
    files, notes = list_folder(root, layout=layout, group_pattern=group_pattern, arrays=input_spec.takes_bands)
    collection, spec = collect(files, input_spec=input_spec, on_bad_image=on_bad_image, rule=splits.rule, headers_of=cached_headers)
    collection.notes[:0] = notes
    return ImageData(collection, spec, **asdict(loading))


@DATA_SOURCES.register("unlabelled")
@flat_options(without=("mix", "per_class", "views"))
def unlabelled_data(
    input_spec: InputSpec,
    *,
    root: str | Path,
    on_bad_image: str = "stop",
    splits: Splits = UNLABELLED_SPLITS,
    loading: Loading = UNLABELLED,
) -> ImageData:
    """Load all image files below a folder, without labels: for `recipe=pretrain`. No pretraining sees the images of test; `augment` is for
    the images of the lowest layer.

    Args:
        input_spec: what the network expects.
        root: the folder; see `folder_files.list_unlabelled`.
        on_bad_image: stop or skip; see `image_files.collect`.
        splits: see `Splits`.
        loading: see `Loading`.

    Raises:
        UserError: files or arguments that cannot be used.
    """
    files, notes = list_unlabelled(root, arrays=input_spec.takes_bands)
    without_labels = {"multilabel": True}
    collection, spec = collect(
        files, input_spec=input_spec, on_bad_image=on_bad_image, rule=splits.rule, headers_of=cached_headers, **without_labels
    )
    collection.notes[:0] = notes
    return ImageData(collection, spec, **asdict(loading))


@DATA_SOURCES.register("csv")
@flat_options()
def csv_data(
    input_spec: InputSpec,
    *,
    csv: str | Path,
    val_csv: str | Path | None = None,
    test_csv: str | Path | None = None,
    root: str | Path | None = None,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str = SPLIT_COLUMN,
    label_separator: str | None = None,
    group_column: str | None = None,
    on_bad_image: str = "stop",
    form: CsvFormat = USUAL,
    splits: Splits = SPLITS,
    loading: Loading = LOADING,
) -> ImageData:
    """Load image files listed in a csv with the columns path, label and, if it gives the splits, split. See `image_files.list_csv`.
    The fractions of splits are for val and test if no file or column gives them.

    Args:
        input_spec: what the network expects.
        csv: the file, with a header line.
        val_csv: a separate file for val.
        test_csv: a separate file for test.
        root: folder of relative paths; `None`: the folder of the csv that has them.
        path_column: column with the image's path.
        label_column: column with its label.
        split_column: column with train, val or test; only `split`, the default, may be missing.
        label_separator: separates several labels in one cell, such as `|`; `None`: a cell is one label.
        group_column: column with the group of an image (patient, video, site): a split keeps the images of a group together; `None`: none.
        on_bad_image: stop or skip; see `image_files.collect`.
        form: see `CsvFormat`.
        splits: see `Splits`.
        loading: see `Loading`.

    Raises:
        UserError: files or arguments that cannot be used.
    """
    columns = {"path_column": path_column, "label_column": label_column, "split_column": split_column}
    others: dict[Split, str | Path | None] = {"val": val_csv, "test": test_csv}
    files = list_csv(csv, others=others, root=root, label_separator=label_separator, group_column=group_column, form=form, **columns)
    several = label_separator is not None
    collection, spec = collect(
        files, input_spec=input_spec, on_bad_image=on_bad_image, rule=splits.rule, headers_of=cached_headers, multilabel=several
    )
    return ImageData(collection, spec, **asdict(loading))


@DATA_SOURCES.register("torchvision")
@flat_options(without=("augment",))
def torchvision_data(
    input_spec: InputSpec,
    *,
    name: str,
    root: str | Path = "data",
    download: bool = False,
    options: Mapping[str, Any] | None = None,
    augment: str | None = None,
    splits: Splits = SPLITS,
    loading: Loading = LOADING,
) -> ImageData:
    """Load a classification data set of torchvision, by class name. The fractions of splits are for val and test if it does not give them.

    Args:
        input_spec: what the network expects.
        name: `CIFAR10`, `Flowers102`, ...; `ftlit.data.sources.builtin.DATASETS` lists them.
        root: folder of the data set.
        download: whether to download what is missing.
        options: more arguments of the data set's class, such as `split` of EMNIST or `size` of FakeData.
        augment: none, photo, trivial_augment or rand_augment; `None`: photo, but none for letters and signs, which a flip would change.
        splits: see `Splits`.
        loading: see `Loading`.

    Raises:
        UserError: a data set that is unknown or missing, or arguments that cannot be used.
    """
    input_spec.check_pictures(f"data=torchvision data.name={name}")
    collection = torchvision_dataset(name, splits.rule, root=root, download=download, options=options or {})
    default = "none" if name in NO_FLIP else "photo"
    return ImageData(collection, input_spec, **asdict(replace(loading, augment=augment or default)))
