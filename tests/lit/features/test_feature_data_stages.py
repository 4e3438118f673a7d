"""The input of each stage under FeatureData: features at the top of the frozen layers, or images where no layer is frozen."""

import lightning.pytorch as pl
import pytest
import torch
from feature_runs import HEAD, QUIET, TOP, Passes, data, fit, model
from torch import nn

from ftlit import FeatureBatch, FeatureData, Schedule, Stage, UserError
from ftlit.features.stage_input import trained_layers


def test_a_feature_batch_has_a_length_and_no_arithmetic():
    features = FeatureBatch({"top": torch.zeros(5, 3, 2, 2)})
    assert len(features) == 5 and features.shape == (5, 3, 2, 2) and features.to("meta").values.device.type == "meta"
    for use in (
        lambda: features * 0.5,
        lambda: features[torch.randperm(len(features))],
        lambda: torch.cat([features, features]),
        lambda: [*features],
    ):
        with pytest.raises(UserError, match="the batch contains stored features"):
            use()


def test_the_plan_explains_the_input_of_an_epoch_in_which_a_stage_begins_at_a_step(tmp_path):
    source = FeatureData(data(), tmp_path)
    schedule = Schedule([Stage(HEAD), Stage(TOP, step=2), Stage([*TOP, "backbone.middle"], epoch=2)])
    head, top, middle = source.plan(model(), schedule, pl.Trainer(max_epochs=4, accelerator="cpu", logger=False))
    assert "its last epoch reads the same as stage 1, which begins within that epoch" in head.reason
    assert "begins" not in top.reason + middle.reason


def test_under_mixing_stages_train_on_images_and_the_plan_gives_the_reason(tmp_path):
    source = FeatureData(data(mix="mixup"), tmp_path)
    module, trainer, passes = fit(source, [Stage(HEAD)])
    assert passes.epochs == ["images"] * 4
    assert "data.mix=mixup" in source.plan(module, Schedule([Stage(HEAD)]), trainer)[0].reason


def test_evaluation_reads_features_until_the_weights_below_the_cut_change(tmp_path):
    source = FeatureData(data(), tmp_path, pooled=True)
    module, trainer, passes = fit(source, [Stage(HEAD)])
    passes.images.clear()
    from_features = trainer.validate(module, source, verbose=False)[0], trainer.test(module, source, verbose=False)[0]
    assert passes.images == {"low": 5, "middle": 5, "pooling": 5, "top": 5}  # the test images, once
    from_images = trainer.validate(module, data(), verbose=False)[0], trainer.test(module, data(), verbose=False)[0]
    assert all(a == pytest.approx(b, rel=1e-5) for a, b in zip(from_features, from_images, strict=True))
    with torch.no_grad():
        module.backbone.get_submodule("low.0").weight.mul_(2)
    passes.images.clear()
    trainer.validate(module, source, verbose=False)
    assert passes.images["low"] == 7


def test_without_a_schedule_the_features_of_layers_frozen_at_the_start_are_stored(tmp_path):
    module = model()
    for name in ("low", "middle"):
        module.backbone.get_submodule(name).requires_grad_(False)
        module.backbone.get_submodule(name).eval()
    passes = Passes()
    pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=[passes], **QUIET).fit(module, FeatureData(data(), tmp_path))
    assert passes.epochs == ["pooling"] * 2 and passes.images["low"] == 22


class Unfreezes(pl.Callback):
    """Unfreeze a layer without a schedule, as other code may."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.backbone.get_submodule("low").requires_grad_(True)


def test_training_reads_images_after_a_callback_unfreezes_a_layer(tmp_path):
    module, passes = model(), Passes()
    module.backbone.requires_grad_(False)
    module.backbone.eval()
    before = module.backbone.get_submodule("low.0").weight.clone()
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", callbacks=[Unfreezes(), passes], **QUIET)
    trainer.fit(module, FeatureData(data(), tmp_path, pooled=True))
    assert passes.epochs == ["top", "images", "images"]
    assert not torch.equal(before, module.backbone.get_submodule("low.0").weight)


def test_a_batchnorm_that_updates_its_statistics_is_not_frozen(tmp_path):
    module, passes = model(), Passes()
    module.backbone.requires_grad_(False)  # in training mode: batchnorms update their statistics
    pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[passes], **QUIET).fit(module, FeatureData(data(), tmp_path))
    assert passes.epochs == ["images"]


@pytest.mark.parametrize("moving", [nn.RReLU(0.1, 0.9), nn.FractionalMaxPool2d(2, output_size=8), nn.GRU(4, 4, 2, dropout=0.5)], ids=repr)
def test_a_layer_that_is_random_in_training_mode_is_not_frozen(moving):
    module = model()
    module.backbone.requires_grad_(False)
    module.backbone.eval()
    assert trained_layers(module, None) == [set()]
    module.backbone.add_module("middle", moving)
    moving.requires_grad_(False).train()
    assert trained_layers(module, None) == [{"middle"}]
    moving.eval()
    assert trained_layers(module, None) == [set()]


def test_after_a_fit_another_model_is_tested_on_images(tmp_path):
    source = FeatureData(data(), tmp_path, pooled=True)
    _, trainer, _ = fit(source, [Stage(HEAD)])

    class Other(pl.LightningModule):
        def test_step(self, batch, batch_idx):
            assert batch[0].shape[1:] == (3, 12, 12)

    trainer.test(Other(), source, verbose=False)


def test_pooled_features_for_a_head_of_maps_are_an_error_before_anything_is_computed(tmp_path):
    with pytest.raises(UserError, match="pooled=True stores vectors, but the head of this module needs feature maps"):
        fit(FeatureData(data(), tmp_path, pooled=True), [Stage(HEAD)], module=model(takes_map=True))
    assert not list(tmp_path.glob("*/*.safetensors"))
