"""Put all images of a data set into train, for the last training of a recipe that was chosen before."""

from collections.abc import Sequence
from typing import Any

from ftlit.data.dataset import SPLITS, Collection, Examples
from ftlit.data.file_paths import FilePaths, are_files


def all_in_train(collection: Collection) -> Collection:
    """The collection with the images of train, val and test in train, in this order; val and test are empty."""
    train = _joined([collection.splits[split] for split in SPLITS])
    none = train.subset([])
    splits = {"train": train, "val": none, "test": none}
    return Collection(splits, collection.class_names, collection.multilabel, collection.notes)  # type: ignore[arg-type]


def _joined(parts: Sequence[Examples]) -> Examples:
    """The examples of all parts, one part after the other; all are read as those of the first."""
    first, own = parts[0], all(part.contents is part.sources for part in parts)
    sources: Any = [source for part in parts for source in part.sources]
    labels = [label for part in parts for label in part.labels]
    if own:
        sources = FilePaths.of((path.parent, path.name) for path in sources) if are_files(sources) else sources
    known = first.contents is not None
    contents = sources if own else [content for part in parts for content in part.contents or ()] if known else None
    groups = None if first.groups is None else [group for part in parts for group in part.groups or [None] * len(part)]
    return Examples(sources, labels, first.load, contents, groups)
