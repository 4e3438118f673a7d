"""Options of the Hydra group `data` that are texts: callables `(input_spec) -> ImageData`, which serves token ids as it does images."""

from pathlib import Path

from ftlit.data.text_files import collect_texts
from ftlit.data.tokens import TextSpec
from ftlit.lit.datamodules.image_data import ImageData


def text_csv_data(
    input_spec: TextSpec,
    *,
    csv: str | Path,
    val_csv: str | Path | None = None,
    test_csv: str | Path | None = None,
    text_column: str = "text",
    label_column: str = "label",
    split_column: str = "split",
    label_separator: str | None = None,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    batch_size: int = 32,
    num_workers: int | None = 0,
    seed: int = 0,
    per_class: int | None = None,
) -> ImageData:
    """Texts of a csv with the columns text, label and, where the splits are given, split. All are filled up to the tokens of the longest,
    at most those of the network's `max_length`; what is longer is cut, and counted in a note.

    Args:
        input_spec: what the network expects: its tokenizer.
        csv: the file, UTF-8, with a header line.
        val_csv: a file of its own for val.
        test_csv: the same for test.
        text_column: column with the text.
        label_column: column with its label.
        split_column: column with train, val or test; it may be missing.
        label_separator: what divides several labels in one cell, such as `|`; `None`: a cell is one label.
        val_fraction: part of the training texts that val gets where nothing gives it.
        test_fraction: the same for test.
        split_seed: draws them, stratified.
        batch_size: see `ImageData`, as all that follow.
        num_workers: processes that load; 0 is fastest for texts.
        seed: of the order.
        per_class: training texts of each class, `None` for all.

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
        fractions={"val": val_fraction, "test": test_fraction},
        split_seed=split_seed,
    )
    texts = [text for split in collection.splits.values() for text in split.sources]
    fitted, longer = input_spec.fitted(texts)
    if longer:
        collection.notes.append(f"{longer:,} of {len(texts):,} texts are cut at {fitted.max_length} tokens (backbone.max_length)")
    return ImageData(collection, fitted, augment="none", batch_size=batch_size, num_workers=num_workers, seed=seed, per_class=per_class)
