"""The plan says once which stages train on augmented images, and notes a val split that is too small to choose an epoch."""

from types import SimpleNamespace

import pytest
from composed_configs import composed
from omegaconf import OmegaConf

from ftlit.finetuning.plan import Plan
from ftlit.lit.features.feature_data import FeatureData
from ftlit.recipes.build_run import build, plan_of
from ftlit.recipes.config.hydra_internals import fresh_hydra
from ftlit.recipes.console.plan_rows import plan_rows
from ftlit.recipes.console.run_facts import RunFacts
from ftlit.recipes.console.training_row import class_weight_note, estimate_text, few_of_class_note, few_test_note


def planned(tmp_path, monkeypatch, *words):
    monkeypatch.setattr("ftlit.recipes.console.plan_rows.choices", dict)  # no program composed the config
    with fresh_hydra():
        cfg = composed(*words, f"paths.run={tmp_path}", f"paths.cache={tmp_path}")
        run = build(cfg)
        inputs = run.data.plan(run.model, run.schedule, run.trainer) if isinstance(run.data, FeatureData) else []
        return plan_rows(cfg, run.model.backbone, run.data, plan_of(run), inputs, RunFacts("CPU", trains=run.trains)), cfg


SMALL = ("scenario=small_similar", "head=linear")
LARGE = ("scenario=large_similar", "schedule=head_then_all", "head=linear")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([*SMALL], "; augmentation photo is not used, because no stage trains on images (to augment, give cache=none, or "),
        ([*SMALL, "cache=none"], "; augmentation photo$"),
        (
            [*SMALL, "data.views=4"],
            "; augmentation photo, 4 versions of each image, one per epoch in turn (for a newly drawn one in each epoch, give ",
        ),
        ([*LARGE], "; augmentation photo, but not in stage 0, where features are stored (to augment, give cache=none, or data.views=4 "),
        ([*LARGE, "cache=none"], "; augmentation photo$"),
        ([*LARGE, "data.views=4"], "; augmentation photo, 4 versions of each image in stage 0, one per epoch"),
        ([*LARGE, "data.mix=mixup"], "; augmentation photo$"),
        ([*SMALL, "data.augment=none"], "; no augmentation$"),
    ],
)
def test_the_plan_says_once_which_stages_train_on_augmented_images(words, text, tmp_path, monkeypatch):
    words = words if "data.augment=none" in words else [*words, "data.augment=photo"]
    rows, _ = planned(tmp_path, monkeypatch, *words)
    texts = [row for _, row in rows if "augment" in row]
    assert len(texts) == 1 and text in f"{texts[0]}$"


OWN_MODULE = """
from lightning.pytorch import LightningDataModule

class Data(LightningDataModule):
    num_classes, class_names, multilabel, batch_size = 2, ["a", "b"], False, 8
    counts = {split: {"a": 1, "b": 1} for split in ("train", "val", "test")}

    def train_dataloader(self): ...
    def val_dataloader(self): ...
    def test_dataloader(self): ...
"""


def test_of_a_data_module_of_the_user_the_plan_does_not_know_the_augmentation(tmp_path, monkeypatch):
    (tmp_path / "augmenting.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    rows, _ = planned(tmp_path, monkeypatch, *LARGE, "data._target_=augmenting.Data")
    (text,) = [text for name, text in rows if name == "training"]
    assert "augmentation as in your data module" in text and "no augmentation" not in text


def test_few_validation_images_are_noted_where_they_choose_the_epoch(tmp_path, monkeypatch):
    few = ("data.val_fraction=0.01", "data.split_seed=1")

    def notes(*words):
        rows, _ = planned(tmp_path, monkeypatch, *few, *words)
        return [text for name, text in rows if name == "note" and text.startswith("val has only ")]

    (note,) = notes(*SMALL)
    assert "so the choice of the best epoch is rough" in note and note.endswith("; head=linear_probe needs no such choice")
    (note,) = notes(*LARGE)
    assert note.endswith("or callbacks.best=null to keep the weights of the last epoch")
    assert not notes(*SMALL, "callbacks.best=null") and not notes("scenario=small_similar") and not notes(*SMALL, "data.val_fraction=0.2")


@pytest.mark.parametrize(("fraction", "few"), [(0.01, True), (0.2, False)])
def test_the_plan_notes_few_test_images(fraction, few, tmp_path, monkeypatch):
    rows, _ = planned(tmp_path, monkeypatch, "scenario=small_similar", f"data.test_fraction={fraction}")
    assert any(name == "note" and text.startswith("test has only 21 images: ") for name, text in rows) == few


@pytest.mark.parametrize(("number", "text"), [(99, "0.83 to 0.94"), (40, "0.77 to 0.96"), (1, "1 image: "), (100, None), (0, None)])
def test_the_note_on_few_test_images_ends_at_a_hundred(number, text):
    data = SimpleNamespace(counts={"test": {"ants": number}}, multilabel=False)
    notes = list(few_test_note(data, "images"))
    assert len(notes) == (text is not None) and all(text in note for note in notes)
    data.multilabel = True
    assert not list(few_test_note(data, "images"))


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"ants": 2, "bees": 28}, "fewer than 5 images of ants (2): "),
        ({"ants": 4, "bees": 1}, "of bees (1), ants (4): "),
        ({"ants": 5, "bees": 0}, None),
    ],
)
def test_classes_with_few_test_images_are_noted(counts, text):
    notes = list(few_of_class_note(SimpleNamespace(counts={"test": counts}), "images"))
    assert len(notes) == (text is not None) and all(text in note for note in notes)


def test_the_estimate_says_what_takes_the_time_and_that_stored_features_take_less():
    cached, uncached = (OmegaConf.create({"cache": {"folder": folder}, "checkpoint": "full"}) for folder in ("cache", None))
    plan = Plan((), (), (), ())
    text = estimate_text(cached, plan, (600.0, 120.0), RunFacts("CPU", has_baseline=True))
    assert text.startswith("about 10 min (the linear probe before training 2 min, training 8 min), less where features are stored ")
    assert estimate_text(uncached, plan, (600.0, 0.0), RunFacts("CPU", trains=False)) == "about 10 min"


def class_weight_notes(counts, loss, *, multilabel=False, final=False, recipe="finetune"):
    data = SimpleNamespace(counts={"train": counts}, multilabel=multilabel)
    return list(class_weight_note(OmegaConf.create({"loss": loss, "final": final, "recipe": recipe}), data, "images"))


def test_a_class_with_a_quarter_of_the_images_of_another_is_noted_with_the_two_remedies():
    plain = {"class_weights": None}
    (note,) = class_weight_notes({"ants": 11, "bees": 67}, plain)
    assert "class ants has only 11 training images, another one 67: look at its recall and at macro F1 too; to give" in note
    assert "--prior balanced" in note and "loss.class_weights=balanced" in note
    (final,) = class_weight_notes({"ants": 11, "bees": 67}, plain, final=True)
    assert "another one 67: to give" in final and "F1" not in final and "--prior balanced" in final  # a final run has no scores
    (probe,) = class_weight_notes({"ants": 11, "bees": 67}, plain, recipe="probe")
    assert probe.endswith("another one 67: to give all classes the same weight, set loss.class_weights=balanced")  # it saves no network
    assert class_weight_notes({"ants": 20, "bees": 67}, plain) == []
    assert class_weight_notes({"ants": 11, "bees": 67}, {}) == []  # a loss without weights
    assert class_weight_notes({"ants": 11, "bees": 67}, plain, multilabel=True) == []


def test_a_run_with_class_weights_notes_that_its_losses_are_weighted():
    (note,) = class_weight_notes({"ants": 11, "bees": 67}, {"class_weights": "balanced"})
    assert note.endswith("do not compare them with the losses of a run without these weights")
