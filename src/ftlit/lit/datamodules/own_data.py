"""Data of a function of the user: torch Datasets become an `ImageData`, a `LightningDataModule` is checked."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, get_type_hints

from lightning.pytorch import LightningDataModule

from ftlit.data.dataset import SPLITS
from ftlit.data.input_spec import InputSpec
from ftlit.data.sources.torch_datasets import ACCEPTED, TorchData
from ftlit.data.sources.torch_items import kind_of
from ftlit.data.tokens import TextSpec
from ftlit.errors import UserError
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.datamodules.source_options import Loading, Splits
from ftlit.lit.datamodules.text_sources import text_data
from ftlit.lit.module_internals import overrides

SHARED = {**get_type_hints(Splits), **get_type_hints(Loading)}  # option of splits and loading -> its annotated type
SHARED_FIELDS = {record: [field.name for field in fields(record)] for record in (Splits, Loading)}
OF_A_MODULE = ("num_classes", "class_names", "counts", "multilabel", "batch_size")  # attributes that training reads


def image_data_of(data: TorchData, input_spec: InputSpec | TextSpec, options: Mapping[str, Any], source: str) -> ImageData:
    """The batches of data that were read.

    Args:
        data: the splits.
        input_spec: what the network expects.
        options: fields of `Splits` and `Loading`; the others have their defaults, without augmentation and loading processes.
        source: name of the data, for messages.

    Raises:
        UserError: images for a network of texts or the reverse; an option out of its range.
    """
    given = {record: {name: options[name] for name in names if name in options} for record, names in SHARED_FIELDS.items()}
    collection = data.collection(Splits(**given[Splits]).rule)
    loading = Loading(**{"augment": "none", "num_workers": 0, **given[Loading]})
    if isinstance(input_spec, TextSpec):
        if not data.texts:
            raise UserError(f"the backbone takes texts, but {source} gives images: give (text, label), or a backbone for images")
        return text_data(collection, input_spec, loading)
    if data.texts:
        raise UserError(
            f"the backbone takes images, but {source} gives texts: give backbone=bert backbone.name=..., or items (image, label)"
        )
    input_spec.check_pictures(source)
    return ImageData(collection, input_spec, **asdict(loading))


def check_module(data: object, source: str) -> None:
    """Raise `UserError` for an object that is no data at all."""
    if not isinstance(data, LightningDataModule):
        raise UserError(
            f"{source} returned {kind_of(data)}: return {ACCEPTED}; an ImageData; or a LightningDataModule (docs/extending.md#data-source)"
        )


def check_trainable(data: Any, source: str) -> None:
    """Raise `UserError` for a data module without an attribute or a loader that a run reads."""
    if missing := [name for name in OF_A_MODULE if not hasattr(data, name)]:
        pronoun = "this attribute" if len(missing) == 1 else "these attributes"
        raise UserError(
            f"{source} returned {kind_of(data)}, a LightningDataModule without {', '.join(missing)}: set {pronoun} in its __init__ "
            "(docs/extending.md#data-source)"
        )
    lacking = [f"counts[{split!r}]" for split in SPLITS if split not in data.counts]
    lacking += [name for split in SPLITS if not overrides(data, LightningDataModule, name := f"{split}_dataloader")]
    if lacking:
        raise UserError(
            f"{source} returned {kind_of(data)}, a LightningDataModule that lacks {', '.join(lacking)}: add them; ftlit chooses the "
            "epoch on val and reports the accuracy on test (docs/extending.md#data-source)"
        )
