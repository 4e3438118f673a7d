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


@pytest.mark.parametrize("shares", [False, True], ids=["val of its own", "val of train"])
def test_images_of_several_data_sets_are_read_from_their_own(shares):
    train, val, test = ([f"{split}{i}" for i in range(number)] for split, number in (("train", 4), ("val", 2), ("test", 3)))
    read = train.__getitem__
    parts = {"train": Examples([0, 2], [(0,)] * 2, read), "test": Examples(range(3), [(0,)] * 3, test.__getitem__)}
    parts["val"] = Examples([1, 3], [(0,)] * 2, read) if shares else Examples(range(2), [(0,)] * 2, val.__getitem__)
    found = all_in_train(Collection(parts, ["a"])).splits["train"]
    assert [found.load(source) for source in found.sources] == ["train0", "train2", *(["train1", "train3"] if shares else val), *test]
    assert len(set(found.sources)) == 7 and [found.load(source) for source in found.subset([6, 0]).sources] == ["test2", "train0"]
