"""All images of a data set in train: each once, with its label, content and group."""

from pathlib import Path

import numpy as np
import pytest

from ftlit.data.dataset import SPLITS, Collection, Examples
from ftlit.data.splitting.one_split import all_in_train


def files(numbers):
    return [Path("folder", f"{number}.png") for number in numbers]


@pytest.mark.parametrize("kind", ["files", "arrays", "unknown"])
def test_each_image_is_in_train_once(kind):
    parts = {"train": range(4), "val": range(4, 6), "test": range(6, 9)}

    def examples(numbers):
        sources = files(numbers) if kind == "files" else list(numbers)
        contents = {"files": sources, "arrays": [np.array([i]) for i in numbers], "unknown": None}[kind]
        return Examples(sources, [(i % 2,) for i in numbers], str, contents, [f"g{i}" for i in numbers])

    found = all_in_train(Collection({split: examples(parts[split]) for split in SPLITS}, ["a", "b"]))
    train = found.splits["train"]
    assert list(train.sources) == (files(range(9)) if kind == "files" else list(range(9)))
    assert train.labels == [(i % 2,) for i in range(9)] and train.groups == [f"g{i}" for i in range(9)]
    assert (train.contents is train.sources) == (kind == "files") and (train.contents is None) == (kind == "unknown")
    assert not len(found.splits["val"]) and not len(found.splits["test"])


def test_groups_of_some_splits_only_are_kept():
    part, without = Examples([0], [(0,)], str, None, ["g"]), Examples([1], [(0,)], str)
    found = all_in_train(Collection({"train": part, "val": without, "test": without}, ["a"]))
    assert found.splits["train"].groups == ["g", None, None]
