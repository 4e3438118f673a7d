"""Invariant 8: cached features train the same head as the frozen backbone, also when a run is resumed and with a user's module."""

from contextlib import nullcontext
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from feature_runs import ALL, HEAD, QUIET, SCHEDULES, TOP, Passes, Stop, data, distance, fit, gradient_image, model
from lanes import nightly
from torch import nn

from ftlit import FeatureData, InputSpec, Schedule, Stage, StagedFinetuning, UserError, build_optimizer
from ftlit.data.dataset import Collection, Examples
from ftlit.data.images import read_image
from ftlit.lit.callbacks.exact_resume import LastCheckpoint
from ftlit.lit.callbacks.seed_each_step import SeedEachStep
from ftlit.lit.datamodules.image_data import ImageData

INPUT_BY_EPOCH = {  # but for "a metric", which decides in the run
    "head only": ["top"] * 4,
    "last layer": ["top", "pooling", "pooling", "pooling"],
    "head, then all": ["top", "top", "images", "images"],
    "all": ["images"] * 4,
    "top down": ["top", "pooling", "low", "images"],
    "a step within an epoch": ["pooling", "low", "low", "images"],
    "frozen again within an epoch": ["images", "pooling", "pooling", "top"],
    "frozen again": ["images", "top", "pooling", "top"],
}


@pytest.mark.parametrize(("precision", "most", "takes_map"), [("32-true", 1e-5, False), ("64-true", 1e-10, True)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_from_features_at_the_top_of_frozen_layers_ends_with_the_weights_of_a_run_from_images(
    tmp_path, name, precision, most, takes_map
):
    module, stages = partial(model, takes_map=takes_map), SCHEDULES[name]
    images, _, _ = fit(data(), stages, module=module(), precision=precision)
    features, trainer, passes = fit(FeatureData(data(), tmp_path, pooled=not takes_map), stages, module=module(), precision=precision)
    assert distance(features, images) < most
    assert passes.epochs == INPUT_BY_EPOCH.get(name, passes.epochs)
    assert passes.totals == [4] * 4  # the number of batches on the progress bar
    for name, value in trainer.callback_metrics.items():
        assert value.isfinite(), name


@pytest.mark.e2e
@pytest.mark.parametrize("options", nightly([{"num_workers": 1}, {"batch_size": 5}, {"batch_size": 64}], [{"batch_size": 5}]))
def test_workers_and_batch_size_do_not_change_the_weights(tmp_path, options):
    images, _, _ = fit(data(**options), SCHEDULES["top down"])
    features, _, _ = fit(FeatureData(data(**options), tmp_path), SCHEDULES["top down"])
    assert distance(features, images) < 1e-5


HALF = {"precision": "bf16-mixed"}
SETTINGS = [
    (HALF, SCHEDULES["top down"], 1e-2),
    (HALF, SCHEDULES["a step within an epoch"][:3], 1e-2),
    ({"accumulate_grad_batches": 3}, SCHEDULES["top down"], 1e-5),
    ({"limit_train_batches": 2}, SCHEDULES["top down"], 1e-5),
]


@pytest.mark.parametrize(("settings", "stages", "most"), SETTINGS)
def test_features_train_the_weights_of_images_under_other_trainer_settings(tmp_path, settings, stages, most):
    images, _, _ = fit(data(), stages, **settings)
    features, _, _ = fit(FeatureData(data(), tmp_path), stages, **settings)
    assert distance(features, images) < most


class UsersModule(pl.LightningModule):
    """A user's module, written without knowledge of features."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.classifier = model().backbone, nn.Linear(6, 3)

    @property
    def backbone(self):
        return self.features

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.classifier(self.features.pool(self.features(batch[0]))), batch[1])

    def configure_optimizers(self):
        return build_optimizer(self, partial(torch.optim.SGD, lr=0.1))


def test_a_users_module_trains_from_features_without_changes(tmp_path):
    stages = [Stage(["classifier"]), Stage(["classifier", "features.top"], epoch=2)]
    torch.manual_seed(1)
    images, _, _ = fit(data(), stages, module=UsersModule())
    torch.manual_seed(1)
    features, _, passes = fit(FeatureData(data(), tmp_path), stages, module=UsersModule())
    assert passes.epochs == ["top", "top", "pooling", "pooling"] and distance(features, images) < 1e-5


def test_a_module_without_a_backbone_is_a_one_line_error(tmp_path):
    class Plain(UsersModule):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Flatten(), nn.Linear(432, 6))

    with pytest.raises(UserError, match="Plain has 0 Backbones"):
        pl.Trainer(max_epochs=1, accelerator="cpu", **QUIET).fit(Plain(), FeatureData(data(), tmp_path))


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6, 7])
def test_a_run_resumed_within_an_epoch_reads_the_input_of_that_epoch(tmp_path, step):
    def run(path, stop=None, resume_from=None):
        passes, module = Passes(), model()
        stages = StagedFinetuning(Schedule([Stage(ALL), Stage(HEAD, step=2), Stage(TOP, step=6)]))
        callbacks = [stages, LastCheckpoint(path, every_n_steps=1), SeedEachStep(3), passes, Stop(stop)]
        trainer = pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=callbacks, num_sanity_val_steps=0, **QUIET)
        with nullcontext() if stop is None else pytest.raises(InterruptedError):
            source = FeatureData(data(augment="photo"), tmp_path / "store", pooled=True)
            trainer.fit(module, source, ckpt_path=resume_from, weights_only=False)
        return module, passes.epochs

    whole, epochs = run(tmp_path / "whole.ckpt")
    run(tmp_path / "last.ckpt", stop=step)
    assert epochs == ["images", "pooling"] and distance(run(tmp_path / "last.ckpt", resume_from=tmp_path / "last.ckpt")[0], whole) == 0


def test_a_fit_after_a_resumed_fit_has_all_batches_of_its_epochs(tmp_path):
    for source in (data(), FeatureData(data(), tmp_path)):
        source.load_state_dict({"epoch": 0, "batch": 3})
        fit(source, [Stage(HEAD)])
        assert fit(source, [Stage(HEAD)])[1].global_step == 16


class ScaleWeights(pl.Callback):
    """Change the weights of a frozen layer during a stage."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            with torch.no_grad():
                pl_module.backbone.get_submodule("low.0").weight.mul_(3)


@pytest.mark.parametrize("epoch", [0, 2])
def test_features_follow_weights_that_are_set_during_a_stage(tmp_path, epoch):
    ends = []
    for source in (data(), FeatureData(data(), tmp_path, pooled=True)):
        callbacks = [StagedFinetuning(Schedule([Stage(HEAD)])), SeedEachStep(3), ScaleWeights(epoch)]
        ends.append(model())
        pl.Trainer(max_epochs=4, accelerator="cpu", callbacks=callbacks, **QUIET).fit(ends[-1], source)
    assert distance(*ends) < 1e-5


def test_a_second_fit_reads_files_that_changed_after_the_first(tmp_path):
    paths = {i: tmp_path / f"{i}.png" for i in (*range(15), *range(50, 57), *range(60, 65))}
    for i, path in paths.items():
        gradient_image(i).save(path)
    made = data().collection
    splits = {
        split: Examples([paths[i] for i in one.sources], one.labels, read_image, [paths[i] for i in one.sources])
        for split, one in made.splits.items()
    }
    images = ImageData(Collection(splits, made.class_names), InputSpec(size=12), batch_size=4, num_workers=0, augment="none")
    source = FeatureData(images, tmp_path / "store", pooled=True)
    fit(source, [Stage(HEAD)])
    gradient_image(33).save(paths[3])
    assert distance(fit(source, [Stage(HEAD)])[0], fit(images, [Stage(HEAD)])[0]) < 1e-5


def test_training_may_be_limited_by_steps_alone(tmp_path):
    _, trainer, passes = fit(FeatureData(data(), tmp_path), [Stage(HEAD)], max_epochs=-1, max_steps=6)
    assert trainer.global_step == 6 and passes.epochs == ["top", "top"]


def test_overfit_batches_is_an_error(tmp_path):
    with pytest.raises(UserError, match="overfit_batches is not supported"):
        fit(FeatureData(data(), tmp_path), [Stage(HEAD)], overfit_batches=2)


def test_the_batch_size_may_be_set_after_construction(tmp_path):
    source = FeatureData(data(), tmp_path)
    source.batch_size = 15
    assert fit(source, [Stage(HEAD)])[2].totals == [1] * 4
