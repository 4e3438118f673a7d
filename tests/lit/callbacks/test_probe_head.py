"""FitProbeHead: training starts with a linear probe as the head; a resumed run keeps its head."""

from dataclasses import replace
from functools import cache, partial

import lightning.pytorch as pl
import pytest
import torch
from PIL import Image
from torch import nn

from ftlit import (
    Backbone,
    FeatureData,
    FineTuner,
    FitProbeHead,
    ImageData,
    InputSpec,
    Schedule,
    Stage,
    StagedFinetuning,
    UserError,
    fit_probe,
)
from ftlit.data.dataset import Collection, Examples
from ftlit.finetuning.schedule import without_warm_up
from ftlit.inference.novelty import KEY as SUBSPACE
from ftlit.inference.prediction_sets import KEY
from ftlit.lit.callbacks.probe_head import TOO_MANY
from ftlit.lit.callbacks.recorder import Recorder
from ftlit.models.heads import LinearHead, MLPHead
from ftlit.probes.cross_validation import folds_of
from ftlit.probes.layer_probes import LayerProbes
from ftlit.probes.linear_probe import Probe

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
L2_PENALTIES = [1e-1, 1e-3]


def message(probe: Probe, images: int) -> str:
    """Return the line that is printed, with scikit-learn's C = 1 / (N L2) beside the L2 penalty."""
    ends = {
        max(L2_PENALTIES): "; this L2 is the largest tried, a larger one may be better",
        min(L2_PENALTIES): "; this L2 is the smallest tried, a smaller one may be better",
    }
    penalty = f"softmax, L2 {probe.l2:.1e}, scikit-learn's C {1 / (images * probe.l2):.2g}{ends[probe.l2]}"
    return f"fitted a linear probe ({penalty}) on average-pooled features of top, {images} training images; accuracy {probe.score:.4f} in"


@cache
def picture(i: int) -> Image.Image:
    return Image.linear_gradient("L").rotate(i * 11).resize((8, 8)).convert("RGB")


def data(labels=lambda i: (i % 3,), **options) -> ImageData:
    splits = {split: Examples(range(n), [labels(i) for i in range(n)], picture) for split, n in (("train", 30), ("val", 6), ("test", 6))}
    multilabel = isinstance(labels(0), list)
    collection = Collection(splits, list("abc"), multilabel)
    return ImageData(collection, InputSpec(size=8), batch_size=8, num_workers=0, **{"augment": "photo", "views": 0, **options})


def model(head: nn.Module | None = None) -> FineTuner:
    torch.manual_seed(0)
    backbone = Backbone({"low": nn.Conv2d(3, 4, 3), "top": nn.Sequential(nn.Conv2d(4, 5, 3), nn.Tanh())}, InputSpec(size=8))
    return FineTuner(backbone, head or LinearHead(5, 3), num_classes=3, optimizer=partial(torch.optim.SGD, lr=0.01))


class InitialHead(pl.Callback):
    """Keep the head as it is before the first step."""

    def on_train_start(self, trainer, pl_module):
        self.weight, self.bias = pl_module.head.weight.clone(), pl_module.head.bias.clone()


def fit(source, module=None, *, callback=None, path=None):
    initial, callback = InitialHead(), callback or FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES))
    trainer = pl.Trainer(max_epochs=2, callbacks=[StagedFinetuning(Schedule([Stage(["*"])])), callback, initial], **QUIET)
    trainer.fit(module or model(), source, ckpt_path=path)
    return trainer, callback, initial


@pytest.mark.parametrize("stored", [True, False])
def test_training_starts_with_a_probe_of_the_training_images_only(tmp_path, stored):
    module = model()
    with torch.no_grad():
        images = torch.stack([data().transforms["val"](picture(i)) for i in range(30)])
        vectors = module.eval().backbone.pool(module.backbone(images))
    expected = fit_probe(vectors, torch.arange(30) % 3, l2=L2_PENALTIES)
    _, callback, initial = fit(FeatureData(data(), tmp_path, pooled=True) if stored else data(), module.train())
    assert callback.probe.parts[0].scores == expected.scores
    assert torch.allclose(initial.weight, expected.weight, atol=1e-4) and torch.allclose(initial.bias, expected.bias, atol=1e-4)


@pytest.mark.parametrize("stored", [True, False])
def test_before_training_the_probe_is_fitted_on_a_share_of_each_class(tmp_path, monkeypatch, capsys, stored):
    def labels(i):
        return (0 if i < 20 else 1 if i < 26 else 2,)

    monkeypatch.setattr("ftlit.lit.callbacks.probe_head.MAX_IMAGES", 15)
    source, module = FeatureData(data(labels), tmp_path, pooled=True) if stored else data(labels), model()
    few = data(labels).with_share(0.5).collection.splits["train"]
    assert [few.labels.count((label,)) for label in range(3)] == [10, 3, 2]
    with torch.no_grad():
        images = torch.stack([data().transforms["val"](picture(i)) for i in few.sources])
        vectors = module.eval().backbone.pool(module.backbone(images))
    expected = fit_probe(vectors, torch.tensor(few.labels)[:, 0], l2=L2_PENALTIES)
    _, callback, _ = fit(source, module.train())
    assert ", 15 training images; accuracy" in capsys.readouterr().out
    assert torch.allclose(callback.probe.parts[0].weight, expected.weight, atol=1e-4)
    _, callback, _ = fit(source, callback=FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES), trains=False))
    assert message(callback.probe.parts[0], 30) in capsys.readouterr().out


def test_a_resumed_run_keeps_the_head_of_its_checkpoint(tmp_path):
    trainer, _, _ = fit(data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    held = torch.load(tmp_path / "a.ckpt", weights_only=False)["state_dict"]["head.weight"]
    initial, callback = InitialHead(), FitProbeHead()
    resumed = pl.Trainer(max_epochs=3, callbacks=[StagedFinetuning(Schedule([Stage(["*"])])), callback, initial], **QUIET)
    resumed.fit(model(), data(), ckpt_path=tmp_path / "a.ckpt", weights_only=False)
    assert callback.probe is None and initial.weight.equal(held)


def test_a_resumed_run_that_shards_does_not_fit_a_head_that_the_checkpoint_replaces():
    trainer, callback, _ = fit(data())
    module, callback.given, callback.resumes = model(), callback.probe, True
    before = module.head.weight.clone()
    callback.before_sharding(trainer, module)
    assert module.head.weight.equal(before)
    callback.resumes = False
    callback.before_sharding(trainer, module)
    assert not module.head.weight.equal(before)


def test_without_training_the_probe_is_the_final_head(tmp_path):
    module, callback = model(), FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES), trains=False)
    before = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    trainer, _, _ = fit(FeatureData(data(), tmp_path, pooled=True), module, callback=callback)
    assert trainer.global_step == 0 and torch.equal(
        module.head.weight.detach(), callback.probe.parts[0].weight / callback.probe.temperature
    )
    assert callback.probe.temperature != 1 and all(torch.equal(before[name], value) for name, value in module.backbone.state_dict().items())


def test_logits_that_are_too_many_to_be_kept_are_named(monkeypatch, capsys):
    monkeypatch.setattr("ftlit.probes.cross_validation.MAX_LOGITS", 30 * 3 - 1)
    _, callback, _ = fit(data(), callback=FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES), trains=False))
    assert callback.probe.held_out_logits is None and f" in cross-validation{TOO_MANY}\n" in capsys.readouterr().out


def test_images_of_a_group_are_held_out_together(monkeypatch):
    groups, source = [str(i // 5) for i in range(30)], data()
    source.collection.splits["train"] = replace(source.collection.splits["train"], groups=groups)
    given = []
    monkeypatch.setattr("ftlit.probes.cross_validation.folds_of", lambda *rest: given.append(rest[3]) or folds_of(*rest))
    fit(source, callback=FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES), trains=False))
    assert given == [groups]


@pytest.mark.parametrize("stored", [True, False])
def test_without_training_the_head_is_refitted_on_train_and_val_after_validation(tmp_path, stored):
    module, callback = model(), FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES), trains=False)
    fit(FeatureData(data(), tmp_path, pooled=True) if stored else data(), module, callback=callback)
    with torch.no_grad():
        vectors = module.eval().backbone.pool(module.backbone(torch.stack([data().transforms["val"](picture(i)) for i in range(30)])))
    both = torch.cat([vectors, vectors[:6]]), torch.cat([torch.arange(30), torch.arange(6)]) % 3
    expected = fit_probe(*both, l2=callback.probe.parts[0].l2)
    t = callback.refitted.temperature  # from held-out images of train: those of val are fitted on
    assert t == callback.probe.temperature and not torch.allclose(expected.weight, callback.probe.parts[0].weight)
    assert torch.equal(module.head.weight.detach(), callback.probe.parts[0].weight / t)
    callback.use_refitted(module)
    assert torch.allclose(module.head.weight * t, expected.weight, atol=1e-4)
    assert torch.allclose(module.head.bias * t, expected.bias, atol=1e-4)


@pytest.mark.parametrize("combine", ["blend", "average"])
def test_the_recorder_keeps_the_probabilities_at_temperature_1(tmp_path, combine):
    module = model(LinearHead([4, 5], 3, cuts=("low", "top"), combine="average" if combine == "average" else "concat"))
    callback, recorder = FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES), trains=False), Recorder(tmp_path)
    trainer = pl.Trainer(max_epochs=1, callbacks=[callback, recorder], **QUIET)
    trainer.fit(module, data())
    trainer.test(module, data(), verbose=False)
    before = recorder.tested.uncalibrated
    assert (callback.temperature is None) == (before is None) == (combine == "average")
    if before is not None:
        fit_head = replace(callback.probe, temperature=1.0).as_head()
        with torch.no_grad():
            images = torch.stack([data().transforms["val"](picture(i)) for i in range(6)])
            features = [module.backbone.pool(values) for values in module.backbone.features_at(images, ("low", "top"))]
            expected = fit_head(*features).softmax(dim=1).amax(dim=1)
        torch.testing.assert_close(torch.tensor(before), expected, atol=1e-5, rtol=1e-5)
        assert (recorder.tested.probability != before).all()


def test_a_checkpoint_holds_the_out_of_fold_scores_of_a_head_that_is_only_fitted(tmp_path):
    for trains in (False, True):
        trainer, callback, _ = fit(data(), callback=FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES), trains=trains))
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        content = torch.load(tmp_path / "a.ckpt", weights_only=True)
        held = content.get(KEY)
        assert (SUBSPACE in content) == (held is not None) == (not trains)
        if trains:  # the network that is trained scores others
            assert callback.subspace is None
        else:
            found = callback.probe.held_out_logits
            expected = 1 - found.logits.softmax(dim=1).gather(1, found.labels[:, None])[:, 0]
            torch.testing.assert_close(held["scores"], expected.sort().values)


def test_the_subspace_is_that_of_a_limited_number_of_images_of_train_and_val_together(monkeypatch):
    monkeypatch.setattr("ftlit.inference.novelty.MAX_IMAGES", 18)
    given = []
    monkeypatch.setattr("ftlit.lit.callbacks.probe_head.feature_subspace", given.append)
    module, callback = model(), FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES), trains=False)
    fit(data(), module, callback=callback)
    (known,) = given
    assert known.shape == (18, 5)  # 15 of 30, 3 of 6


@pytest.mark.parametrize(
    ("limits", "few", "trains"),
    [
        ({"limit_train_batches": 2}, None, False),
        ({"limit_val_batches": 0}, None, False),
        ({"limit_val_batches": 1}, None, False),
        ({}, 3, False),
        ({}, None, True),
    ],
)
def test_the_head_is_not_refitted_if_images_are_limited_or_training_follows(limits, few, trains):
    module, callback = model(), FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES), trains=trains)
    trainer = pl.Trainer(max_epochs=1, callbacks=[StagedFinetuning(Schedule([Stage(["*"])])), callback], **QUIET, **limits)
    trainer.fit(module, data(per_class=few))
    held = module.head.weight.clone()
    callback.use_refitted(module)
    assert callback.refitted is None and module.head.weight.equal(held)


def test_a_head_that_is_not_linear_is_a_one_line_error():
    with pytest.raises(UserError, match="FineTuner has the MLPHead 'head'"):
        fit(data(), model(MLPHead(5, 3)))
    with pytest.raises(UserError, match="FineTuner has no module 'classifier'"):
        fit(data(), callback=FitProbeHead("classifier"))


def test_without_warm_up_the_head_only_stages_are_dropped_and_the_next_stage_begins_at_epoch_0():
    stages = [Stage(["head"]), Stage(["head.*"], epoch=1), Stage(["head", "backbone.top"], step=9), Stage(["*"], epoch=4)]
    found = without_warm_up(Schedule(stages, [("*", 0.5)]))
    assert [(stage.train, stage.begins) for stage in found.stages] == [(("head", "backbone.top"), "epoch 0"), (("*",), "epoch 4")]
    assert found.lr_scale == (("*", 0.5),) and without_warm_up(found) == found
    with pytest.raises(UserError, match="the stages that train only the head"):
        without_warm_up(Schedule(stages[:2]))


@pytest.mark.parametrize(("train", "options", "views"), [
    (30, {}, 4),
    (160, {}, 3),  # with the 6 images of val
    (400, {}, 1),
    (700, {}, 0),
    (30, {"augment": "none"}, 0),
    (700, {"views": 2}, 2),
])  # fmt: skip
def test_a_fitted_head_reads_augmented_views_of_few_images(train, options, views):
    splits = {split: Examples(range(n), [(i % 3,) for i in range(n)], picture) for split, n in (("train", train), ("val", 6), ("test", 6))}
    images = ImageData(Collection(splits, list("abc"), False), InputSpec(size=8), **{"num_workers": 0, "views": "auto", **options})
    assert images.number_of_views(["train", "val"]) == views
    assert images.number_of_views() == (views if "views" in options else 0)


def test_the_head_is_fitted_on_plain_and_augmented_features_at_several_cuts(tmp_path):
    head = LinearHead([4, 5], 3, cuts=["low", "top"])
    module, callback = model(head), FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES), trains=False)
    source = FeatureData(data(views=2), tmp_path, pooled=True)
    fit(source, module, callback=callback)
    tables = {(table.about["cut"], table.about["view"]): table.images for table in source.store.tables()}
    assert tables == {(cut, view): 36 for cut in ("low", "top") for view in ("evaluation", "augmented 1", "augmented 2")}
    assert callback.probe.views == 2 and callback.probe.parts[0].samples == 90 and callback.refitted.parts[0].samples == 108
    assert torch.equal(head.weight.detach(), callback.probe.as_head().weight)


@pytest.mark.parametrize(
    ("limits", "fitted_on", "views"),
    [
        ({}, "train and val", 3),  # 166 images
        ({"limit_val_batches": 0}, "train", 4),  # 160
        ({"limit_train_batches": 0.5}, "train", 4),
        ({"limit_train_batches": 10, "limit_val_batches": 1}, "train", 4),
    ],
)
def test_the_number_of_views_depends_on_the_images_that_are_read(limits, fitted_on, views, tmp_path, capsys):
    splits = {split: Examples(range(n), [(i % 3,) for i in range(n)], picture) for split, n in (("train", 160), ("val", 6), ("test", 6))}
    images = ImageData(Collection(splits, list("abc")), InputSpec(size=8), batch_size=8, num_workers=0)
    source, callback = FeatureData(images, tmp_path, pooled=True), FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES), trains=False)
    trainer = pl.Trainer(max_epochs=1, callbacks=[StagedFinetuning(Schedule([Stage(["*"])])), callback], **QUIET, **limits)
    read, splits_read, planned = callback.reads(trainer, source)
    assert (" and ".join(splits_read), planned) == (fitted_on, views)
    trainer.fit(model(), source)
    assert callback.probe.views == views
    number = sum(len(read.collection.splits[split]) for split in splits_read)
    assert f"features of {number} images, each in {views} augmented views, at top: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "trains", "fitted", "refits"),
    [("all", False, 160, True), (160, False, 160, True), (40, False, 40, False), (1, False, 6, False), (40, True, 40, False)],
)
def test_a_head_is_fitted_on_a_limited_number_of_images_of_each_class(rows, trains, fitted, refits, tmp_path):
    splits = {split: Examples(range(n), [(i % 3,) for i in range(n)], picture) for split, n in (("train", 160), ("val", 6), ("test", 6))}
    images = ImageData(Collection(splits, list("abc")), InputSpec(size=8), batch_size=8, num_workers=0)
    callback = FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES, rows=rows), trains=trains)
    trainer = pl.Trainer(max_epochs=1, callbacks=[StagedFinetuning(Schedule([Stage(["*"])])), callback], **QUIET)
    read, _, _ = callback.reads(trainer, images)
    assert abs(len(read.collection.splits["train"]) - fitted) <= 1 and callback.refits(trainer, images) == refits
    assert set(read.counts["train"].values()) <= {fitted // 3, fitted // 3 + 1}


def test_the_line_of_an_extraction_names_whose_views_are_computed(tmp_path, capsys):
    source = FeatureData(data(views=1), tmp_path, pooled=True)
    trainer = pl.Trainer(max_epochs=1, callbacks=[StagedFinetuning(Schedule([Stage(["head"])]))], **QUIET)
    trainer.fit(model(), source)
    assert "features of 36 images, training images in 1 augmented view, at top: " in capsys.readouterr().out
