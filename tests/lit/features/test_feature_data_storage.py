"""Features that FeatureData computes and stores: each image, view and cut once, and nothing that no epoch reads."""

import lightning.pytorch as pl
import pytest
import torch
from feature_runs import ALL, HEAD, QUIET, TOP, Passes, data, distance, fit, model
from torch import nn

from ftlit import FeatureData, Schedule, Stage, StagedFinetuning, UserError
from ftlit.lit.features.extraction_pass import View


def test_one_pass_over_the_images_stores_all_cuts_and_a_later_run_makes_none(tmp_path):
    stages = [Stage(HEAD), Stage(TOP, epoch=1), Stage([*TOP, "backbone.middle"], epoch=2)]
    _, _, cold = fit(FeatureData(data(), tmp_path, pooled=True), stages)
    assert cold.images["low"] == 15 + 7
    _, _, warm = fit(FeatureData(data(), tmp_path, pooled=True), stages)
    assert "low" not in warm.images
    _, _, other = fit(FeatureData(data(), tmp_path, pooled=True), [Stage(HEAD)])  # another schedule, same cuts
    assert other.images == {}


def test_only_the_new_images_of_a_data_set_are_computed(tmp_path):
    fit(FeatureData(data(), tmp_path), [Stage(HEAD)])
    _, _, passes = fit(FeatureData(data(train=20), tmp_path), [Stage(HEAD)])
    assert passes.images["low"] == 5


def test_other_weights_transforms_and_seeds_of_views_have_feature_tables_of_their_own(tmp_path):
    fit(FeatureData(data(), tmp_path), [Stage(HEAD)])
    changed = model()
    with torch.no_grad():
        changed.backbone.get_submodule("low.0").weight[0, 0, 0, 0] += 1e-6
    assert fit(FeatureData(data(), tmp_path), [Stage(HEAD)], module=changed)[2].images["low"] == 22
    for options, computed in (({"views": 2}, 30), ({"views": 3}, 15), ({"views": 2, "seed": 1}, 30), ({"dtype": "float16"}, 22)):
        images = data(augment="none" if "dtype" in options else "photo", views=options.pop("views", 0))
        assert fit(FeatureData(images, tmp_path, **options), [Stage(HEAD)])[2].images["low"] == computed, options


def test_augmented_views_alternate_by_epoch(tmp_path):
    source = FeatureData(data(augment="photo", views=2), tmp_path)
    seen = []

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch[0].values.sort(dim=0).values if batch_idx == 0 else None)

    trainer = pl.Trainer(max_epochs=4, accelerator="cpu", callbacks=[StagedFinetuning(Schedule([Stage(HEAD)])), Keep()], **QUIET)
    trainer.fit(model(), source)
    (spec,), views = source._stage_inputs[0].specs, [View("train", 1), View("train", 2)]
    rows = source.extraction.rows(trainer, trainer.lightning_module.backbone, {view: [spec] for view in views}, 0)
    first, second = (rows[view][spec].read(range(15)) for view in views)
    assert not torch.equal(first, second)
    held = [{row.numpy().tobytes() for row in view.flatten(1)} for view in (first, second)]
    firsts = [batch for batch in seen if batch is not None]
    source_order = source.images.order("train")
    for epoch in range(4):
        source_order.set_epoch(epoch)
        indices = [index for _, index in next(iter(source_order))]
        expected = (first, second)[epoch % 2][indices].sort(dim=0).values
        assert torch.equal(firsts[epoch], expected)
    assert len(held[0] & held[1]) == 0


@pytest.mark.parametrize(("begins", "shown"), [(1, 1), (3, 3), (None, 4)])
def test_only_views_that_an_epoch_reads_are_computed(tmp_path, begins, shown):
    stages = [Stage(HEAD)] + ([Stage(ALL, epoch=begins)] if begins else [])
    source = FeatureData(data(augment="photo", views=8), tmp_path, pooled=True)
    module, trainer, _ = fit(source, stages)
    held = {table.about["view"]: table.images for table in source.store.tables()}
    assert held == {"evaluation": 7, **{f"augmented {1 + i}": 15 for i in range(shown)}}
    plan, *_ = source.plan(module, Schedule(stages), trainer)
    assert plan.bytes == (shown * 15 + 7 + 5) * 6 * 4  # with the test images


def test_without_augmentation_only_the_plain_view_is_stored_and_a_note_gives_the_reason(tmp_path):
    source = FeatureData(data(augment="none", views=3), tmp_path)
    assert source.views == 0 and "data.views=3 is ignored: without augmentation (data.augment=none)" in source.notes[-1]
    assert FeatureData(data(augment="photo", views=3), tmp_path).notes == []


def test_an_unusable_folder_is_an_error_at_construction():
    with pytest.raises(UserError, match=r"^cannot store features in /proc/features \(No such file or directory\): use another folder"):
        FeatureData(data(), "/proc/features")


def test_a_full_disk_is_an_error_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    module, passes = model(), Passes()
    with pytest.raises(UserError, match=r"features need 2\.11 kB more in .*100 B are free.*cache=none"):
        fit(FeatureData(data(), tmp_path), [Stage(HEAD)], module=module)
    assert passes.images == {}


def test_features_stored_in_half_precision_train_nearly_the_same_weights(tmp_path):
    images, _, _ = fit(data(), [Stage(HEAD)])
    half, _, _ = fit(FeatureData(data(), tmp_path / "half", dtype="float16"), [Stage(HEAD)])
    assert 0 < distance(half, images) < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_gb": -1}, "cache.max_gb=-1"), ({"dtype": "int8"}, "cache.dtype=int8 is not valid")],
)
def test_options_out_of_range_are_errors(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        FeatureData(data(), tmp_path, **options)


def test_features_of_a_layer_that_keeps_its_input_can_be_stored(tmp_path):
    class Keeps(nn.Conv2d):
        def forward(self, x):
            self.last_input = x.detach()
            return super().forward(x)

    module = model()
    module.backbone.add_module("low", nn.Sequential(Keeps(3, 4, 3)))
    _, _, passes = fit(FeatureData(data(), tmp_path, pooled=True), [Stage(HEAD)], module=module)
    assert passes.epochs == ["top"] * 4


def test_the_options_of_the_plan_have_one_owner(tmp_path):
    source = FeatureData(data(), tmp_path, pooled=True, dtype="float16", max_gb=3.0)
    assert (source.planner.pooled, source.planner.dtype, source.planner.max_gb) == (True, "float16", 3.0)
    assert not {"pooled", "dtype", "max_gb"} & {*vars(source)}
