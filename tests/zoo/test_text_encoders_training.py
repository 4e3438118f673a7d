"""Training with text encoders: freezing, features and resuming give the same weights as for images; the command line runs."""

import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import warm
from lanes import nightly
from lightning_net import Stop
from paths import ROOT
from text_inputs import DEBERTA, MODERNBERT, minilm, save_model, trec, words, write_csv

from ftlit import FeatureData, FineTuner, LastCheckpoint, SeedEachStep, StagedFinetuning, load
from ftlit.finetuning.presets import all_at_once, head_only, head_then_all, top_down
from ftlit.lit.datamodules.text_sources import text_csv_data
from ftlit.models.heads import LinearHead
from ftlit.zoo.text_encoders import load_bert

pytestmark = [pytest.mark.e2e, pytest.mark.zoo]

pytest.importorskip("transformers")
LAYERS = ("embeddings", "encoder.0", "encoder.1", "pooler")
SCHEDULES = {
    "head only": partial(head_only),
    "frozen, then the rest": partial(head_then_all, epoch=1, freeze_embeddings=True, freeze_layers="0"),
    "top down": partial(top_down),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("texts") / "texts.csv", words(60))


def fit(data, schedule, layers, folder, epochs=5, resume_from=None, stop=None, last=None, **settings):
    """Train a module and return it; dropout depends on the step."""
    torch.manual_seed(0)
    backbone = load_bert(str(folder), max_length=12)
    module = FineTuner(
        backbone, LinearHead(16, 2), num_classes=2, optimizer=partial(torch.optim.AdamW, lr=0.01), lr_scale=schedule(layers).lr_scale
    )
    callbacks = [
        StagedFinetuning(schedule(layers)),
        SeedEachStep(3),
        *([LastCheckpoint(last, every_n_steps=1)] if last else []),
        Stop(stop),
    ]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(accelerator="cpu", callbacks=callbacks, max_epochs=epochs, num_sanity_val_steps=0, **quiet, **settings)
    with nullcontext() if stop is None else pytest.raises(InterruptedError):
        trainer.fit(module, data, ckpt_path=resume_from, weights_only=False)
    return module


def distance(a: torch.nn.Module, b: torch.nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((x - y).detach().abs().max()) for x, y in pairs)


@pytest.mark.parametrize(("kind", "settings"), {"modernbert": MODERNBERT, "deberta-v2": DEBERTA}.items())
def test_other_encoders_train_from_features_as_from_texts(kind, settings, texts, tmp_path):
    folder = save_model(tmp_path / "model", kind, **settings)
    backbone = load_bert(str(folder), max_length=12)
    schedule = partial(head_then_all, epoch=1, freeze_embeddings=True, freeze_layers="0")
    from_texts = fit(text_csv_data(backbone.input_spec, csv=texts), schedule, backbone.cuts, folder, epochs=3, precision="64-true")
    features = FeatureData(text_csv_data(backbone.input_spec, csv=texts), tmp_path / "features", pooled=True)
    from_features = fit(features, schedule, backbone.cuts, folder, epochs=3, precision="64-true")
    assert distance(from_texts, from_features) < 1e-9
    changed = {cut for cut in backbone.cuts if distance(from_texts.backbone.get_submodule(cut), backbone.get_submodule(cut)) > 0}
    assert changed == {*backbone.cuts[2:]}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_training_from_features_gives_the_weights_of_training_from_texts(folder, texts, tmp_path, schedule):
    spec, layers = load_bert(str(folder), max_length=12).input_spec, LAYERS
    from_texts = fit(text_csv_data(spec, csv=texts), schedule, layers, folder, precision="64-true")
    features = FeatureData(text_csv_data(spec, csv=texts), tmp_path, pooled=True)
    from_features = fit(features, schedule, layers, folder, precision="64-true")
    assert distance(from_texts, from_features) < 1e-9
    stages = schedule(layers).stages
    plan = features.plan(from_features, schedule(layers), from_features.trainer)
    assert [each.specs[-1].cut if each.specs else None for each in plan] == {
        1: ["pooler"], 2: ["pooler", "encoder.0"], 5: ["pooler", "encoder.1", "encoder.0", "embeddings", None]
    }[len(stages)]  # fmt: skip


def test_frozen_layers_keep_their_weights_and_all_others_change(folder, texts):
    spec = load_bert(str(folder), max_length=12).input_spec
    schedule = partial(all_at_once, freeze_embeddings=True, freeze_layers=[1], decay=0.5)
    module = fit(text_csv_data(spec, csv=texts), schedule, LAYERS, folder, epochs=1)
    start = load_bert(str(folder), max_length=12)
    changed = {layer for layer in LAYERS if distance(module.backbone.get_submodule(layer), start.get_submodule(layer)) > 0}
    assert changed == {"encoder.0", "pooler"}
    rates = {group["name"]: group["lr"] for group in module.optimizers().optimizer.param_groups}
    assert rates["backbone.embeddings"] == 0.5 * rates["backbone.encoder.0"] == 0.125 * rates["backbone.pooler"]


@pytest.mark.parametrize("step", nightly([1, 3, 5], [1, 5]))
def test_a_resumed_run_gives_the_same_weights_bit_for_bit(folder, texts, tmp_path, step):
    spec = load_bert(str(folder), max_length=12).input_spec

    def run(last, **how):
        return fit(
            FeatureData(text_csv_data(spec, csv=texts), tmp_path / "features", pooled=True),
            partial(top_down),
            LAYERS,
            folder,
            last=last,
            **how,
        )

    whole = run(tmp_path / "whole.ckpt")
    run(tmp_path / "last.ckpt", stop=step)
    assert distance(run(tmp_path / "last.ckpt", resume_from=tmp_path / "last.ckpt"), whole) == 0


def train(run: Path, folder: Path, texts: Path, *overrides: str) -> str:
    """Run train.py; return its output."""
    command = [
        f"backbone.name={folder}",
        "backbone=bert",
        "data=text_csv",
        f"data.csv={texts}",
        "trainer=cpu",
        "report=false",
        *overrides,
        f"hydra.run.dir={run}",
    ]
    done = warm.run([sys.executable, ROOT / "train.py", *command])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line_freezes_the_named_layers(folder, texts, tmp_path):
    overrides = [
        "scenario=large_similar",
        "trainer.max_epochs=1",
        "schedule.freeze_embeddings=true",
        "schedule.freeze_layers=0,1",
        "doctor=strict",
    ]
    message = train(tmp_path / "run", folder, texts, "backbone.max_length=12", *overrides)
    assert "all but embeddings, encoder.0, encoder.1" in message and "8 tokens at most" in message
    assert "reads features at encoder.1" in message


def test_the_probe_recipe_reports_each_cut(folder, texts, tmp_path):
    message = train(
        tmp_path / "run", folder, texts, "backbone.max_length=12", "recipe=probe", "probe.poolings=[average,max]", "report=true"
    )
    assert ">test texts<" in (tmp_path / "run/report.html").read_text()
    assert all(word in message for word in ("embeddings", "encoder.1", "pooler", "max, 16"))
    (result,) = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test/accuracy"] > 0.6  # the first word is the class, of a handful of texts


def test_a_modernbert_is_probed_trained_and_predicts(texts, tmp_path):
    folder = save_model(tmp_path / "model", "modernbert", **MODERNBERT)
    message = train(tmp_path / "probe", folder, texts, "backbone.max_length=12", "recipe=probe")
    assert all(word in message for word in ("embeddings", "encoder.2", "final_norm"))
    train(tmp_path / "run", folder, texts, "backbone.max_length=12", "scenario=large_similar", "trainer.max_epochs=1")
    assert len(load(tmp_path / "run")(["a b c", "b c"])) == 2


@pytest.mark.parametrize(("options", "row", "shape"), [
    (["backbone.pooling=class_token_mean", "head=linear"], "at cut encoder.1, pooled by class_token_mean, 32 features", (2, 32)),
    (["head=attention"], "at cut encoder.1, 16 features for the head (AttentionHead)", (16,)),
])  # fmt: skip
def test_a_pooling_of_tokens_is_planned_trained_resumed_and_loaded(options, row, shape, folder, texts, tmp_path):
    how = ("backbone.max_length=12", "backbone.cut=encoder.1", *options, "scenario=large_similar", "trainer.max_epochs=3")
    message = " ".join(train(tmp_path / "run", folder, texts, *how).split())
    assert row in message and "reads features at encoder.1" in message
    network = load(tmp_path / "run")
    assert shape in [tuple(parameter.shape) for parameter in network.head.parameters()]
    before = network(["a b c", "b c"])
    (tmp_path / "run/result.json").unlink()
    train(tmp_path / "run", folder, texts, *how, "resume=true")
    assert load(tmp_path / "run")(["a b c", "b c"]) == before


@pytest.mark.slow
def test_a_real_encoder_learns_real_questions(tmp_path):
    folder = minilm()
    texts, test = write_csv(tmp_path / "train.csv", trec("train", 400)), write_csv(tmp_path / "test.csv", trec("test", 100))
    data = (f"data.test_csv={test}", "backbone.max_length=32", "backbone.cut=encoder.5")
    schedule = ("scenario=large_similar", "trainer.max_epochs=1", "schedule.freeze_embeddings=true", "schedule.freeze_layers=0-3")
    train(tmp_path, folder, texts, *data, *schedule)
    assert json.loads((tmp_path / "result.json").read_text())["test/accuracy"] > 0.8
