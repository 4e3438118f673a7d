"""Encoders of texts: taken apart without loss, padding that changes nothing, and all that images can do, from the command line."""

import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import warm
from omegaconf import OmegaConf
from paths import ROOT
from safetensors.torch import load_file, save_file
from text_inputs import SMALL, minilm, save_model, save_tokenizer, trec, words, write_csv

from ftlit import FeatureData, FineTuner, InputSpec, LastCheckpoint, SeedEachStep, StagedFinetuning, TextSpec
from ftlit.errors import UserError
from ftlit.finetuning.presets import all_at_once, head_only, head_then_all, top_down
from ftlit.fingerprint import fingerprint, prefixes
from ftlit.lit.datamodules.text_sources import text_csv_data
from ftlit.models.heads import LinearHead
from ftlit.models.pooling import pool
from ftlit.recipes.config.validate import check_input
from ftlit.zoo.text_encoders import TokenEmbeddings, load_bert, take_apart
from ftlit.zoo.transformers_files import ENCODERS

pytestmark = [pytest.mark.e2e, pytest.mark.zoo]

pytest.importorskip("transformers")
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 24}
ELECTRA = {**SMALL, "embedding_size": 8}
LAYERS = ("embeddings", "encoder.0", "encoder.1", "pooler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("texts") / "texts.csv", words(60))


def original(kind: str):
    """An encoder of transformers at random, in evaluation mode, all of whose parts count: no bias or shift is zero."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(1)
    settings = {"distilbert": DISTIL, "electra": ELECTRA}.get(kind, SMALL)
    model = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=20, pad_token_id=0, **settings)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch(length: int, *lengths: int) -> torch.Tensor:
    """Ids of texts of these lengths, filled up to `length`."""
    torch.manual_seed(2)
    ids = torch.zeros(len(lengths), length, dtype=torch.int64)
    for row, own in zip(ids, lengths, strict=True):
        row[:own] = torch.randint(1, 20, (own,))
    return ids


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_layers_of_every_encoder_type_equal_the_original_at_every_cut_and_length(kind):
    model, ids = original(kind), batch(9, 5, 9, 1)
    layers = take_apart(model, pad_id=0).layers
    assert list(layers)[:3] == ["embeddings", "encoder.0", "encoder.1"]
    theirs = model(input_ids=ids, attention_mask=ids.ne(0).long(), output_hidden_states=True)
    for wider in (ids, torch.nn.functional.pad(ids, (0, 4))):
        features = wider
        for name, states in zip(layers, [*theirs.hidden_states, getattr(theirs, "pooler_output", None)], strict=False):
            features = layers[name](features)
            if name == "pooler":
                torch.testing.assert_close(features, states, rtol=1e-5, atol=1e-5)
                continue
            real = wider.ne(0)
            assert features[~real].eq(0).all() and features[real].ne(0).any(-1).all()
            torch.testing.assert_close(features[:, :9][ids.ne(0)], states[ids.ne(0)], rtol=1e-5, atol=1e-5)


def test_text_features_are_pooled_without_padding():
    features = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [0.0, 0.0]], [[-1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]])
    assert pool(features, "masked_mean").tolist() == [[2.0, -3.0], [-1.0, 2.0]]
    assert pool(features, "masked_mean", "max").tolist() == [[3.0, -2.0], [-1.0, 2.0]]
    assert pool(torch.zeros(1, 2, 3), "masked_mean").tolist() == [[0.0] * 3]


def test_skipping_common_padding_does_not_change_the_output(folder, monkeypatch):
    backbone, ids = load_bert(str(folder), max_length=10).eval(), batch(10, 3, 5)
    shorter = backbone(ids)
    monkeypatch.setattr("ftlit.zoo.text_encoders._longest", lambda real: real.shape[1])
    torch.testing.assert_close(backbone(ids), shorter)


def test_gradients_with_padding_are_finite(folder):
    backbone = load_bert(str(folder), max_length=10, cut="encoder.1")
    torch.autograd.backward(backbone.pool(backbone(batch(10, 1, 7))).sum())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_an_encoder_is_loaded_from_a_folder_cut_and_reinitialized(folder):
    backbone = load_bert(str(folder), max_length=12)
    assert backbone.cuts == ("embeddings", "encoder.0", "encoder.1", "pooler") == backbone.layers_with_parameters
    assert backbone.feature_shapes["encoder.1"] == (12, 16) and backbone.num_features == 16
    assert load_bert(str(folder), max_length=12, cut=-2).cuts[-1] == "encoder.1"
    torch.manual_seed(3)
    reinitialized = load_bert(str(folder), max_length=12, reinit=["encoder.1"])
    assert fingerprint(reinitialized.get_submodule("encoder.0")) == fingerprint(backbone.get_submodule("encoder.0"))
    assert fingerprint(reinitialized.get_submodule("encoder.1")) != fingerprint(backbone.get_submodule("encoder.1"))
    assert load_bert(str(folder), max_length=12, weights=None).origin.describe() == "random start"
    assert not load_bert(str(folder), max_length=12, hidden_dropout_prob=0.0).embeddings.block.dropout.p


def test_prefixes_depend_on_the_weights_and_not_on_the_folder(folder, tmp_path):
    found = [prefixes(dict(load_bert(str(where), max_length=12).items())) for where in (folder, save_model(tmp_path))]
    assert found[0] == found[1]
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["encoder.layer.0.output.dense.bias"][0] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    other = prefixes(dict(load_bert(str(tmp_path), max_length=12).items()))
    assert [cut for cut in other if other[cut] == found[0][cut]] == ["embeddings"]


def test_weights_load_from_several_files_with_old_names_a_head_and_no_pooler(folder, tmp_path):
    save_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tensors = load_file(folder / "model.safetensors")
    old = {f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
           for name, tensor in tensors.items() if "pooler" not in name}  # fmt: skip
    old |= {"cls.predictions.bias": torch.ones(20), "bert.embeddings.position_ids": torch.arange(24)[None]}
    half = list(old)[::2]
    torch.save({name: old[name] for name in half}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({name: tensor for name, tensor in old.items() if name not in half}, tmp_path / "pytorch_model-00002-of-00002.bin")
    backbone = load_bert(str(tmp_path), max_length=12).eval()
    assert backbone.cuts == ("embeddings", "encoder.0", "encoder.1")
    ids = batch(12, 3, 9)
    torch.testing.assert_close(backbone(ids), load_bert(str(folder), max_length=12).eval().upto(-2)(ids))


def test_loading_errors_are_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    bare = save_tokenizer(tmp_path / "bare")
    (bare / "config.json").write_text((folder / "config.json").read_text())
    for given, settings, line in [
        (tmp_path / "nowhere", {}, "no folder"),
        (tmp_path / "gpt2", {}, "is of type gpt2; backbone=bert takes encoders of these types: bert"),
        (tmp_path, {}, "cannot read the config"),
        (bare, {}, "no weights in"),
        (folder, {"max_length": 25}, "this encoder has 24 positions, give 24 or less"),
        (folder, {"hiden_size": 3}, "did you mean 'hidden_size'"),
        (folder, {"vocab_size": 7}, "has 20 tokens, and the encoder 7"),
        (folder, {"intermediate_size": 64}, "the weights do not fit this network"),
        (folder, {"cut": "encodr.1"}, "did you mean 'encoder.1'"),
        (folder, {"weights": tmp_path / "other.bin"}, "no weights file"),
    ]:
        with pytest.raises(UserError) as caught:
            load_bert(str(given), **{"max_length": 8, **settings})
        assert line in str(caught.value) and "\n" not in str(caught.value)


def test_errors_for_an_unknown_hub_name_and_a_missing_package_are_one_line(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network\nat all")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match="is neither a folder here nor in the hub's cache, and cannot be downloaded: no network at all"):
        load_bert("nobody/nothing")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'needs the package transformers: pip install "ftlit\[text\]"'):
        load_bert("nobody/nothing")


def test_a_network_of_the_hub_is_loaded_from_its_cache(folder, monkeypatch):
    asked = []

    def cached(name, *, allow_patterns, local_files_only=False):
        asked.append((name, local_files_only))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    assert load_bert("user/small", max_length=8).origin.describe() == "user/small"
    assert asked == [("user/small", True)]


def test_images_as_input_are_an_error(folder):
    with pytest.raises(UserError, match="takes token ids"):
        load_bert(str(folder), max_length=8)(torch.zeros(1, 3, 4, 4))
    assert isinstance(load_bert(str(folder), max_length=8).embeddings, TokenEmbeddings)


SCHEDULES = {
    "head only": partial(head_only),
    "frozen, then the rest": partial(head_then_all, epoch=1, freeze_embeddings=True, freeze_layers="0"),
    "top down": partial(top_down),
}


def fit(data, schedule, layers, folder, epochs=5, goes_on=None, stop=None, last=None, **settings):
    """A run's module; dropout depends on the step."""
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
        trainer.fit(module, data, ckpt_path=goes_on, weights_only=False)
    return module


class Stop(pl.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise InterruptedError


def distance(a: torch.nn.Module, b: torch.nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((x - y).detach().abs().max()) for x, y in pairs)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_training_from_features_gives_the_weights_of_training_from_texts(folder, texts, tmp_path, schedule):
    spec, layers = load_bert(str(folder), max_length=12).input_spec, LAYERS
    from_texts = fit(text_csv_data(spec, csv=texts), schedule, layers, folder, precision="64-true")
    features = FeatureData(text_csv_data(spec, csv=texts), tmp_path, pooled=True)
    from_features = fit(features, schedule, layers, folder, precision="64-true")
    assert distance(from_texts, from_features) < 1e-9
    stages = schedule(layers).stages
    assert [each.spec and each.spec.cut for each in features.plan(from_features, schedule(layers), from_features.trainer)] == {
        1: ["pooler"], 2: ["pooler", "encoder.0"], 5: ["pooler", "encoder.1", "encoder.0", "embeddings", None]
    }[len(stages)]  # fmt: skip


def test_frozen_layers_keep_their_weights_and_all_others_change(folder, texts):
    spec = load_bert(str(folder), max_length=12).input_spec
    schedule = partial(all_at_once, freeze_embeddings=True, freeze_layers=[1], decay=0.5)
    module = fit(text_csv_data(spec, csv=texts), schedule, LAYERS, folder, epochs=1)
    start = load_bert(str(folder), max_length=12)
    moved = {layer for layer in LAYERS if distance(module.backbone.get_submodule(layer), start.get_submodule(layer)) > 0}
    assert moved == {"encoder.0", "pooler"}
    rates = {group["name"]: group["lr"] for group in module.optimizers().optimizer.param_groups}
    assert rates["backbone.embeddings"] == 0.5 * rates["backbone.encoder.0"] == 0.125 * rates["backbone.pooler"]


@pytest.mark.parametrize("step", [1, 3, 5])
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
    assert distance(run(tmp_path / "last.ckpt", goes_on=tmp_path / "last.ckpt"), whole) == 0


def train(run: Path, folder: Path, texts: Path, *words: str) -> str:
    """`train.py`; what it printed."""
    command = [
        f"backbone.name={folder}",
        "backbone=bert",
        "data=text_csv",
        f"data.csv={texts}",
        "trainer=cpu",
        *words,
        f"hydra.run.dir={run}",
    ]
    done = warm.run([sys.executable, ROOT / "train.py", *command])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line_freezes_the_named_layers(folder, texts, tmp_path):
    words = [
        "scenario=large_similar",
        "trainer.max_epochs=1",
        "schedule.freeze_embeddings=true",
        "schedule.freeze_layers=0,1",
        "doctor=strict",
    ]
    message = train(tmp_path / "run", folder, texts, "backbone.max_length=12", *words)
    assert "all but embeddings, encoder.0, encoder.1" in message and "8 tokens at most" in message
    assert "from features at encoder.1" in message


def test_the_probe_recipe_reports_each_cut(folder, texts, tmp_path):
    message = train(tmp_path / "run", folder, texts, "backbone.max_length=12", "recipe=probe", "probe.poolings=[average,max]")
    assert all(word in message for word in ("embeddings", "encoder.1", "pooler", "max, 16"))
    (result,) = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test/accuracy"] > 0.8  # the class is a word


def test_mixing_texts_and_images_is_an_error(folder):
    texts, images = TextSpec(str(folder)), InputSpec()
    for option, spec, line in (
        ("digits_data", texts, "this network takes texts, and these data are images: give data=text_csv"),
        ("csv_data", texts, "these data are images"),
        ("text_csv_data", images, "this network takes images, and these data are texts: give backbone=bert"),
    ):
        module = "text_sources" if option == "text_csv_data" else "image_sources"
        cfg = OmegaConf.create({"data": {"_target_": f"ftlit.lit.datamodules.{module}.{option}"}})
        check_input(cfg, images if spec is texts else texts)
        with pytest.raises(UserError, match=line):
            check_input(cfg, spec)


@torch.no_grad()
def test_a_real_encoder_equals_that_of_transformers():
    from transformers import AutoModel, AutoTokenizer

    folder = minilm()
    sentences = [text for text, _ in trec("test", 8)]
    backbone = load_bert(str(folder), max_length=40).eval()
    assert backbone.cuts == ("embeddings", *(f"encoder.{i}" for i in range(6)), "pooler") and backbone.num_features == 384
    ids = torch.stack([backbone.input_spec.views()[1](text) for text in sentences])
    given = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, truncation=True, max_length=40, return_tensors="pt")
    theirs = AutoModel.from_pretrained(folder).eval()(**given)
    real = ids.ne(0)
    assert torch.equal(ids[real], given.input_ids[given.attention_mask.bool()])
    torch.testing.assert_close(backbone(ids), theirs.pooler_output, rtol=0, atol=1e-5)
    tokens = theirs.last_hidden_state[given.attention_mask.bool()]
    torch.testing.assert_close(backbone.upto("encoder.5")(ids)[real], tokens, rtol=0, atol=1e-5)
    for cut in backbone.cuts:
        torch.testing.assert_close(backbone.after(cut)(backbone.upto(cut)(ids)), backbone(ids), rtol=0, atol=1e-6)


def test_a_real_encoder_learns_real_questions(tmp_path):
    folder = minilm()
    texts, test = write_csv(tmp_path / "train.csv", trec("train", 400)), write_csv(tmp_path / "test.csv", trec("test", 100))
    words = [f"data.test_csv={test}", "backbone.max_length=32", "backbone.cut=encoder.5", "scenario=large_similar", "trainer.max_epochs=1"]
    train(tmp_path, folder, texts, *words, "schedule.freeze_embeddings=true", "schedule.freeze_layers=0-3")
    assert json.loads((tmp_path / "result.json").read_text())["test/accuracy"] > 0.8
