"""Data source of texts, an option of the config group `data`: a callable `(input_spec) -> ImageData`, which serves token ids."""

from dataclasses import asdict
from pathlib import Path

from ftlit.data.csv_format import USUAL, CsvFormat
from ftlit.data.dataset import Collection
from ftlit.data.sources.csv_files import SPLIT_COLUMN
from ftlit.data.sources.text_files import collect_texts
from ftlit.data.tokens import TextSpec
from ftlit.lit.datamodules.image_data import DATA_SOURCES, ImageData
from ftlit.lit.datamodules.source_options import Loading, Splits, flat_options

TEXTS = Loading(augment="none", num_workers=0)  # without processes texts load fastest
RANDOM_SPLITS = Splits()


@DATA_SOURCES.register("text_csv")
@flat_options(without=("augment", "mix", "views"))
def text_csv_data(
    input_spec: TextSpec,
    *,
    csv: str | Path,
    val_csv: str | Path | None = None,
    test_csv: str | Path | None = None,
    text_column: str = "text",
    label_column: str = "label",
    split_column: str = SPLIT_COLUMN,
    label_separator: str | None = None,
    group_column: str | None = None,
    form: CsvFormat = USUAL,
    splits: Splits = RANDOM_SPLITS,
    loading: Loading = TEXTS,
) -> ImageData:
    """Load texts of a csv with the columns text, label and, if it gives the splits, split.

    All texts are padded to the length of the longest, at most the network's `max_length` tokens. Longer texts are cut, and counted in a
    note. The fractions of splits are for val and test if no file or column gives them.

    Args:
        input_spec: what the network expects: its tokenizer.
        csv: the file, with a header line.
        val_csv: a separate file for val.
        test_csv: a separate file for test.
        text_column: column with the text.
        label_column: column with its label.
        split_column: column with train, val or test; only `split`, the default, may be missing.
        label_separator: separates several labels in one cell, such as `|`; `None`: a cell is one label.
        group_column: column with the group of a text (author, document): a split keeps the texts of a group together; `None`: none.
        form: see `CsvFormat`.
        splits: see `Splits`.
        loading: see `Loading`.

    Raises:
        UserError: files or arguments that cannot be used.
    """
    collection = collect_texts(
        csv,
        others={"val": val_csv, "test": test_csv},
        text_column=text_column,
        label_column=label_column,
        split_column=split_column,
        label_separator=label_separator,
        group_column=group_column,
        rule=splits.rule,
        form=form,
    )
    return text_data(collection, input_spec, loading)


def text_data(collection: Collection, input_spec: TextSpec, loading: Loading) -> ImageData:
    """Batches of a collection of texts, padded to the length of the longest; truncated ones are counted in a note."""
    texts = [text for split in collection.splits.values() for text in split.sources]
    fitted, longer = input_spec.fitted(texts)
    if longer:
        collection.notes.append(f"{longer:,} of {len(texts):,} texts are truncated to {fitted.max_length} tokens (backbone.max_length)")
    return ImageData(collection, fitted, **asdict(loading))
