"""Datasets of a user: every form of images and labels becomes the same examples, what does not fit is one line with the item."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from ftlit.data.dataset import Examples
from ftlit.data.images import BadImage
from ftlit.data.sources.torch_datasets import read_splits, splits_in
from ftlit.data.splitting.splits import SplitRule
from ftlit.errors import UserError
from ftlit.features.keys import view_digest

RULE = SplitRule({"val": 0.2, "test": 0.2})


def pixels(number: int) -> np.ndarray:
    return np.random.RandomState(number).randint(0, 256, (9, 8, 3)).astype(np.uint8)


FORMS = {
    "PIL": Image.fromarray,
    "array": lambda array: array,
    "tensor": lambda array: torch.from_numpy(array).permute(2, 0, 1),
    "floats": lambda array: torch.from_numpy(array).permute(2, 0, 1) / 255,
    "array of floats": lambda array: array / 255,
    "channels first": lambda array: array.transpose(2, 0, 1),
}


class Pairs(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        return self.items[place]


def pairs(number, label=lambda place: place % 2, form=FORMS["PIL"], first=0):
    return Pairs([(form(pixels(first + place)), label(place)) for place in range(number)])


def read(made):
    return read_splits(*splits_in(made, "make"), "make")


def error_of(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_is_the_same_picture_with_the_same_content(form):
    plain, given = (read(pairs(3, form=FORMS[name])).found["train"] for name in ("PIL", form))
    for place in range(3):
        assert np.array_equal(np.asarray(given.load(place)), pixels(place))
        assert np.array_equal(given.contents[place], plain.contents[place])


def test_grey_images_of_every_shape_are_read_as_rgb():
    grey = pixels(0)[:, :, 0]
    for value in (Image.fromarray(grey), grey, grey[None], grey[:, :, None], torch.from_numpy(grey)[None], torch.from_numpy(grey) / 255):
        picture = read(Pairs([(value, 0)])).found["train"].load(0)
        assert picture.mode == "RGB" and np.array_equal(np.asarray(picture)[:, :, 1], grey)


@pytest.mark.parametrize(
    ("labels", "names", "numbers", "multilabel"),
    [
        ([0, 1, 1], ["0", "1"], [(0,), (1,), (1,)], False),
        ([np.int64(0), torch.tensor(1), torch.tensor([1])], ["0", "1"], [(0,), (1,), (1,)], False),
        (["bee", "ant", "bee"], ["ant", "bee"], [(1,), (0,), (1,)], False),
        ([torch.tensor([0.0, 1.0, 1.0]), [0, 0, 0], np.array([1, 0, 0])], ["0", "1", "2"], [(1, 2), (), (0,)], True),
    ],
)
def test_labels_are_numbers_names_or_vectors(labels, names, numbers, multilabel):
    data = read(pairs(3, label=labels.__getitem__))
    assert (data.class_names, data.found["train"].labels, data.multilabel) == (names, numbers, multilabel)


def test_the_splits_are_those_of_the_pair_the_triple_or_the_names():
    a, b, c = (pairs(4, first=10 * number) for number in range(3))
    assert splits_in((a, b), "make")[0] == {"train": a, "test": b}
    assert splits_in([a, b, c], "make")[0] == {"train": a, "val": b, "test": c}
    named = {"test": c, "train": a, "validation": b, "class_names": ["x", "y"]}
    assert splits_in(named, "make") == ({"train": a, "val": b, "test": c}, ["x", "y"])
    assert splits_in(a, "make")[0] == {"train": a} and splits_in(object(), "make") is None and splits_in(None, "make") is None


def test_class_names_are_those_of_the_data_set_also_behind_a_subset():
    data = pairs(6)
    data.classes = ["sky", "sea"]
    assert read((Subset(Subset(data, range(4)), range(3)), data)).class_names == ["sky", "sea"]
    assert read({"train": data, "class_names": ["a", "b"]}).class_names == ["a", "b"]


def test_missing_splits_are_made_by_content_so_that_an_item_keeps_its_split_in_any_order():
    def split_of(order):
        collection = read(Pairs([(Image.fromarray(pixels(number)), number % 2) for number in order])).collection(RULE)
        return {bytes(content): split for split, part in collection.splits.items() for content in part.contents}

    assert split_of(range(40)) == split_of(range(39, -1, -1))


def test_texts_are_read_as_texts():
    data = read((Pairs([("a b", "x"), ("c", "y")]), Pairs([("d", "x")])))
    assert data.texts and data.found["train"].sources == ["a b", "c"] and data.found["test"].load("d") == "d"


def test_the_key_of_features_depends_on_the_content_only_and_workers_can_read():
    first, second = (read(pairs(3, first=number)).found["train"] for number in (0, 7))
    keys = {view_digest(str, examples.load) for examples in (first, second)}
    assert len(keys) == 1 and not np.array_equal(first.contents[0], second.contents[0])
    again: Examples = pickle.loads(pickle.dumps(first))
    assert np.array_equal(np.asarray(again.load(2)), pixels(2))


class Stream(IterableDataset):
    def __iter__(self):
        yield 1


class Noise(Pairs):
    def __getitem__(self, place):
        return Image.fromarray(np.random.randint(0, 256, (9, 9, 3), dtype=np.uint8)), place % 2


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ((pairs(2),) * 4, "make returned 4 data sets: give torch Datasets, as a pair (train, test)"),
        (
            {"train": pairs(2), "other": pairs(2)},
            "make returned a mapping with the keys 'train', 'other': give train, and optionally",
        ),
        ([(Image.fromarray(pixels(0)), 0)] * 40, "make returned a list of 40 samples: give samples by split, such as {'train': samples}"),
        ((("a text", 0), ("another", 1)), "make returned a tuple of 2 samples: "),
        ({"test": pairs(2)}, "a mapping with the keys 'test': give train"),
        ((DataLoader(pairs(2)), pairs(2)), "make gives a DataLoader as train: give its data set (loader.dataset)"),
        ((pairs(2), Stream()), "make gives a Stream as test: give a Dataset with __len__ and __getitem__"),
        ((pairs(2), pairs(0)), "make gives an empty Dataset as test"),
        ({"train": pairs(2), "class_names": "ab"}, "make gives class_names='ab': give a list of texts"),
        ((Pairs([1, 2]), pairs(2)), "item 0 of the train split of make is an int: give a pair (image, label)"),
        (Pairs([(1, 2, 3)]), "item 0 of the train split of make is a tuple of 3 values"),
        (
            Pairs([("text", 0), (Image.fromarray(pixels(0)), 1)]),
            "item 1 of the train split of make is an Image, but item 0 of train is a text",
        ),
        (Pairs([(None, 0)]), "item 0 of the train split of make is None: give a PIL image, or an array or tensor"),
        (Pairs([(torch.zeros(4, 9, 9), 0)]), "is a Tensor of shape (4, 9, 9): give a PIL image"),
        (Pairs([(torch.zeros(3, 9, 9) - 2, 0)]), "with floats from -2 to -2: give floats from 0 to 1, because ftlit normalises"),
        (Pairs([(torch.full((3, 9, 9), torch.nan), 0)]), "with NaN values: give floats from 0 to 1"),
        (Pairs([(np.full((9, 9), 300), 0)]), "with values from 300 to 300: give"),
        (
            pairs(2, label=lambda place: 0.5),
            "the label of item 0 of the train split of make is 0.5: give a class number from 0, a class",
        ),
        (pairs(2, label=lambda place: [0, 3]), "the label of item 0 of the train split of make is [0, 3]: give a class number"),
        (pairs(2, label=lambda place: place or "x"), "make gives labels of several kinds (str, int)"),
        (pairs(2, label=lambda place: place + 1), "make gives labels up to 2 in train, but none is 0: number the classes from 0"),
        (
            {"train": pairs(3, label=abs), "class_names": ["a", "b"]},
            "item 2 of the train split of make has the label 2, which is none of the",
        ),
        (
            (pairs(2), pairs(2, label=lambda place: -1)),
            "item 0 of the test split of make has the label -1, which is none of the 2 classes",
        ),
        (
            (pairs(2, label=str), pairs(1, label=lambda place: "9")),
            "item 0 of the test split of make has the label '9', which is none of the",
        ),
        (
            pairs(2, label=lambda place: [0] * (place + 2)),
            "item 1 of the train split of make has a label vector of length 3, but there are 2 classes",
        ),
        (Noise([0, 1]), "item 0 of the train split of make changes when it is read again: remove random transforms"),
    ],
)
def test_what_does_not_fit_is_one_line_with_what_is_accepted(made, says):
    assert says in error_of(read, made)


def test_an_item_that_cannot_be_read_is_named():
    class Broken(Pairs):
        def __getitem__(self, place):
            raise KeyError("height")

    assert "item 0 of the train split of make cannot be read: correct the code of the data set (KeyError: 'height')" in error_of(
        read, Broken([1])
    )
    examples = read(data := pairs(3)).found["train"]
    data.items[1] = None
    with pytest.raises(BadImage, match="item 1 of the train split of make cannot be read: "):
        examples.load(1)
