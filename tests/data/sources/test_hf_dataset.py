"""Data sets of Hugging Face: the columns are found by their types, and what cannot be read is one line."""

import socket

import numpy as np
import pytest
from PIL import Image

from ftlit.data.input_spec import InputSpec
from ftlit.data.sources.hf_dataset import read_hf
from ftlit.errors import UserError
from ftlit.lit.datamodules.hf_source import hf_data

datasets = pytest.importorskip("datasets")
CLASSES = datasets.ClassLabel(names=["1", "0"])


def pixels(number):
    return np.random.RandomState(number).randint(0, 256, (9, 8, 3)).astype(np.uint8)


def rows(number, first=0, **more):
    """Images, class labels and texts; and more columns."""
    columns = {
        "img": ([Image.fromarray(pixels(first + i)) for i in range(number)], datasets.Image()),
        "y": ([i % 2 for i in range(number)], CLASSES),
        "text": ([f"text {first + i}" for i in range(number)], datasets.Value("string")),
        **more,
    }
    types = datasets.Features({name: feature for name, (_, feature) in columns.items() if feature is not None})
    values = {name: values for name, (values, feature) in columns.items() if feature is not None}
    return datasets.Dataset.from_dict(values, features=types)


@pytest.fixture
def save(tmp_path, capfd):
    def saved(data):
        data.save_to_disk(tmp_path / "saved")
        return tmp_path / "saved"

    return saved


def error_of(*args, **how):
    with pytest.raises(UserError) as caught:
        read_hf(*args, **{"texts": False, **how})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_and_texts_of_the_same_data_have_the_names_of_its_class_labels(save):
    path = save(datasets.DatasetDict({"train": rows(6), "validation": rows(2, 10), "unsupervised": rows(1, 20)}))
    for texts in (False, True):
        data, notes = read_hf(path, texts=texts)
        assert data.class_names == ["1", "0"] and data.texts == texts and notes[1:] == ["splits that are not read: unsupervised"]
        option, column = ("text", "text") if texts else ("image", "img")
        assert notes[0] == f"column {column} is read as {option}, and column y as label"
        assert len(read_hf(path, texts=texts, label_column="y", **{f"{option}_column": column})[1]) == 1
        assert {split: part.labels for split, part in data.found.items()} == {"train": [(0,), (1,)] * 3, "val": [(0,), (1,)]}
    assert data.found["val"].sources == ["text 10", "text 11"]
    images = read_hf(path, texts=False)[0].found["train"]
    assert np.array_equal(np.asarray(images.load(3)), pixels(3))
    assert len({bytes(content) for content in images.contents}) == 6


def cache(folder, name, config="default", **splits):
    """Write a data set as `load_dataset` leaves it in the cache of Hugging Face after a download."""
    owner, _, own = name.partition("/")
    place = folder / f"{owner}___{own}" / config / "0.0.0" / "0123456789abcdef"
    infos = {}
    for split, data in splits.items():
        data.save_to_disk(folder / "by_hand")
        part = next((folder / "by_hand").glob("data-*.arrow"))
        place.mkdir(parents=True, exist_ok=True)
        part.rename(place / f"{own}-{split}.arrow")
        infos[split] = datasets.SplitInfo(split, num_examples=len(data), dataset_name=own)
    features = next(iter(splits.values())).features
    about = datasets.DatasetInfo(features=features, splits=datasets.splits.SplitDict(infos), dataset_name=own, config_name=config)
    about.write_to_directory(place)


def test_a_data_set_of_the_hub_is_read_from_the_local_cache(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    cache(tmp_path, "somebody/tiny", train=rows(6), test=rows(2, 10))
    data, notes = read_hf("somebody/tiny", texts=False)
    assert {split: part.labels for split, part in data.found.items()} == {"train": [(0,), (1,)] * 3, "test": [(0,), (1,)]}
    assert (
        np.array_equal(np.asarray(data.found["test"].load(1)), pixels(11))
        and data.class_names == ["1", "0"]
        and notes == ["column img is read as image, and column y as label"]
    )
    cache(tmp_path, "somebody/tiny", "large", train=rows(8))
    assert len(read_hf("somebody/tiny", config="large", texts=True)[0].found["train"]) == 8
    for config, more in (("small", "'somebody/tiny', 'small'"), (None, "'somebody/tiny'")):  # unknown; one of two is to be named
        assert f"datasets.load_dataset({more})" in error_of("somebody/tiny", config=config)
    assert not datasets.config.HF_HUB_OFFLINE  # as before


def test_splits_are_made_by_content_and_images_are_read_as_any_others(save):
    data = hf_data(InputSpec(size=8), path=save(rows(40)), batch_size=4, num_workers=0)
    assert sum(map(len, data.collection.splits.values())) == 40 and all(map(len, data.collection.splits.values()))
    images, targets = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 8, 8) and targets.shape == (4,) and data.augments


@pytest.mark.parametrize(
    ("values", "feature", "names", "labels", "multilabel"),
    [
        ([5, 3, 5], datasets.Value("int64"), ["3", "5"], [(1,), (0,), (1,)], False),
        (["bee", "ant", "bee"], datasets.Value("string"), ["ant", "bee"], [(1,), (0,), (1,)], False),
        ([[0, 1], [], [1]], datasets.Sequence(CLASSES), ["1", "0"], [(0, 1), (), (1,)], True),
    ],
)
def test_labels_of_every_type(save, values, feature, names, labels, multilabel):
    data, _ = read_hf(save(rows(3, label=(values, feature), y=([], None))), texts=False)
    assert (data.class_names, data.found["train"].labels, data.multilabel) == (names, labels, multilabel)


def test_what_cannot_be_read_is_one_line(save, tmp_path):
    assert "is neither a folder nor a data set in the cache of Hugging Face: download" in error_of("nobody/nothing", config="small")
    assert "datasets.load_dataset('nobody/nothing', 'small')" in error_of("nobody/nothing", config="small")
    assert "no folder 'saved'" in error_of(str(tmp_path / "saved"))
    assert f"not a folder that save_to_disk of Hugging Face wrote: give such a folder, or data=folder data.root={tmp_path}" in error_of(
        tmp_path
    )
    path = save(datasets.DatasetDict({"test": rows(2), "other": rows(2)}))
    assert "has the splits test, other, but no train: rename" in error_of(path)


@pytest.mark.parametrize(
    ("more", "how", "says"),
    [
        ({}, {"image_column": "imag"}, "no column 'imag': did you mean 'img'?"),
        ({}, {"image_column": "y"}, "data.image_column=y has ClassLabel values, not images: give data.image_column=img"),
        ({}, {"label_column": "z"}, "no column 'z': "),
        ({"img": ([], None)}, {}, "the data set has texts, but the backbone takes images: give another backbone or data set (the"),
        ({"text": ([], None)}, {"texts": True}, "the data set has images, but the backbone takes texts"),
        ({"a": (["x"] * 2, datasets.Value("string")), "text": ([], None), "b": (["x"] * 2, datasets.Value("string"))}, {"texts": True},
         "the data set has several columns of texts (a, b): give data.text_column=..."),
        ({"z": ([0, 1], CLASSES)}, {}, "the data set has several columns of class labels (y, z): give data.label_column=..., one of y ("),
        ({"y": ([0, -1], CLASSES)}, {}, "row 1 of train has no label in column 'y': remove such rows"),
        ({"y": ([0.5, 1.0], datasets.Value("float64"))}, {"label_column": "y"}, "data.label_column=y has float64 values: give a column"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_are_one_line(save, more, how, says):
    assert says in error_of(save(rows(2, **more)), **how)
