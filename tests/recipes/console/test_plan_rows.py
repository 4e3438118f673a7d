"""The row `training` of the plan names what acts on the learning rate, and the metrics that decide."""

import re
from types import SimpleNamespace

import pytest
from composed_configs import composed
from omegaconf import OmegaConf

from ftlit.errors import UserError
from ftlit.formatting import size_in_words
from ftlit.lit.features.feature_data import FeatureData
from ftlit.recipes.build_run import build, plan_of
from ftlit.recipes.config.hydra_internals import fresh_hydra
from ftlit.recipes.console.plan_rows import data_rows, plan_rows
from ftlit.recipes.console.run_facts import RunFacts
from ftlit.recipes.finetune import _begin, _facts
from ftlit.recipes.run.training_steps import rates_of
from ftlit.sweeps.running import hearing_estimate

PLATEAU = "torch.optim.lr_scheduler.ReduceLROnPlateau"
STOPPING = ("_target_=lightning.pytorch.callbacks.EarlyStopping", "monitor=val/loss")


@pytest.mark.parametrize(
    ("words", "texts", "absent"),
    [
        ([], [], ["warm-up", " by "]),
        (["lr_scheduler=cosine_warmup"], [", warm-up over the first 0.1 of the run;"], ["stalls"]),
        (["lr_scheduler.warmup=0.2", "lr_scheduler.restart=true"], [", warm-up over the first 0.2 of each stage;"], []),
        (["lr_scheduler=plateau", "lr_scheduler.monitor=val/f1"], [", reduced when val/f1 stalls;"], ["warm-up"]),
        (["lr_scheduler=plateau", "lr_scheduler.warmup=0.09"], [", reduced when val/loss stalls;"], ["warm-up"]),  # of 10 epochs
        (["lr_scheduler=any", f"lr_scheduler.curve.scheduler._target_={PLATEAU}"], [", reduced when val/loss stalls;"], ["warm-up"]),
        (["head=linear", "schedule=head_then_all", "+lr_scheduler.stage_factors=[1,0.1]"], [", times 1, 0.1 in stages 0 to 1;"], []),
        (["+lr_scheduler.monitor=val/f1"], [], ["stalls"]),
        (["callbacks.best.monitor=val/f1"], ["; best epoch by val/f1"], []),
        ([f"+callbacks.early_stopping.{word}" for word in STOPPING], ["; early_stopping by val/loss"], ["best epoch"]),
    ],
)
def test_warm_up_and_metrics_that_decide_are_in_the_plan(words, texts, absent, tmp_path, monkeypatch):
    monkeypatch.setattr("ftlit.recipes.console.plan_rows.choices", dict)  # no program composed the config
    with fresh_hydra():
        cfg = composed("scenario=large_similar", "data.per_class=3", *words, f"paths.run={tmp_path}", f"paths.cache={tmp_path}")
        run = build(cfg)
        facts = RunFacts("CPU", rates=rates_of(run.model, run.trainer, run.data))
        row = dict(plan_rows(cfg, run.model.backbone, run.data, plan_of(run), [], facts))["training"]
    assert all(text in row for text in texts) and not any(text in row for text in absent)


def test_the_rates_of_a_layer_are_those_with_which_its_stages_begin(tmp_path):
    words = ["head=linear", "schedule=head_then_all", "optimizer.lr=0.002", "+lr_scheduler.stage_factors=[1,0.5]", "data.per_class=3"]
    with fresh_hydra():
        run = build(composed("scenario=large_similar", *words, f"paths.run={tmp_path}", f"paths.cache={tmp_path}"))
        assert plan_of(run).rows[-1].rates_text == "2.0e-03 in 0, 1.0e-03 in 1"


def planned(tmp_path, monkeypatch, *words):
    words = ("data.per_class=3", "data.augment=photo", "data.num_workers=0", *words)
    monkeypatch.setattr("ftlit.recipes.console.plan_rows.choices", dict)
    monkeypatch.setattr("ftlit.recipes.config.overrides.task_overrides", lambda: list(words))
    with fresh_hydra():
        cfg = composed(*words, f"paths.run={tmp_path}", f"paths.cache={tmp_path}")
        run = build(cfg)
        plan, inputs = plan_of(run), run.data.plan(run.model, run.schedule, run.trainer) if isinstance(run.data, FeatureData) else []
        return plan_rows(cfg, run.model.backbone, run.data, plan, inputs, _facts(cfg, run, plan, inputs))


@pytest.mark.parametrize(("views", "ignored"), [("2", "data.mix=mixup"), ("0", "data.augment=photo, data.mix=mixup")])
def test_augmentation_is_ignored_only_where_no_augmented_view_is_read(views, ignored, tmp_path, monkeypatch):
    rows = planned(tmp_path, monkeypatch, "scenario=small_similar", "data.mix=mixup", f"data.views={views}")
    assert f"There is no gradient training, so {ignored} " in dict(rows)["head"]


def test_the_schedule_that_makes_a_run_fit_only_its_head_is_not_ignored(tmp_path, monkeypatch):
    rows = planned(tmp_path, monkeypatch, "scenario=large_similar", "schedule=head_only", "optimizer.lr=1")
    assert "There is no gradient training, so optimizer.lr=1 is ignored" in dict(rows)["head"]


@pytest.mark.parametrize(("scenario", "estimates"), [("large_similar", 1), ("small_similar", 0)])
def test_a_sweep_hears_the_estimate_of_a_run_that_trains_only(scenario, estimates, tmp_path, monkeypatch):
    """A run that only fits its head says little about the other jobs, which may train or read the features that it stores."""
    heard: list[float] = []
    monkeypatch.setattr("ftlit.recipes.console.plan_rows.choices", dict)
    monkeypatch.setattr("ftlit.recipes.config.overrides.task_overrides", list)
    for name in ("artifacts.write_folder", "print_plan"):  # they need a command line
        monkeypatch.setattr(f"ftlit.recipes.finetune.{name}", lambda *_, **__: None)
    with fresh_hydra(), hearing_estimate(heard.append):
        cfg = composed(f"scenario={scenario}", "data.per_class=3", "report=false", f"paths.run={tmp_path}", f"paths.cache={tmp_path}")
        run = build(cfg)
        _begin(cfg, run, plan_of(run))
    assert len(heard) == estimates


LINEAR = ("scenario=small_similar", "head=linear")


@pytest.mark.parametrize(
    ("words", "ignored"),
    [
        ([*LINEAR, "data.views=2"], False),
        (["scenario=small_similar", "data.views=2"], False),
        (["scenario=large_similar", "data.views=2"], False),  # the head is fitted before training
        ([*LINEAR, "cache=none", "data.views=0"], False),
        ([*LINEAR, "cache=none", "data.views=2"], True),
        ([*LINEAR, "data.mix=mixup", "data.views=2"], True),
        (["scenario=large_similar", "head=linear", "schedule=all_at_once", "data.views=2"], True),
    ],
)
def test_views_that_nothing_reads_are_noted(words, ignored, tmp_path, monkeypatch):
    notes = [text for name, text in planned(tmp_path, monkeypatch, *words) if name == "note"]
    assert any(note.startswith("data.views=2 is ignored: ") for note in notes) == ignored


def test_the_cache_of_the_plan_has_the_features_of_a_fitted_head(tmp_path, monkeypatch):
    def sizes(*words):
        row = dict(planned(tmp_path, monkeypatch, "head.cuts=null", "trainer.precision=32-true", *words))["cache"]
        return re.search(r"^features take up to ([\d.]+ kB) in ", row)[1]

    assert sizes("scenario=small_similar", "data.views=0") == size_in_words(30 * 128 * 4)  # 10 classes
    assert sizes("scenario=small_similar", "data.views=2") == size_in_words(3 * 30 * 128 * 4)


@pytest.mark.parametrize(("words", "said"), [(["scenario=small_similar"], True), (["scenario=large_similar"], True), ([*LINEAR], False)])
def test_the_plan_says_that_a_head_of_few_images_per_class_is_not_refitted(words, said, tmp_path, monkeypatch):
    head = dict(planned(tmp_path, monkeypatch, *words)).get("head", "")
    assert ("It is not refitted on train + val, because data.per_class=3 limits the training images." in head) == said


def test_views_whose_features_do_not_fit_are_an_error_before_anything_is_computed(tmp_path, monkeypatch):
    words = ("scenario=small_similar", "cache.max_gb=0.0001")
    with pytest.raises(UserError, match=r"^data\.views=9: the features .* only 100 kB: give fewer views, or cache\.max_gb=1$"):
        planned(tmp_path, monkeypatch, *words, "data.views=9")
    assert not list(tmp_path.rglob("*.safetensors")) and planned(tmp_path, monkeypatch, *words)


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ({"csv": "photos.csv", "path_column": "filename", "label_column": "label"}, "; columns filename and label"),
        ({"path": "saved", "image_column": None, "label_column": "fine"}, "; column fine"),
        ({"root": "photos"}, ""),
    ],
)
def test_the_row_of_the_data_names_the_columns_that_are_read(options, columns):
    counts = {"train": {"ants": 120, "bees": 110}, "val": {"ants": 60, "bees": 60}, "test": {"ants": 60, "bees": 60}}
    data = SimpleNamespace(counts=counts, num_classes=2, multilabel=False, notes=())
    rows = data_rows(OmegaConf.create({"data": options}), data, "images")
    assert rows[0] == ("data", f"train 230; val 120; test 120 images of 2 classes{columns}")
