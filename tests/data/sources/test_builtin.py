"""Invariants of the built-in data sets."""

import json
import struct
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import datasets

from ftlit.data.dataset import Collection
from ftlit.data.sources.builtin import DATASETS, NO_FLIP, _digit_arrays, digits, torchvision_dataset
from ftlit.data.sources.torchvision_labels import class_names, labels_of
from ftlit.data.splitting.splits import SplitRule
from ftlit.errors import UserError

FRACTIONS = {"val": 0.2, "test": 0.2}


def load(name: str, root: Path, **options) -> Collection:
    return torchvision_dataset(name, SplitRule(FRACTIONS), root=root, download=False, options=options)


def image(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(path)


def test_digits_are_those_of_scikit_learn():
    values, labels = _digit_arrays()
    bunch = load_digits()
    assert np.array_equal(values, bunch.images) and np.array_equal(labels, bunch.target)


def test_digits_has_all_images():
    data = digits(SplitRule(FRACTIONS))
    assert sum(len(split) for split in data.splits.values()) == 1797 and len(data.class_names) == 10
    grey = data.splits["train"]
    assert max(np.asarray(grey.load(source)).max() for source in grey.sources[:9]) == 255


@pytest.mark.parametrize("name", DATASETS)
def test_the_options_of_every_split_bind_to_its_class(name):
    for options in DATASETS[name].values():
        takes = signature(getattr(datasets, name)).parameters
        assert "kwargs" in takes or set(options) <= set(takes)


def test_every_name_in_no_flip_is_a_data_set():
    assert set(DATASETS) >= NO_FLIP


def test_a_data_set_with_a_train_flag_has_val_split_off_train(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, n in (("train", 100), ("t10k", 20)):
        pixels = np.random.default_rng(n).integers(0, 255, (n, 28, 28), dtype=np.uint8)
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + pixels.tobytes())
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + bytes(i % 10 for i in range(n)))
    data = load("MNIST", tmp_path)
    sizes = {split: len(examples) for split, examples in data.splits.items()}
    assert sizes["train"] + sizes["val"] == 100 and sizes["test"] == 20 and 10 <= sizes["val"] <= 30
    assert data.class_names[3] == "3 - three"
    assert data.notes[0].startswith("val taken from train by a hash of each example (split_seed=0)")
    first = data.splits["val"]
    assert first.load(first.sources[0]).mode == "RGB"


def test_three_published_splits_are_kept_and_duplicates_are_found_by_file(tmp_path):
    for i, split in enumerate(("train", "valid", "test"), start=1):
        for k, country in enumerate(("AD", "BE")):
            image(tmp_path / "country211" / split / country / "x.png", grey=i * 10 + k)
    image(tmp_path / "country211" / "test" / "AD" / "y.png", grey=5)
    image(tmp_path / "country211" / "train" / "AD" / "y.png", grey=5)
    data = load("Country211", tmp_path)
    assert data.counts == {"train": {"AD": 2, "BE": 1}, "val": {"AD": 1, "BE": 1}, "test": {"AD": 2, "BE": 1}}
    (note,) = data.notes
    assert note.startswith("exact duplicates are in several splits (1)") and "train/AD/y.png" in note


def test_labels_are_read_without_decoding(tmp_path, monkeypatch):
    home = tmp_path / "food-101"
    (home / "meta").mkdir(parents=True)
    for split in ("train", "test"):
        names = {food: [f"{food}/{split}{i}" for i in range(10)] for food in ("cake", "soup")}
        (home / "meta" / f"{split}.json").write_text(json.dumps(names))
        for food in names.values():
            for i, name in enumerate(food):
                image(home / "images" / f"{name}.jpg", grey=i * 12 + len(name))
    for name in ("classes.txt", "labels.txt"):
        (home / "meta" / name).write_text("")
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("decoded"))
    counts = load("Food101", tmp_path).counts
    assert counts["test"] == {"cake": 10, "soup": 10} and min(counts["val"].values()) > 0


def test_a_data_set_without_splits_or_attributes_is_split_by_seed():
    data = load("FakeData", Path(), size=60, image_size=(3, 8, 8), num_classes=3)
    assert sum(len(split) for split in data.splits.values()) == 60 and data.class_names == ["0", "1", "2"]
    for examples in data.splits.values():
        assert all(examples.load.args[0][i][1] == label for i, (label,) in zip(examples.sources, examples.labels, strict=True))


def test_labels_are_those_that_the_data_set_gives_with_its_options():
    how = {"size": 60, "image_size": (3, 8, 8), "num_classes": 4}
    data = load("FakeData", Path(), **how, target_transform=is_odd)
    assert data.class_names == ["0", "1"]
    for examples in data.splits.values():
        assert all(examples.load.args[0][i][1] == label for i, (label,) in zip(examples.sources, examples.labels, strict=True))


def is_odd(number: int) -> int:
    return number % 2


def test_targets_that_are_not_the_labels_of_the_attribute_are_refused():
    class Halved:
        targets = (0, 1, 2, 3)

        def __len__(self):
            return 4

        def __getitem__(self, place):
            return None, self.targets[place] // 2

    assert labels_of(Halved(), {}) == [(0,), (1,), (2,), (3,)]
    with pytest.raises(
        UserError, match=r"data.options.coarse changes the labels of the items of Halved, .*: leave out data.options.coarse$"
    ):
        labels_of(Halved(), {"coarse": True})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CIFAR1O", {}, "did you mean 'CIFAR10'"),
        ("ImageFolder", {}, "torchvision has no data set 'ImageFolder'"),
        ("CIFAR10", {}, "CIFAR10 is not in the folder .*: give data.download=true"),
        ("ImageNet", {}, "ImageNet cannot be loaded: The archive"),
        ("FakeData", {"sise": 3}, "does not accept these arguments: give only size, image_size"),
        ("FakeData", {"target_transform": Tensor.float}, "a float as the target of image 0, not a class number"),
        ("CIFAR10", {"train": False}, "data.options.train chooses a split of CIFAR10"),
        ("QMNIST", {"what": "nist"}, "data.options.what chooses a split of QMNIST"),
        ("EMNIST", {}, "EMNIST needs the argument 'split': give .data.options.split=...$"),
    ],
)
def test_user_errors_are_one_line(tmp_path, name, options, message):
    with pytest.raises(UserError, match=message) as caught:
        load(name, tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_options_that_are_options_of_ftlit_are_refused():
    with pytest.raises(UserError, match=r"data.options.root has no effect: use data.root"):
        torchvision_dataset("FakeData", SplitRule(FRACTIONS), root="", download=False, options={"root": "x"})


def test_equal_names_of_classes_are_numbered():
    """ImageNet has two classes `crane`, the bird and the machine."""
    dataset = type("Data", (), {"classes": ["crane", ("drake", "duck"), "crane"]})()
    assert class_names(dataset, 3, relabelled=False) == ["crane", "drake, duck", "crane (2)"]
    dataset.classes = ["crane", "crane", "crane (2)", "crane"]
    assert class_names(dataset, 4, relabelled=False) == ["crane", "crane (2)", "crane (2) (2)", "crane (3)"]
