"""Invariants 6 and 8: stages train from stored features as they would through the frozen layers; each image is computed once."""

from contextlib import nullcontext
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from PIL import Image
from torch import nn

from ftlit import (
    Backbone,
    FeatureBatch,
    FeatureData,
    FineTuner,
    InputSpec,
    Rates,
    Schedule,
    Stage,
    StagedFinetuning,
    Until,
    UserError,
    build_optimizer,
)
from ftlit.data.dataset import Collection, Examples
from ftlit.data.images import read_image
from ftlit.features.stage_input import trained_layers
from ftlit.finetuning.lr_schedule import cosine
from ftlit.lit.callbacks.exact_resume import LastCheckpoint
from ftlit.lit.callbacks.seed_each_step import SeedEachStep
from ftlit.lit.datamodules.extraction_pass import View
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.models.heads import ConvHead, MLPHead

EPOCHS = 4
HEAD, TOP, ALL = ["head"], ["head", "backbone.top"], ["*"]
SCHEDULES = {
    "head only": [Stage(HEAD)],
    "last layer": [Stage(HEAD), Stage(TOP, epoch=1)],
    "head, then all": [Stage(HEAD), Stage(ALL, epoch=2)],
    "all": [Stage(ALL)],
    "top down": [Stage(HEAD), Stage(TOP, epoch=1), Stage([*TOP, "backbone.middle"], epoch=2), Stage(ALL, epoch=3)],
    "a step within an epoch": [Stage(HEAD), Stage(TOP, step=2), Stage([*TOP, "backbone.middle"], step=6), Stage(ALL, step=13)],
    "a metric": [Stage(HEAD), Stage(TOP, epoch=3, until=Until("val/loss", "min", patience=1))],
    "frozen again within an epoch": [Stage(ALL), Stage(HEAD, step=2), Stage(TOP, step=6), Stage(HEAD, epoch=3)],
    "frozen again": [Stage([*HEAD, "backbone.low"]), Stage(HEAD, epoch=1), Stage(TOP, epoch=2), Stage(HEAD, epoch=3)],
}


def picture(i: int) -> Image.Image:
    return Image.linear_gradient("L").rotate(i * 7).resize((12, 12)).convert("RGB")


def data(train: int = 15, **how) -> ImageData:
    sizes = {"train": range(train), "val": range(50, 57), "test": range(60, 65)}
    splits = {split: Examples(places, [(i % 3,) for i in places], picture) for split, places in sizes.items()}
    settings = {"batch_size": 4, "num_workers": 0, "augment": "none", **how}
    return ImageData(Collection(splits, list("abc")), InputSpec(size=12), **settings)


def layer(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3), nn.BatchNorm2d(out), nn.Tanh(), nn.Dropout(0.2))


def model(*, takes_map: bool = False) -> FineTuner:
    torch.manual_seed(0)
    layers = {"low": layer(3, 4), "middle": layer(4, 5), "pooling": nn.AvgPool2d(2), "top": layer(5, 6)}
    head = ConvHead(6, 3) if takes_map else MLPHead(6, 3, hidden=[8], dropout=0.3)
    return FineTuner(
        Backbone(layers, InputSpec(size=12)),
        head,
        num_classes=3,
        optimizer=partial(torch.optim.AdamW, lr=0.02),
        lr_scheduler=partial(Rates, curve=cosine),
    )


class Passes(pl.Callback):
    """The number of images that each layer has run on, in evaluation and in training mode, and what each epoch trained from."""

    def __init__(self) -> None:
        self.images: dict[str, int] = {}
        self.epochs: list[str] = []
        self.totals: list[int] = []

    def setup(self, trainer, pl_module, stage):
        for name, part in pl_module.backbone.items() if stage == "fit" else ():
            part.register_forward_pre_hook(partial(self._count, name))

    def _count(self, name, module, args):
        if args[0].device.type != "meta":
            self.images[name] = self.images.get(name, 0) + len(args[0])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.epochs.append("images" if isinstance(batch[0], torch.Tensor) else batch[0].cut)
            self.totals.append(trainer.num_training_batches)


def fit(source, stages, *, module=None, **settings):
    """A run's module, trainer and what ran."""
    module, passes = module or model(), Passes()
    callbacks = [StagedFinetuning(Schedule(stages)), SeedEachStep(3), passes]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(accelerator="cpu", callbacks=callbacks, **{"max_epochs": EPOCHS} | quiet | settings)
    trainer.fit(module, source)
    return module, trainer, passes


def distance(a: nn.Module, b: nn.Module) -> float:
    """The largest difference of a parameter or buffer, relative to the largest value of it."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1e-12)) for x, y in pairs if x.is_floating_point())


@pytest.mark.parametrize(("precision", "most", "takes_map"), [("32-true", 1e-5, False), ("64-true", 1e-10, True)])
@pytest.mark.parametrize("stages", SCHEDULES.values(), ids=SCHEDULES)
def test_a_run_from_features_ends_with_the_weights_of_a_run_from_images(tmp_path, stages, precision, most, takes_map):
    module = partial(model, takes_map=takes_map)
    images, _, _ = fit(data(), stages, module=module(), precision=precision)
    features, trainer, _ = fit(FeatureData(data(), tmp_path, pooled=not takes_map), stages, module=module(), precision=precision)
    assert distance(features, images) < most
    for name, value in trainer.callback_metrics.items():
        assert value.isfinite(), name


FROM = {
    "head only": ["top"] * 4,
    "last layer": ["top", "pooling", "pooling", "pooling"],
    "head, then all": ["top", "top", "images", "images"],
    "all": ["images"] * 4,
    "top down": ["top", "pooling", "low", "images"],
    "a step within an epoch": ["pooling", "low", "low", "images"],
    "frozen again within an epoch": ["images", "pooling", "pooling", "top"],
    "frozen again": ["images", "top", "pooling", "top"],
}


@pytest.mark.parametrize("name", FROM)
def test_every_stage_with_a_frozen_prefix_trains_from_the_features_at_its_top(tmp_path, name):
    _, _, passes = fit(FeatureData(data(), tmp_path, pooled=True), SCHEDULES[name])
    assert passes.epochs == FROM[name]
    assert passes.totals == [4] * 4  # what the bar counts to is the same in every stage


def test_one_pass_over_the_images_stores_all_cuts_and_a_later_run_makes_none(tmp_path):
    stages = [Stage(HEAD), Stage(TOP, epoch=1), Stage([*TOP, "backbone.middle"], epoch=2)]
    _, _, cold = fit(FeatureData(data(), tmp_path, pooled=True), stages)
    assert cold.images["low"] == 15 + 7
    _, _, warm = fit(FeatureData(data(), tmp_path, pooled=True), stages)
    assert "low" not in warm.images
    _, _, other = fit(FeatureData(data(), tmp_path, pooled=True), [Stage(HEAD)])  # of another schedule
    assert other.images == {}


def test_a_data_set_that_grew_costs_what_it_grew_by(tmp_path):
    fit(FeatureData(data(), tmp_path), [Stage(HEAD)])
    _, _, passes = fit(FeatureData(data(train=20), tmp_path), [Stage(HEAD)])
    assert passes.images["low"] == 5


def test_other_weights_another_transform_or_another_seed_of_views_is_another_table(tmp_path):
    fit(FeatureData(data(), tmp_path), [Stage(HEAD)])
    changed = model()
    with torch.no_grad():
        changed.backbone.get_submodule("low.0").weight[0, 0, 0, 0] += 1e-6
    assert fit(FeatureData(data(), tmp_path), [Stage(HEAD)], module=changed)[2].images["low"] == 22
    for options, computed in (({"views": 2}, 30), ({"views": 3}, 15), ({"views": 2, "seed": 1}, 30), ({"dtype": "float16"}, 22)):
        how = data(augment="none" if "dtype" in options else "photo")
        assert fit(FeatureData(how, tmp_path, **options), [Stage(HEAD)])[2].images["low"] == computed, options


def test_augmented_views_take_turns_by_epoch_and_validation_sees_the_evaluation_view(tmp_path):
    source = FeatureData(data(augment="photo"), tmp_path, views=2)
    seen = []

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch[0].values.sort(dim=0).values if batch_idx == 0 else None)

    settings = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=4, accelerator="cpu", callbacks=[StagedFinetuning(Schedule([Stage(HEAD)])), Keep()], **settings)
    trainer.fit(model(), source)
    spec, views = source._stage_inputs[0].spec, [View("train", 1), View("train", 2)]
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
def test_only_the_views_that_an_epoch_will_show_are_computed(tmp_path, begins, shown):
    stages = [Stage(HEAD)] + ([Stage(ALL, epoch=begins)] if begins else [])
    source = FeatureData(data(augment="photo"), tmp_path, views=8, pooled=True)
    module, trainer, _ = fit(source, stages)
    held = {table.about["view"]: table.images for table in source.store.tables()}
    assert held == {"evaluation": 7, **{f"augmented {1 + i}": 15 for i in range(shown)}}
    plan, *_ = source.plan(module, Schedule(stages), trainer)
    assert plan.bytes == (shown * 15 + 7 + 5) * 6 * 4  # with the test images


def test_without_augmentation_one_view_is_stored_and_a_note_gives_the_reason(tmp_path):
    source = FeatureData(data(augment="none"), tmp_path, views=3)
    assert source.views == 1 and "all 3 views of an image would be equal, one is stored" in source.notes[-1]
    assert FeatureData(data(augment="photo"), tmp_path, views=3).notes == []


def test_a_folder_that_cannot_be_used_is_an_error_before_anything_else():
    with pytest.raises(UserError, match=r"^/proc/features cannot hold features \(.*\): give another folder"):
        FeatureData(data(), "/proc/features")


def test_features_in_a_batch_have_the_length_of_the_batch_and_no_arithmetic():
    features = FeatureBatch(torch.zeros(5, 3, 2, 2), "top")
    assert len(features) == 5 and features.shape == (5, 3, 2, 2) and features.to("meta").values.device.type == "meta"
    for use in (
        lambda: features * 0.5,
        lambda: features[torch.randperm(len(features))],
        lambda: torch.cat([features, features]),
        lambda: [*features],
    ):
        with pytest.raises(TypeError):
            use()


def test_the_plan_gives_the_input_of_the_epoch_in_which_a_stage_begins_at_a_step(tmp_path):
    source = FeatureData(data(), tmp_path)
    schedule = Schedule([Stage(HEAD), Stage(TOP, step=2), Stage([*TOP, "backbone.middle"], epoch=2)])
    head, top, middle = source.plan(model(), schedule, pl.Trainer(max_epochs=4, accelerator="cpu", logger=False))
    assert "the epoch in which stage 1 begins reads the input of that stage" in head.reason
    assert "begins" not in top.reason + middle.reason


def test_a_stage_under_mixing_trains_on_images_and_gives_the_reason(tmp_path):
    source = FeatureData(data(mix="mixup"), tmp_path)
    module, trainer, passes = fit(source, [Stage(HEAD)])
    assert passes.epochs == ["images"] * 4
    assert "data.mix=mixup" in source.plan(module, Schedule([Stage(HEAD)]), trainer)[0].reason


def test_after_training_features_serve_as_long_as_the_weights_below_are_theirs(tmp_path):
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


def test_without_a_schedule_what_is_frozen_when_training_begins_is_stored(tmp_path):
    module = model()
    for name in ("low", "middle"):
        module.backbone.get_submodule(name).requires_grad_(False)
        module.backbone.get_submodule(name).eval()
    settings = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    passes = Passes()
    pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=[passes], **settings).fit(module, FeatureData(data(), tmp_path))
    assert passes.epochs == ["pooling"] * 2 and passes.images["low"] == 22


class Strangers(pl.LightningModule):
    """A module of somebody's own, which knows nothing of features."""

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


def test_a_strangers_module_trains_from_features_without_a_change(tmp_path):
    stages = [Stage(["classifier"]), Stage(["classifier", "features.top"], epoch=2)]
    torch.manual_seed(1)
    images, _, _ = fit(data(), stages, module=Strangers())
    torch.manual_seed(1)
    features, _, passes = fit(FeatureData(data(), tmp_path), stages, module=Strangers())
    assert passes.epochs == ["top", "top", "pooling", "pooling"] and distance(features, images) < 1e-5


def test_a_module_without_a_backbone_is_refused_in_one_line(tmp_path):
    class Plain(Strangers):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Flatten(), nn.Linear(432, 6))

    with pytest.raises(UserError, match="Plain holds 0 backbones"):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
        pl.Trainer(max_epochs=1, accelerator="cpu", **quiet).fit(Plain(), FeatureData(data(), tmp_path))


def test_a_disk_without_room_ends_it_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    module, passes = model(), Passes()
    with pytest.raises(UserError, match=r"features need 2\.11 kB more in .*100 B are free.*cache=none"):
        fit(FeatureData(data(), tmp_path), [Stage(HEAD)], module=module)
    assert passes.images == {}


@pytest.mark.parametrize("how", [{"num_workers": 1}, {"batch_size": 5}, {"batch_size": 64}])
def test_workers_and_batch_size_change_nothing(tmp_path, how):
    images, _, _ = fit(data(**how), SCHEDULES["top down"])
    features, _, _ = fit(FeatureData(data(**how), tmp_path), SCHEDULES["top down"])
    assert distance(features, images) < 1e-5


@pytest.mark.parametrize("settings", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 3}, {"limit_train_batches": 2}], ids=str)
def test_under_other_settings_of_the_trainer_too(tmp_path, settings):
    for stages in (SCHEDULES["top down"], SCHEDULES["a step within an epoch"][:3] if "precision" in settings else SCHEDULES["top down"]):
        images, _, _ = fit(data(), stages, **settings)
        features, _, _ = fit(FeatureData(data(), tmp_path), stages, **settings)
        assert distance(features, images) < (1e-2 if "precision" in settings else 1e-5)


def test_half_precision_on_disk_is_half_the_size_and_nearly_the_same(tmp_path):
    images, _, _ = fit(data(), [Stage(HEAD)])
    half, _, _ = fit(FeatureData(data(), tmp_path / "half", dtype="float16"), [Stage(HEAD)])
    assert 0 < distance(half, images) < 0.05


@pytest.mark.parametrize(
    ("options", "said"),
    [({"views": 0}, "cache.views=0"), ({"max_gb": -1}, "cache.max_gb=-1"), ({"dtype": "int8"}, "no cache.dtype 'int8'")],
)
def test_options_out_of_their_range_are_refused(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        FeatureData(data(), tmp_path, **options)


class Unfreezes(pl.Callback):
    """Somebody else's way to unfreeze, which no schedule knows."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.backbone.get_submodule("low").requires_grad_(True)


def test_what_somebody_else_unfreezes_trains_on_images_from_then_on(tmp_path):
    module, passes = model(), Passes()
    module.backbone.requires_grad_(False)
    module.backbone.eval()
    before = module.backbone.get_submodule("low.0").weight.clone()
    settings = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", callbacks=[Unfreezes(), passes], **settings)
    trainer.fit(module, FeatureData(data(), tmp_path, pooled=True))
    assert passes.epochs == ["top", "images", "images"]
    assert not torch.equal(before, module.backbone.get_submodule("low.0").weight)


def test_statistics_that_move_are_not_frozen(tmp_path):
    module, passes = model(), Passes()
    module.backbone.requires_grad_(False)  # in training mode: batch norms go on counting
    settings = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[passes], **settings).fit(module, FeatureData(data(), tmp_path))
    assert passes.epochs == ["images"]


def test_after_a_fit_another_model_is_tested_on_images(tmp_path):
    source = FeatureData(data(), tmp_path, pooled=True)
    _, trainer, _ = fit(source, [Stage(HEAD)])

    class Other(pl.LightningModule):
        def test_step(self, batch, batch_idx):
            assert batch[0].shape[1:] == (3, 12, 12)

    trainer.test(Other(), source, verbose=False)


def test_vectors_for_a_head_that_takes_maps_are_refused_before_anything_is_computed(tmp_path):
    with pytest.raises(UserError, match="pooled=True stores vectors, and this module has a head that takes maps"):
        fit(FeatureData(data(), tmp_path, pooled=True), [Stage(HEAD)], module=model(takes_map=True))
    assert not list(tmp_path.glob("*/*.safetensors"))


class Stop(pl.Callback):
    """What stands in for a kill before a step."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise InterruptedError


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6, 7])
def test_a_run_that_stops_within_an_epoch_goes_on_from_what_that_epoch_read(tmp_path, step):
    settings = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}

    def run(path, stop=None, goes_on=None):
        passes, module = Passes(), model()
        stages = StagedFinetuning(Schedule([Stage(ALL), Stage(HEAD, step=2), Stage(TOP, step=6)]))
        callbacks = [stages, LastCheckpoint(path, every_n_steps=1), SeedEachStep(3), passes, Stop(stop)]
        trainer = pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=callbacks, num_sanity_val_steps=0, **settings)
        with nullcontext() if stop is None else pytest.raises(InterruptedError):
            source = FeatureData(data(augment="photo"), tmp_path / "store", pooled=True)
            trainer.fit(module, source, ckpt_path=goes_on, weights_only=False)
        return module, passes.epochs

    whole, epochs = run(tmp_path / "whole.ckpt")
    run(tmp_path / "last.ckpt", stop=step)
    assert epochs == ["images", "pooling"] and distance(run(tmp_path / "last.ckpt", goes_on=tmp_path / "last.ckpt")[0], whole) == 0


def test_a_fit_after_one_that_went_on_within_an_epoch_has_all_its_batches(tmp_path):
    for source in (data(), FeatureData(data(), tmp_path)):
        source.load_state_dict({"epoch": 0, "batch": 3})
        fit(source, [Stage(HEAD)])
        assert fit(source, [Stage(HEAD)])[1].global_step == 16


class Changes(pl.Callback):
    """Weights that somebody sets in the midst of a stage."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            with torch.no_grad():
                pl_module.backbone.get_submodule("low.0").weight.mul_(3)


@pytest.mark.parametrize("epoch", [0, 2])
def test_weights_that_somebody_sets_within_a_stage_are_those_of_the_features(tmp_path, epoch):
    ends = []
    for source in (data(), FeatureData(data(), tmp_path, pooled=True)):
        settings = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
        callbacks = [StagedFinetuning(Schedule([Stage(HEAD)])), SeedEachStep(3), Changes(epoch)]
        ends.append(model())
        pl.Trainer(max_epochs=4, accelerator="cpu", callbacks=callbacks, **settings).fit(ends[-1], source)
    assert distance(*ends) < 1e-5


def test_a_second_fit_sees_the_files_as_they_are_then(tmp_path):
    paths = {i: tmp_path / f"{i}.png" for i in (*range(15), *range(50, 57), *range(60, 65))}
    for i, path in paths.items():
        picture(i).save(path)
    made = data().collection
    splits = {
        split: Examples([paths[i] for i in one.sources], one.labels, read_image, [paths[i] for i in one.sources])
        for split, one in made.splits.items()
    }
    images = ImageData(Collection(splits, made.class_names), InputSpec(size=12), batch_size=4, num_workers=0, augment="none")
    source = FeatureData(images, tmp_path / "store", pooled=True)
    fit(source, [Stage(HEAD)])
    picture(33).save(paths[3])
    assert distance(fit(source, [Stage(HEAD)])[0], fit(images, [Stage(HEAD)])[0]) < 1e-5


@pytest.mark.parametrize("moving", [nn.RReLU(0.1, 0.9), nn.FractionalMaxPool2d(2, output_size=8), nn.GRU(4, 4, 2, dropout=0.5)], ids=repr)
def test_what_draws_in_training_mode_is_not_frozen(moving):
    module = model()
    module.backbone.requires_grad_(False)
    module.backbone.eval()
    assert trained_layers(module, None) == [set()]
    module.backbone.add_module("middle", moving)
    moving.requires_grad_(False).train()
    assert trained_layers(module, None) == [{"middle"}]
    moving.eval()
    assert trained_layers(module, None) == [set()]


def test_training_may_end_by_steps_alone(tmp_path):
    _, trainer, passes = fit(FeatureData(data(), tmp_path), [Stage(HEAD)], max_epochs=-1, max_steps=6)
    assert trainer.global_step == 6 and passes.epochs == ["top", "top"]
    with pytest.raises(UserError, match="overfit_batches replaces the order of the images"):
        fit(FeatureData(data(), tmp_path), [Stage(HEAD)], overfit_batches=2)


def test_the_size_of_a_batch_may_be_set_afterwards(tmp_path):
    source = FeatureData(data(), tmp_path)
    source.batch_size = 15
    assert fit(source, [Stage(HEAD)])[2].totals == [1] * 4


def test_a_layer_that_keeps_what_it_saw_can_be_stored(tmp_path):
    class Keeps(nn.Conv2d):
        def forward(self, x):
            self.last = x.detach()
            return super().forward(x)

    module = model()
    module.backbone.add_module("low", nn.Sequential(Keeps(3, 4, 3)))
    _, _, passes = fit(FeatureData(data(), tmp_path, pooled=True), [Stage(HEAD)], module=module)
    assert passes.epochs == ["top"] * 4
