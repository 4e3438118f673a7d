"""Parts of the user's own from the command line: each mistake is one line before weights are loaded, and each contract runs."""

import lightning.pytorch as pl
import numpy as np
import pytest
from hydra import compose
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from ftlit import Backbone, ImageData, InputSpec, Schedule, Stage
from ftlit.data.sources.builtin import digits
from ftlit.data.splitting.splits import SplitRule
from ftlit.recipes.advise import resolve_auto
from ftlit.recipes.build_run import build
from ftlit.recipes.checks.validate import bind
from ftlit.recipes.config.error_messages import as_user_error
from ftlit.recipes.config.hydra_internals import fresh_hydra, use_hydra_config
from ftlit.recipes.run import data as run_data

MINE = __name__
LARGE = "scenario=large_similar"
READ: list[int] = []  # places of items that were read


class Colours(Dataset):
    def __init__(self, first, number):
        self.first, self.number = first, number

    def __len__(self):
        return self.number

    def __getitem__(self, place):
        READ.append(place)
        array = np.random.RandomState(self.first + place).randint(0, 60, (32, 32, 3)).astype(np.uint8)
        array[..., place % 2] += 120
        return Image.fromarray(array), place % 2


def pair(number: int = 30):
    return Colours(0, number), Colours(1000, 10)


def draw_images(folder, number):
    """Image files in two classes."""
    images = Colours(0, number)
    for place in range(number):
        image, label = images[place]
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        image.save(folder / str(label) / f"{place}.png")
    return folder


def sized(number, *, root):
    return pair(number)


def with_defaults(*, batch_size=7, augment=None, seed=5, val_fraction):
    return READ


def with_spec(input_spec):
    return {"train": Colours(0, 30), "test": Colours(50, 10), "class_names": ["sky", "sea"]}


def texts():
    return [("a", 0), ("b", 1)] * 5, [("c", 0)]


def nothing():
    return None


def broken():
    return {}["height"]


def images(input_spec):
    return ImageData(digits(SplitRule({"val": 0.2, "test": 0.2})), input_spec, per_class=5)


class Module(pl.LightningDataModule):
    num_classes, class_names = 2, ["a", "b"]


class NoTest(Module):
    multilabel, batch_size = False, 2
    counts = {"train": {"a": 1, "b": 1}, "val": {"a": 1, "b": 1}}  # noqa: RUF012

    def train_dataloader(self):
        return []

    def val_dataloader(self):
        return []


def no_backbone():
    return nn.Linear(2, 2)


def backbone(width: int = 4):
    return Backbone({"stem": nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.ReLU())}, InputSpec(size=32))


def cut_at(cut=1):
    return backbone()


def no_schedule(layers):
    return [layers]


def schedule(layers):
    return Schedule([Stage(["head"])], [("*", 1.0)])


def no_head(in_features, num_classes):
    return in_features


def wide_head(in_features, num_classes):
    return nn.Linear(in_features, num_classes + 1)


def head_of_another_size(in_features, num_classes):
    return nn.Linear(7, num_classes)


def head_of_one(size):
    return nn.Linear(size, size)


def failing_head(in_features, num_classes):
    raise RuntimeError("no memory of this\nshape")


@pytest.fixture(autouse=True)
def hydra():
    """Initialize Hydra as the command line does, for one test."""
    with fresh_hydra():
        yield


def built(*overrides):
    cfg = compose(
        "train", ["paths.run=somewhere", "trainer=cpu", "report=false", "paths.cache=null", LARGE, *overrides], return_hydra_config=True
    )
    with use_hydra_config(cfg):
        return build(cfg, compares=False)


def refused(call, *overrides):
    """The line that the user reads."""
    with pytest.raises(Exception) as caught:
        call(*overrides)
    error = as_user_error(caught.value)
    assert error is not None and "\n" not in str(error)
    return str(error)


def bound(*overrides):
    cfg = compose("train", ["paths.run=somewhere", LARGE, *overrides], return_hydra_config=True)
    with use_hydra_config(cfg):
        bind(cfg)
    return cfg


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data._target_=MINE.sized", "data._target_=MINE.sized needs a value for number and root: give +data.number=... +data.root=..."),
        ("data._target_=MINE.READ", "data._target_=MINE.READ is a list: give the import path of a class or function"),
        ("data._target_=MINE.pair +data.number=a", "data.number='a': give a whole number"),
        ("data._target_=MINE.pair data.batch_size=0", "data.batch_size=0: give a whole number from 1"),
        ("data._target_=MINE.pair data.num_workers=x", "data.num_workers='x': give a whole number or null"),
        (
            "schedule._target_=MINE.nothing",
            "MINE.nothing has no argument 'layers', which ftlit passes (it has no argument): give a function or class with this argument",
        ),
        (
            "head._target_=MINE.head_of_one",
            "has no argument 'in_features' and no argument 'num_classes', which ftlit passes (it has size): give a",
        ),
    ],
)
def test_a_part_that_cannot_be_called_is_one_line_before_anything_is_built(override, message):
    assert message.replace("MINE", MINE) in refused(bound, *override.replace("MINE", MINE).split())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data._target_=MINE.nothing",
            "data._target_=MINE.nothing returned None: return torch Datasets, as a pair (train, test)",
        ),
        ("data._target_=MINE.broken", "data._target_=MINE.broken failed: KeyError: 'height' ("),
        ("data._target_=MINE.texts", "nothing is left for val"),
        ("data._target_=MINE.with_spec backbone.in_chans=4", "but data._target_=MINE.with_spec has pictures of 1 or 3"),
        ("data._target_=MINE.images data.batch_size=3", "data.batch_size has no effect, because data._target_=MINE.images returned an Ima"),
        (
            "data._target_=MINE.Module",
            "a LightningDataModule without counts, multilabel, batch_size: set these attributes in its",
        ),
        (
            "data._target_=MINE.NoTest",
            "a LightningDataModule that lacks counts['test'], test_dataloader: add them; ftlit chooses the epoch on val",
        ),
        ("data._target_=MINE.pair data.augment=photos", "did you mean 'photo'"),
        (
            "backbone._target_=MINE.no_backbone",
            "returned a Linear: let it return a backbone, such as ftlit.backbone_from(network) (docs/",
        ),
        (
            "schedule._target_=MINE.no_schedule",
            "returned a list: let it return a schedule, such as Schedule([Stage(['head'])], [('*', 1.0)]) (docs/ext",
        ),
        (
            "head._target_=MINE.no_head",
            "returned an int: let it return a head, such as a torch.nn.Module that maps (N, in_features) to (N, num_classes)",
        ),
        ("head._target_=MINE.wide_head", "head torch.nn.modules.linear.Linear returns (N, 11), but there are 10 classes"),
        (
            "head._target_=MINE.head_of_another_size",
            "Linear does not accept the features (N, 128) of 'layer4' (addmm",
        ),
        ("head._target_=MINE.failing_head", "failed: RuntimeError: no memory of this shape ("),
        ("loss._target_=torch.nn.MSELoss", "give a function or class with this argument (docs/extending.md#loss)"),
    ],
)
def test_a_part_that_returns_or_raises_something_else_is_one_line(override, message):
    assert message.replace("MINE", MINE) in refused(built, *override.replace("MINE", MINE).split())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import no_such_package", "cannot be imported: No module named 'no_such_package' ("),
        ("x = undefined", "cannot be imported: NameError: name 'undefined' is not defined ("),
        ("def f(:", "cannot be imported: SyntaxError: "),
        ("def make(): pass", "did you mean 'make'?"),
    ],
)
def test_an_error_of_the_users_module_is_one_line_with_its_place(content, message, monkeypatch, tmp_path):
    (tmp_path / "own_module.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_module", raising=False)
    text = refused(bound, "data._target_=own_module.mak")
    assert text.startswith("data._target_=own_module.mak cannot be imported") and message in text
    assert "own_module.py, line 1" in text or "did you mean" in text


def test_data_of_the_users_own_are_checked_before_the_backbone_is_built():
    assert refused(built, f"data._target_={MINE}.nothing", f"backbone._target_={MINE}.broken").startswith("data._target_=")
    assert refused(built, f"data._target_={MINE}.pair", f"backbone._target_={MINE}.broken").startswith("backbone._target_=")


def test_a_pair_of_datasets_gets_the_options_of_splits_and_loading():
    run = built(f"data._target_={MINE}.pair", "+data.number=40", "data.batch_size=5", "data.per_class=4", "data.val_fraction=0.3")
    data = run.data.images if hasattr(run.data, "images") else run.data
    assert data.batch_size == 5 and data.counts["train"] == {"0": 4, "1": 4} and data.class_names == ["0", "1"]
    assert 5 <= len(data.collection.splits["val"]) <= 20 and len(data.collection.splits["test"]) == 10
    assert sum(len(part) for part in data.all_images.splits.values()) == 50


def test_datasets_are_read_once_for_all_builds_with_the_same_arguments():
    with run_data.data_read_once():
        for numbers, reads in (((30, 30), 30 + 10 + 5), ((20,), 20 + 10 + 5)):
            READ.clear()
            for number in numbers:
                cfg = bound(f"data._target_={MINE}.pair", f"+data.number={number}")
                run_data.read_data_early(cfg)
                run_data.build_data(cfg, InputSpec(size=32), seed=number)
            assert len(READ) == reads


def test_the_next_run_reads_data_again(tmp_path):
    """In a notebook the files may be others by then."""

    def counts(cfg):
        return sum(run_data.build_data(cfg, InputSpec(size=32)).counts["train"].values())

    photos = draw_images(tmp_path / "photos", 20)
    own, folder = (
        bound(f"data._target_={MINE}.pair", "+data.number=30"),
        bound("data=folder", f"data.root={photos}", "data.test_fraction=0.2"),
    )
    with run_data.data_read_once():
        first, _ = counts(folder), counts(own)
        draw_images(photos, 60)
        read = len(READ)
        assert counts(folder) == first and counts(own) and len(READ) == read
    with run_data.data_read_once():
        assert counts(folder) > first and counts(own) and len(READ) > read


def test_notes_on_data_that_are_built_twice_are_not_added_up():
    cfg = bound("data=digits")
    with run_data.data_read_once():
        first = run_data.build_data(cfg, InputSpec(size=32))
        first.notes.append("of the first recipe")
        second = run_data.build_data(cfg, InputSpec(size=32))
    assert "of the first recipe" not in second.notes and second.collection is first.collection


def test_settings_of_the_chosen_option_that_a_part_does_not_name_are_left_out():
    words = [f"backbone._target_={MINE}.backbone", f"schedule._target_={MINE}.schedule", f"data._target_={MINE}.with_spec"]
    cfg = bound(*words)
    assert list(cfg.backbone) == ["_target_"] and list(cfg.schedule) == ["_target_"] and "val_fraction" in cfg.data
    assert "does not accept 'cut'" in refused(bound, *words, "backbone.cut=stem")


def test_an_argument_that_nobody_gives_keeps_the_default_of_the_part():
    own = f"data._target_={MINE}.with_defaults"
    data = bound(own, "seed=3").data
    assert (data.batch_size, data.augment, data.seed, data.val_fraction) == (7, "none", 3, 0.2)
    assert bound(own, "data.batch_size=32").data.batch_size == 32
    assert bound(f"backbone._target_={MINE}.cut_at", "scenario=small_different").backbone.cut == -2  # of the scenario


def test_all_parts_of_the_users_own_make_a_run():
    run = built(f"backbone._target_={MINE}.backbone", f"schedule._target_={MINE}.schedule", "+backbone.width=6")
    assert run.model.backbone.num_features == 6 and [stage.train for stage in run.schedule.stages] == [("head",)]


def test_a_head_that_does_not_fit_is_an_error_before_scenario_auto_measures(monkeypatch):
    monkeypatch.setattr("ftlit.recipes.advise.advise_on", lambda cfg, parts: pytest.fail("features were measured"))

    def resolved(*overrides):
        cfg = compose("train", ["paths.run=somewhere", "trainer=cpu", *overrides], return_hydra_config=True)
        with use_hydra_config(cfg):
            resolve_auto(cfg)

    assert "returned an int: let it return a head, such as" in refused(resolved, f"head._target_={MINE}.no_head")
    assert "returned a list: let it return a schedule, such as" in refused(resolved, f"schedule._target_={MINE}.no_schedule")
