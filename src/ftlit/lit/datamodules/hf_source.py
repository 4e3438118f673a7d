"""Data source of Hugging Face data sets, an option of the config group `data`: a callable `(input_spec) -> ImageData`."""

from dataclasses import asdict, replace
from pathlib import Path

from ftlit.data.input_spec import InputSpec
from ftlit.data.sources.hf_dataset import read_hf
from ftlit.data.tokens import TextSpec
from ftlit.lit.datamodules.image_data import DATA_SOURCES, ImageData
from ftlit.lit.datamodules.source_options import Loading, Splits, flat_options
from ftlit.lit.datamodules.text_sources import text_data

SPLITS, LOADING = Splits(), Loading()


@DATA_SOURCES.register("hf")
@flat_options(without=("augment",))
def hf_data(
    input_spec: InputSpec | TextSpec,
    *,
    path: str | Path,
    config: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    augment: str | None = None,
    splits: Splits = SPLITS,
    loading: Loading = LOADING,
) -> ImageData:
    """Load a data set of Hugging Face, images or texts, as the network takes them. The fractions of splits are for val and test if it does
    not give them.

    Args:
        input_spec: what the network expects.
        path: folder that `save_to_disk` wrote, or the name of a data set on the hub whose files are in the local cache.
        config: configuration of a data set on the hub; `None`: its only one.
        image_column: column with the image; `None`: the only one with images.
        text_column: column with the text; `None`: the only one with texts, or `text`.
        label_column: column with the label; `None`: the only one with class labels, or `label`.
        augment: none, photo, trivial_augment or rand_augment; `None`: photo for images, none for texts.
        splits: see `Splits`.
        loading: see `Loading`.

    Raises:
        UserError: a data set that is missing, or columns that cannot be used.
    """
    texts = isinstance(input_spec, TextSpec)
    if isinstance(input_spec, InputSpec):
        input_spec.check_pictures("data=hf")
    columns = {"image_column": image_column, "text_column": text_column, "label_column": label_column}
    data, notes = read_hf(path, config=config, texts=texts, **columns)
    collection = data.collection(splits.rule)
    collection.notes[:0] = notes
    loading = replace(loading, augment=augment or ("none" if texts else "photo"))
    if isinstance(input_spec, TextSpec):
        return text_data(collection, input_spec, loading)
    return ImageData(collection, input_spec, **asdict(loading))
