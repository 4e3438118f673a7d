"""A user's subclass of ImageData works wherever images are read one by one; other data are a one-line error."""

import os
import sys
from functools import cache, partial
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import warm
from paths import ROOT, python_path
from PIL import Image
from torch import nn

from ftlit import Backbone, FeatureData, FineTuner, FitProbeHead, ImageData, InputSpec, Schedule, Stage, StagedFinetuning, UserError
from ftlit.data.dataset import Collection, Examples
from ftlit.data.splitting.splits import draw_share
from ftlit.finetuning.hints import ON_COMMAND_LINE
from ftlit.lit.callbacks.probe_head import check_probe_head
from ftlit.lit.datamodules import image_data
from ftlit.lit.datamodules.glyph_source import GlyphData
from ftlit.lit.datamodules.image_data import AUTO_VIEWS, BATCH_METHODS
from ftlit.lit.datamodules.indexed_images import IndexedImages, number_of_views, require_indexed_images
from ftlit.models.heads import LinearHead
from ftlit.probes.layer_probes import LayerProbes

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
SPEC = InputSpec(size=8)


class UserImages(ImageData):
    """A user's subclass with an override that changes no batch."""

    def setup(self, stage: str) -> None:
        self.stages = [*getattr(self, "stages", []), stage]


class OtherData(pl.LightningDataModule):
    """Data with classes, but without images that can be read one by one."""

    num_classes, class_names, multilabel, batch_size = 3, list("abc"), False, 8


@cache
def picture(i: int) -> Image.Image:
    return Image.linear_gradient("L").rotate(i * 11).resize((8, 8)).convert("RGB")


def data(data_class: type[ImageData]) -> ImageData:
    splits = {split: Examples(range(n), [(i % 3,) for i in range(n)], picture) for split, n in (("train", 18), ("val", 6), ("test", 6))}
    return data_class(Collection(splits, list("abc")), SPEC, batch_size=6, num_workers=0, augment="none")


def fitted_weights(source: pl.LightningDataModule) -> list[torch.Tensor]:
    """Return the weights after a linear probe and two epochs of the head and the layer below."""
    torch.manual_seed(0)
    backbone = Backbone({"low": nn.Conv2d(3, 4, 3), "top": nn.Sequential(nn.Conv2d(4, 5, 3), nn.Tanh())}, SPEC)
    module = FineTuner(backbone, LinearHead(5, 3), num_classes=3, optimizer=partial(torch.optim.SGD, lr=0.1))
    callbacks = [StagedFinetuning(Schedule([Stage(["head", "backbone.top"])])), FitProbeHead(probing=LayerProbes(l2=[0.1]))]
    pl.Trainer(max_epochs=2, callbacks=callbacks, **QUIET).fit(module, source)
    return [weight.detach() for weight in module.parameters()]


def test_only_image_data_and_its_subclasses_have_the_interface(tmp_path):
    for data_class in (ImageData, UserImages):
        assert isinstance(data(data_class), IndexedImages) and require_indexed_images(data(data_class), "this") is not None
    for other in (OtherData(), GlyphData(SPEC), FeatureData(data(ImageData), tmp_path), None):
        assert not isinstance(other, IndexedImages)


def test_data_of_a_user_need_no_method_for_views():
    methods = ("with_few", "with_share", "train_dataloader", "val_dataloader")
    own = ("collection", "input_spec", "transforms", "class_names", "num_classes", "multilabel", "batch_size", "seed", "per_class")
    images = data(ImageData)
    other = SimpleNamespace(**{name: getattr(images, name) for name in (*own, *methods, "num_workers", "batch_overrides", "counts")})
    assert require_indexed_images(other, "this") is other and number_of_views(other, ["train"]) == 0


def test_views_are_read_of_images_that_a_subclass_augments_after_construction():
    images = data(ImageData)
    assert not images.augments and number_of_views(images, ["train"]) == 0
    images.transforms["train"] = SPEC.views("photo")[0]
    assert images.augments and number_of_views(images, ["train"]) == AUTO_VIEWS


def test_a_share_is_drawn_once_and_again_from_other_images(monkeypatch):
    images, draws = data(ImageData), []
    monkeypatch.setattr(image_data, "draw_share", lambda examples, *options: draws.append(len(examples)) or draw_share(examples, *options))
    once, twice = images.with_share(0.5), images.with_share(0.5)
    assert list(once.collection.splits["train"].sources) == list(twice.collection.splits["train"].sources) and len(draws) == 1
    fewer = images.with_few(3)
    assert len(fewer.with_share(0.5).collection.splits["train"]) < len(fewer.collection.splits["train"]) and len(draws) == 2
    images.with_share(0.25)
    assert len(draws) == 3


def test_limiting_the_images_of_a_subclass_keeps_its_class():
    assert type(data(UserImages).with_few(2)) is type(data(UserImages).with_share(0.5)) is UserImages


@pytest.mark.parametrize("stored", [True, False])
def test_a_subclass_trains_the_same_weights_from_features_and_from_images(tmp_path, stored):
    sources = [FeatureData(data(of), tmp_path / of.__name__) if stored else data(of) for of in (ImageData, UserImages)]
    for weight, expected in zip(*map(fitted_weights, sources), strict=True):
        assert torch.equal(weight, expected)


def test_data_without_indexed_images_are_a_one_line_error(tmp_path):
    with pytest.raises(
        UserError, match=r"^recipe=probe needs to read single images, but OtherData does not support this: use one of the data=... options"
    ):
        require_indexed_images(OtherData(), "recipe=probe")
    for other, name in ((OtherData(), "OtherData"), (FeatureData(OtherData(), tmp_path, cut="backbone"), r"FeatureData\(OtherData\)")):
        with pytest.raises(
            UserError, match=rf"^a linear probe can be fitted only on ImageData, not on {name}: leave FitProbeHead out .*as_head"
        ):
            check_probe_head(pl.Trainer(**QUIET), other)
        with pytest.raises(UserError, match=rf"not on {name}: give head=linear, which is trained in gradient steps$"):
            check_probe_head(pl.Trainer(**QUIET), other, ON_COMMAND_LINE)
    with pytest.raises(UserError, match=r"only on ImageData, not on a plain DataLoader: .*as_head"):
        check_probe_head(pl.Trainer(**QUIET), None)


@pytest.mark.parametrize("method", BATCH_METHODS)
def test_features_do_not_replace_batches_that_a_subclass_overrides(tmp_path, method):
    changed = data(type("UserBatches", (UserImages,), {method: lambda self, *arguments: getattr(ImageData, method)(self, *arguments)}))
    overrides = f"UserBatches, because .* overrides {method}: "
    with pytest.raises(UserError, match=rf"^FeatureData cannot be used with {overrides}train without FeatureData, or remove"):
        FeatureData(changed, tmp_path)
    with pytest.raises(
        UserError, match=rf"^a linear probe cannot be fitted on the batches of {overrides}leave FitProbeHead out of the callbacks, or fit"
    ):
        check_probe_head(pl.Trainer(**QUIET), changed)
    with pytest.raises(
        UserError,
        match=rf"^recipe=probe reads the images one by one, so .* UserBatches, which overrides {method}: remove {method} from UserBatches$",
    ):
        require_indexed_images(changed, "recipe=probe")
    assert data(UserImages).batch_overrides == []


USERS = """
from ftlit import ImageData
from ftlit.data.sources.builtin import digits
from ftlit.data.splitting.splits import SplitRule
from lightning.pytorch import LightningDataModule

class UserImages(ImageData):
    def setup(self, stage):
        print("setup of a user's subclass", stage, flush=True)

def images(input_spec, val_fraction, test_fraction, split_seed, split_from, **options):
    return UserImages(digits(SplitRule({"val": val_fraction, "test": test_fraction}, split_seed)), input_spec, **options)

class Augmented(UserImages):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.training:
            print("images of a batch", tuple(batch[0].shape), flush=True)
        return batch

def augmented(input_spec, val_fraction, test_fraction, split_seed, split_from, **options):
    return Augmented(digits(SplitRule({"val": val_fraction, "test": test_fraction}, split_seed)), input_spec, **options)

class OtherData(LightningDataModule):
    num_classes, class_names = 2, ["a", "b"]
    def __init__(self, input_spec, **options):
        super().__init__()
"""
MLP = ("backbone=mlp", "backbone.hidden=[12]", "backbone.input_spec.size=8")
SMALL = ("trainer=cpu", "data.per_class=4", "report=false")
RECIPES = {
    "probe": (("recipe=probe", "probe.l2=[0.1]"), "test accuracy"),
    "pretrain": (("recipe=pretrain", "pretrain=autoencoder", "pretrain.epochs=1"), "wrote"),
    "finetune": (("schedule=head_only", "head=linear", "trainer.max_epochs=1"), "setup of a user's subclass"),
}


def run(folder, *arguments):
    (folder / "users.py").write_text(USERS)
    command = [sys.executable, ROOT / "train.py", *SMALL, *arguments]
    return warm.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": python_path(folder)}, timeout=300)


@pytest.mark.e2e
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_accepts_a_users_subclass(tmp_path, recipe):
    arguments, expected = RECIPES[recipe]
    result = run(tmp_path, *MLP, *arguments, "data._target_=users.images", "hydra.run.dir=run")
    assert result.returncode == 0 and expected in result.stdout, result.stderr


@pytest.mark.e2e
@pytest.mark.parametrize("recipe", ["probe", "pretrain"])
def test_a_recipe_that_needs_indexed_images_rejects_other_data_in_one_line(tmp_path, recipe):
    result = run(tmp_path, *MLP, *RECIPES[recipe][0], "data._target_=users.OtherData")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"recipe={recipe} needs to read single images, but OtherData does not support this" in result.stderr


@pytest.mark.e2e
def test_scenario_auto_trains_on_the_batches_that_a_subclass_augments(tmp_path):
    result = run(tmp_path, "backbone=glyph", "trainer.max_epochs=3", "data._target_=users.augmented", "hydra.run.dir=run")
    assert result.returncode == 0 and "images of a batch (32, 3, " in result.stdout, result.stderr
    assert "without custom batches" in result.stdout and "fitted a linear probe" not in result.stdout
