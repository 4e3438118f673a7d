"""Every option of every data source changes the images, labels, splits or batches, or is refused. The options are those in conf/data."""

import shutil
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from paths import CONF
from PIL import Image
from text_inputs import save_tokenizer, write_csv

from ftlit.data.dataset import SPLITS
from ftlit.data.input_spec import InputSpec
from ftlit.data.splitting.duplicates import content_hashes
from ftlit.data.splitting.stored_split import write_split
from ftlit.data.tokens import TextSpec
from ftlit.recipes.config.error_messages import as_user_error
from ftlit.recipes.config.hydra_internals import instantiate

SOURCES = {path.stem: OmegaConf.load(path) for path in sorted((CONF / "data").glob("*.yaml"))}
FIXED = {"batches": 2, "batch_size": 4, "num_workers": 0, "augment": "none"}  # where a source has them: quick, and without random numbers
NEEDED = {  # values of each source
    "csv": {"csv": "few.csv"},
    "folder": {"root": "photos"},
    "hf": {"path": "hf", "image_column": "image"},
    "text_csv": {"csv": "texts.csv"},
    "torchvision": {"name": "FakeData", "options": {"size": 40, "image_size": [3, 8, 8], "num_classes": 2}},
    "unlabelled": {"root": "photos"},
}
# option -> another value; or values that it needs, and it with another value
OTHERS = {
    "augment": "photo",
    "batches": 3,
    "config": "small",
    "image_column": "other",
    "path": "hf2",
    "batch_size": 3,
    "csv": "more.csv",
    "download": True,
    "encoding": "utf-16",
    "group_column": "group",
    "group_pattern": r"(\d)\.png",
    "label_column": "day",
    "label_separator": "|",
    "layout": ({"root": "days", "layout": "class"}, {"layout": "class/group"}),
    "mix": "mixup",
    "name": "NoSuchData",
    "num_workers": 1,
    "on_bad_image": ({"root": "damaged"}, {"on_bad_image": "skip"}),
    "options": {"size": 50, "image_size": [3, 8, 8], "num_classes": 2},
    "path_column": "other",
    "per_class": 3,
    "views": 3,
    "root": "days",
    "seed": 1,
    "separator": "|",
    "split_column": "part",
    "split_seed": 1,
    "test_csv": "more.csv",
    "test_fraction": 0.4,
    "text_column": "other",
    "val_csv": "more.csv",
    "val_fraction": 0.4,
}
OF_A_SOURCE = {
    ("csv", "on_bad_image"): ({"csv": "damaged.csv"}, {"on_bad_image": "skip"}),
    ("csv", "root"): "csv",
    ("torchvision", "root"): ({"name": "RenderedSST2", "options": {}, "root": "sst2"}, {"root": "photos"}),
}


def image(path: Path, *values: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(values).randint(0, 255, (9, 9, 3)).astype(np.uint8)).save(path)
    return str(path)


def save_hf(root: Path, names: list[str]) -> None:
    """Two data sets of Hugging Face with two columns of images and two of labels."""
    import datasets

    labels = datasets.ClassLabel(names=["fox", "hare"])
    kinds = {"image": datasets.Image(), "other": datasets.Image(), "label": labels, "day": labels}
    for folder, number in (("hf", 28), ("hf2", 27)):
        images = {"image": [str(root / "photos" / name) for name in names], "other": [str(root / "days" / name) for name in names]}
        columns = {**images, "label": [name[:3] != "fox" for name in names], "day": [i % 2 for i in range(28)]}
        rows = {name: values[:number] for name, values in columns.items()}
        datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).save_to_disk(root / folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images in class folders, by day, one of them damaged, and of a data set of torchvision; csv files."""
    root = tmp_path_factory.mktemp("data")
    names = [f"{label}/{i}.png" for label in ("fox", "hare") for i in range(14)]
    for number, name in enumerate(names):
        image(root / "photos" / name, number)
        image(root / "days" / name.replace("/", f"/{number % 7}/"), number)
        image(root / "days" / name, number, 1)
        image(root / "csv" / "photos" / name, number, 2)
    shutil.copytree(root / "photos", root / "damaged")
    (root / "damaged" / "fox" / "0.png").write_bytes(b"no image")
    for split in ("train", "valid", "test"):
        for number, label in enumerate(("negative", "positive")):
            image(root / "sst2" / "rendered-sst2" / split / label / "0.png", number, len(split))
    if find_spec("datasets"):
        save_hf(root, names)
    header = ("path", "other", "label", "day", "part", "group", "text")
    rows = [
        (f"photos/{name}", f"days/{name}", f"{name[:3]}|x", "mon" if i % 4 else "tue", SPLITS[max(0, i % 4 - 1)], i // 3, f"a {i}")
        for i, name in enumerate(names)
    ]
    for name, some in (("few", rows[2:-2]), ("more", rows), ("texts", rows[2:-2])):
        write_csv(root / f"{name}.csv", some, header)
    write_csv(root / "damaged.csv", [(row[0].replace("photos", "damaged"), *row[1:]) for row in rows], header)
    return root


@pytest.fixture(scope="module")
def text_spec(tmp_path_factory):
    return TextSpec(str(save_tokenizer(tmp_path_factory.mktemp("tokenizer"))), 0, 8)


def load(source, spec, values):
    node = OmegaConf.create({"seed": 0, "data": OmegaConf.merge(SOURCES[source], values)})
    return instantiate(node.data, input_spec=spec)


def given(source, spec, values):
    """What a data module gives: classes, images by split, order and batches; or the error. Notes, which name the options, do not count."""
    try:
        data = load(source, spec, values)
    except Exception as error:  # Hydra 1.3 wraps what a data source raises, 1.4 does not
        refused = as_user_error(error)
        if refused is None:
            raise
        return str(refused)
    loaders = [data.train_dataloader(), data.val_dataloader()]
    batches = [[part.tolist() for part in batch] for loader in loaders for batch in islice(loader, 2)]
    splits = data.collection.splits if hasattr(data, "collection") else {}
    images = [(split, list(map(str, part.sources)), part.labels) for split, part in splits.items()]
    return data.class_names, images, batches, [(len(loader), loader.num_workers) for loader in loaders], getattr(data, "views", 0)


def store_split(data, folder):
    """Store the split of other data as a run does, in a new folder."""
    folder.mkdir()
    write_split(folder, data.collection, {split: content_hashes(part) for split, part in data.collection.splits.items()})
    return str(folder)


GIVEN: dict[str, Any] = {}  # what a source gives with values that several tests compare with; it depends on them only


def given_once(source, spec, values):
    """`given`, once for each source and values."""
    key = f"{source} {values}"
    if key not in GIVEN:
        GIVEN[key] = given(source, spec, values)
    return GIVEN[key]


def options(source):
    return [str(name) for name in SOURCES[source] if not str(name).startswith("_")]


@pytest.mark.parametrize(("source", "name"), [(source, name) for source in SOURCES for name in options(source)])
def test_an_option_changes_what_the_data_give_or_is_refused(source, name, folder, tmp_path, monkeypatch, request):
    monkeypatch.chdir(folder)
    if source == "text_csv":
        pytest.importorskip("transformers")
    if source == "hf":
        pytest.importorskip("datasets")
    spec = request.getfixturevalue("text_spec") if source == "text_csv" else InputSpec(size=8)
    before = {**{key: value for key, value in FIXED.items() if key in options(source)}, **NEEDED.get(source, {})}
    if name == "split_from":
        case = store_split(load(source, spec, {**before, "split_seed": 5}), tmp_path / "run")
    else:
        case = OF_A_SOURCE.get((source, name)) or OTHERS[name]
    needed, changed = case if isinstance(case, tuple) else ({}, {name: case})
    first, second = given_once(source, spec, {**before, **needed}), given(source, spec, {**before, **needed, **changed})
    assert first != second
    assert name == "on_bad_image" or not isinstance(first, str), first


def test_the_cases_are_those_of_options_that_there_are():
    every = {(source, name) for source in SOURCES for name in options(source)}
    assert OTHERS.keys() <= {name for _, name in every} and OF_A_SOURCE.keys() <= every
