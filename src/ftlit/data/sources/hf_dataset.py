"""Data sets of Hugging Face (`datasets`): saved with `save_to_disk`, or in the hub's local cache; images or texts with their labels."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ftlit.data.dataset import SPLITS, Examples, Split
from ftlit.data.images import BadImage, to_rgb
from ftlit.data.source_paths import existing_folder
from ftlit.data.sources.text_files import read_text
from ftlit.data.sources.torch_datasets import TorchData
from ftlit.data.splitting.split_names import split_named
from ftlit.errors import UserError, one_line, shorten, unknown
from ftlit.formatting import shown
from ftlit.identity.code_identity import versioned
from ftlit.identity.fingerprint import of_bytes

USUAL_LABELS = ("label", "labels", "fine_label", "class", "target", "category")  # columns that hold the label, the first that there is
STRINGS = ("string", "large_string")
USUAL_TEXTS = ("text", "sentence", "content")
BATCH = 1000  # rows that are hashed at once


@versioned("read_hf_image", 1, uses=(to_rgb,))
class ReadHfImage(Dataset[Image.Image]):  # a data set, so that `fingerprint` does not look into the images
    """Place -> picture, of the encoded images of a column."""

    def __init__(self, rows: Any, column: str) -> None:
        self.held = (rows, column)

    def __call__(self, place: int) -> Image.Image:
        """The picture. Raises `BadImage` if it cannot be decoded."""
        rows, column = self.held
        try:
            with Image.open(BytesIO(_bytes_of(rows[place][column]))) as image:
                return to_rgb(image)
        except Exception as error:  # decoders raise anything
            raise BadImage(f"image {place} in column {column!r} cannot be read: {one_line(error)}") from error


def read_hf(
    path: str | Path,
    *,
    config: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    texts: bool,
) -> tuple[TorchData, list[str]]:
    """Read the labels and the digests of a data set. Returns its splits, and notes.

    Args:
        path: folder of `save_to_disk`, or the name of a data set on the hub, whose files are in the local cache; nothing is downloaded.
        config: name of a configuration of the data set on the hub.
        image_column: column with the image; `None`: the only one with images.
        text_column: column with the text; `None`: the only one with texts, or `text`.
        label_column: column with the label; `None`: the only one with class labels, or `label`.
        texts: whether the network takes texts.

    Raises:
        UserError: no such data set, no split for training, a column that is missing or cannot be chosen, an example without a label.
    """
    if (other := image_column if texts else text_column) is not None:
        name, kind = ("image_column", "texts") if texts else ("text_column", "images")
        raise UserError(f"data.{name}={other} has no effect, because the backbone takes {kind}: leave it out")
    splits, notes = _splits(_load(path, config), path)
    train = splits["train"]
    column = _input_column(train.features, image_column, text_column, texts=texts)
    label = _label_column(train.features, label_column, other_than=column)
    if label_column is None or (text_column if texts else image_column) is None:
        notes = [f"column {column} is read as {'text' if texts else 'image'}, and column {label} as label", *notes]
    names, multilabel = _classes(train, label)
    numbers: dict[Any, int] = {name: number for number, name in enumerate(names)}
    if hasattr(_inner(train.features[label]), "names"):  # class labels are numbers already
        numbers = {number: number for number in range(len(names))}
    found: dict[Split, Examples] = {}
    for split, rows in splits.items():
        labels = [_numbers(value, numbers, f"row {row} of {split}", label) for row, value in enumerate(rows[label])]
        if texts:
            sources: Sequence[Any] = [value or "" for value in rows[column]]
            contents = [np.frombuffer(text.encode(), np.uint8) for text in sources]
            found[split] = Examples(sources, labels, read_text, contents)
        else:
            encoded = _encoded(rows.select_columns([column]), column)
            found[split] = Examples(range(len(rows)), labels, ReadHfImage(encoded, column), list(_digests(encoded, column)))
    return TorchData(found, list(map(str, names)), multilabel, texts), notes


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError('data=hf needs the package datasets: pip install "ftlit[hf]"') from error
    return datasets


def _load(path: str | Path, config: str | None) -> Any:
    datasets, folder = _datasets(), Path(path).expanduser()
    if folder.is_dir() or str(path).startswith((".", "/", "~")):
        if config is not None:
            raise UserError(f"data.config={config} has no effect, because data.path={shown(path)} is a folder: leave data.config out")
        try:
            return datasets.load_from_disk(str(existing_folder(folder)))
        except UserError:
            raise
        except Exception as error:  # not written by save_to_disk, or damaged
            raise UserError(
                f"data.path={shown(path)} is not a folder that save_to_disk of Hugging Face wrote: give such a folder, or data=folder "
                f"data.root={shown(path)} for image files ({one_line(error).rstrip('.')})"
            ) from error
    try:
        with _offline(datasets):
            return datasets.load_dataset(str(path), config)
    except Exception as error:  # not in the cache, an unknown configuration, ...
        name = ", ".join(map(repr, filter(None, (str(path), config))))
        raise UserError(
            f"data.path={path} is neither a folder nor a data set in the cache of Hugging Face: download the data set with "
            f'python -c "import datasets; datasets.load_dataset({name})" ({one_line(error)})'
        ) from error


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Read from the cache only: a run downloads no data by itself."""
    from huggingface_hub import constants

    modules: tuple[Any, ...] = (datasets.config, constants)
    before = [(module, module.HF_HUB_OFFLINE) for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in before:
            module.HF_HUB_OFFLINE = value


def _splits(loaded: Any, path: str | Path) -> tuple[dict[Split, Any], list[str]]:
    parts = dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
    named = {name: split_named(name) for name in parts}
    if "train" not in named.values():
        raise UserError(
            f"data.path={shown(path)} has the splits {shorten(parts)}, but no train: rename the split with the training examples to train"
        )
    known = [split for split in named.values() if split]
    if twice := [split for split in SPLITS if known.count(split) > 1]:
        raise UserError(
            f"data.path={shown(path)} has several splits for {twice[0]} ({shorten(parts)}): keep one of them, or rename the others"
        )
    notes = [f"splits that are not read: {shorten(others)}"] if (others := [name for name, split in named.items() if split is None]) else []
    return {split: parts[name] for split in SPLITS for name in parts if named[name] == split}, notes


def _input_column(features: Mapping[str, Any], image_column: str | None, text_column: str | None, *, texts: bool) -> str:
    images, strings = _of_type(features, "Image"), [name for name in features if getattr(features[name], "dtype", None) in STRINGS]
    given, there, option = (text_column, strings, "text_column") if texts else (image_column, images, "image_column")
    if given is not None:
        if given not in features:
            raise unknown("column", given, features)
        if given not in there:
            needed = "texts" if texts else "images"
            advice = f"give data.{option}={' or '.join(there[:3])}" if there else f"give a data set with a column of {needed}"
            raise UserError(f"data.{option}={given} has {_kind(features[given])} values, not {needed}: {advice}")
        return given
    if not there:
        other = "no images and no texts"
        if images or strings:
            other = "images, but the backbone takes texts" if texts else "texts, but the backbone takes images"
        raise UserError(f"the data set has {other}: give another backbone or data set (the columns are {_columns(features)})")
    usual = [name for name in USUAL_TEXTS if name in there] if texts else []
    if len(there) > 1 and not usual:
        raise UserError(f"the data set has several columns of {'texts' if texts else 'images'} ({shorten(there)}): give data.{option}=...")
    return usual[0] if usual else there[0]


def _label_column(features: Mapping[str, Any], given: str | None, *, other_than: str) -> str:
    if given is not None:
        if given not in features:
            raise unknown("column", given, features)
        return given
    there = [name for name in features if hasattr(_inner(features[name]), "names")]
    usual = [name for name in USUAL_LABELS if name in features and name != other_than]
    if len(there) == 1 or not usual:
        if len(there) != 1:
            found = f"several columns of class labels ({shorten(there)})" if there else "no column of class labels"
            raise UserError(f"the data set has {found}: give data.label_column=..., one of {_columns(features, there)}")
        return there[0]
    return usual[0]


def _classes(train: Any, column: str) -> tuple[list[Any], bool]:
    """The classes, by name or by number, and whether an example has several labels."""
    feature = train.features[column]
    multilabel = _inner(feature) is not feature
    if names := getattr(_inner(feature), "names", None):
        return list(names), multilabel
    values = {value for row in train[column] for value in (row if multilabel and row is not None else (row,))} - {None}
    if not all(isinstance(value, str | int) for value in values):
        raise UserError(f"data.label_column={column} has {_kind(feature)} values: give a column of class labels, whole numbers or texts")
    return sorted(values), multilabel


def _numbers(value: Any, numbers: Mapping[Any, int], where: str, column: str) -> tuple[int, ...]:
    found = []
    for label in value if isinstance(value, list) else (value,):
        number = numbers.get(label)
        if number is None:
            missing = "no label" if label in (None, -1) else f"the label {label!r}, which train lacks,"
            raise UserError(f"{where} has {missing} in column {column!r}: remove such rows, or give another data.label_column=...")
        found.append(number)
    return tuple(sorted(set(found)))


def _of_type(features: Mapping[str, Any], name: str) -> list[str]:
    return [column for column, feature in features.items() if type(feature).__name__ == name]


def _inner(feature: Any) -> Any:
    """The type of a label; of a list of labels that of its elements."""
    return getattr(feature, "feature", feature)


def _columns(features: Mapping[str, Any], names: Sequence[str] = ()) -> str:
    return shorten(f"{name} ({_kind(features[name])})" for name in names or features)


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__) if type(feature).__name__ == "Value" else type(feature).__name__


def _encoded(rows: Any, column: str) -> Any:
    return rows.cast_column(column, _datasets().Image(decode=False))


def _digests(encoded: Any, column: str) -> "Iterator[np.ndarray[Any, Any]]":
    """The digest of each image file."""
    for batch in encoded.iter(BATCH):
        for row in batch[column]:
            yield np.frombuffer(bytes.fromhex(of_bytes(_bytes_of(row))), np.uint8)


def _bytes_of(row: Mapping[str, Any]) -> bytes:
    content = row["bytes"]
    return Path(row["path"]).read_bytes() if content is None else content
