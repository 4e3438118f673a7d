"""Encoders of texts: taken apart without loss, padding that changes nothing, and all that images can do, from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from texts_of import SMALL, WORDS, minilm, save_model, save_tokenizer, trec, words, write_csv

from ftlit.errors import UserError
from ftlit.fingerprint import fingerprint, prefixes
from ftlit.pooling import pool
from ftlit.zoo.bert import ENCODERS, Embeddings, load_bert, take_apart

pytest.importorskip("transformers")
ROOT = Path(__file__).parents[1]
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 24}
ELECTRA = {**SMALL, "embedding_size": 8}
PAD = {"roberta": 0, "xlm-roberta": 0, "camembert": 0}


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
def test_law_1_every_kind_taken_apart_is_the_kind_at_every_cut_and_length(kind):
    model, ids = original(kind), batch(9, 5, 9, 1)
    layers = take_apart(model, pad_id=0).layers
    assert list(layers)[:3] == ["embeddings", "encoder.0", "encoder.1"]
    theirs = model(input_ids=ids, attention_mask=ids.ne(0).long(), output_hidden_states=True)
    for wider in (ids, torch.nn.functional.pad(ids, (0, 4))):
        codes = wider
        for name, states in zip(layers, [*theirs.hidden_states, getattr(theirs, "pooler_output", None)], strict=False):
            codes = layers[name](codes)
            if name == "pooler":
                torch.testing.assert_close(codes, states, rtol=1e-5, atol=1e-5)
                continue
            real = wider.ne(0)
            assert codes[~real].eq(0).all() and codes[real].ne(0).any(-1).all()
            torch.testing.assert_close(codes[:, :9][ids.ne(0)], states[ids.ne(0)], rtol=1e-5, atol=1e-5)


def test_codes_of_texts_are_pooled_without_their_padding():
    codes = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [0.0, 0.0]], [[-1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]])
    assert pool(codes, "masked_mean").tolist() == [[2.0, -3.0], [-1.0, 2.0]]
    assert pool(codes, "masked_mean", "max").tolist() == [[3.0, -2.0], [-1.0, 2.0]]
    assert pool(torch.zeros(1, 2, 3), "masked_mean").tolist() == [[0.0] * 3]


def test_all_places_are_computed_where_the_longest_text_is_not_asked_for(folder, monkeypatch):
    backbone, ids = load_bert(str(folder), max_length=10).eval(), batch(10, 3, 5)
    shorter = backbone(ids)
    monkeypatch.setattr("ftlit.zoo.bert._longest", lambda real: real.shape[1])
    torch.testing.assert_close(backbone(ids), shorter)


def test_gradients_flow_through_padding_without_a_nan(folder):
    backbone = load_bert(str(folder), max_length=10, cut="encoder.1")
    torch.autograd.backward(backbone.pool(backbone(batch(10, 1, 7))).sum())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_an_encoder_is_loaded_from_a_folder_cut_and_drawn_anew(folder):
    backbone = load_bert(str(folder), max_length=12)
    assert backbone.cuts == ("embeddings", "encoder.0", "encoder.1", "pooler") == backbone.learned
    assert backbone.code_shapes["encoder.1"] == (12, 16) and backbone.num_features == 16
    assert load_bert(str(folder), max_length=12, cut=-2).cuts[-1] == "encoder.1"
    torch.manual_seed(3)
    drawn = load_bert(str(folder), max_length=12, reinit=["encoder.1"])
    assert fingerprint(drawn.get_submodule("encoder.0")) == fingerprint(backbone.get_submodule("encoder.0"))
    assert fingerprint(drawn.get_submodule("encoder.1")) != fingerprint(backbone.get_submodule("encoder.1"))
    assert load_bert(str(folder), max_length=12, weights=None).origin == "random start"
    assert not load_bert(str(folder), max_length=12, hidden_dropout_prob=0.0).embeddings.block.dropout.p


def test_the_same_network_in_another_folder_has_the_same_codes_and_one_weight_changes_them(folder, tmp_path):
    found = [prefixes(dict(load_bert(str(where), max_length=12).items())) for where in (folder, save_model(tmp_path))]
    assert found[0] == found[1]
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["encoder.layer.0.output.dense.bias"][0] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    other = prefixes(dict(load_bert(str(tmp_path), max_length=12).items()))
    assert [cut for cut in other if other[cut] == found[0][cut]] == ["embeddings"]


def test_weights_of_a_network_with_a_head_by_old_names_in_parts_and_without_pooler(folder, tmp_path):
    save_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tensors = load_file(folder / "model.safetensors")
    old = {f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
           for name, tensor in tensors.items() if "pooler" not in name}  # fmt: skip
    old |= {"cls.predictions.bias": torch.ones(20), "bert.embeddings.position_ids": torch.arange(24)[None]}
    half = list(old)[::2]
    torch.save({name: old[name] for name in half}, tmp_path / "pytorch_model-1.bin")
    torch.save({name: tensor for name, tensor in old.items() if name not in half}, tmp_path / "pytorch_model-2.bin")
    backbone = load_bert(str(tmp_path), max_length=12).eval()
    assert backbone.cuts == ("embeddings", "encoder.0", "encoder.1")
    ids = batch(12, 3, 9)
    torch.testing.assert_close(backbone(ids), load_bert(str(folder), max_length=12).eval().upto(-2)(ids))


def test_what_cannot_be_loaded_is_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    bare = save_tokenizer(tmp_path / "bare")
    (bare / "config.json").write_text((folder / "config.json").read_text())
    for given, settings, line in [
        (tmp_path / "nowhere", {}, "no folder"),
        (tmp_path / "gpt2", {}, "is of type gpt2, and backbone=bert takes encoders of these: bert"),
        (tmp_path, {}, "no config of a network"),
        (bare, {}, "no weights in"),
        (folder, {"max_length": 25}, "this encoder knows 24 positions, give 24 or less"),
        (folder, {"hiden_size": 3}, "did you mean 'hidden_size'"),
        (folder, {"vocab_size": 7}, "has 20 tokens, and the encoder knows 7"),
        (folder, {"intermediate_size": 64}, "the weights do not fit this network"),
        (folder, {"cut": "encodr.1"}, "did you mean 'encoder.1'"),
        (folder, {"weights": tmp_path / "other.bin"}, "no weights file"),
    ]:
        with pytest.raises(UserError) as caught:
            load_bert(str(given), **{"max_length": 8, **settings})
        assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_name_that_the_hub_has_not_and_a_missing_package_are_one_line(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network\nat all")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match="is neither a folder here nor in the hub's cache, and cannot be downloaded: no network at all"):
        load_bert("nobody/nothing")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'needs the package transformers: pip install "ftlit\[text\]"'):
        load_bert("nobody/nothing")


def test_a_network_on_the_hub_is_taken_from_its_cache(folder, monkeypatch):
    asked = []

    def cached(name, *, allow_patterns, local_files_only=False):
        asked.append((name, local_files_only))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    assert load_bert("somebody/small", max_length=8).origin == "somebody/small"
    assert asked == [("somebody/small", True)]


def test_images_are_refused(folder):
    with pytest.raises(UserError, match="takes token ids"):
        load_bert(str(folder), max_length=8)(torch.zeros(1, 3, 4, 4))
    assert isinstance(load_bert(str(folder), max_length=8).embeddings, Embeddings)


def train(run: Path, folder: Path, texts: Path, *words: str) -> str:
    """`train.py` on one thread; what it printed."""
    command = ["backbone=bert", f"backbone.name={folder}", "backbone.max_length=12", "data=text_csv", f"data.csv={texts}"]
    given = [*command, "trainer=cpu", f"cache.folder={run.parent / 'codes'}", *words, f"hydra.run.dir={run}"]
    done = subprocess.run([sys.executable, ROOT / "train.py", *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], part: str) -> bool:
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items() if part in name)


def test_what_is_frozen_stays_through_a_run_and_the_rest_moves(folder, texts, tmp_path):
    words = ["scenario=large_similar", "trainer.max_epochs=2", "schedule.freeze_embeddings=true", "schedule.freeze_layers=0,1"]
    said = train(tmp_path / "run", folder, texts, *words, "backbone.cut=pooler", "doctor=strict", "schedule=all_at_once")
    start = {f"backbone.{name}": tensor for name, tensor in load_bert(str(folder), max_length=12).state_dict().items()}
    end = weights(tmp_path / "run")
    assert "all but embeddings, encoder.0, encoder.1" in said and "8 tokens at most" in said
    for part, stays in (("backbone.embeddings", True), ("backbone.encoder.0", True), ("backbone.encoder.1", True), ("backbone.pooler", False)):
        assert same({name: tensor for name, tensor in start.items() if name.startswith(part)}, end, part) == stays


def test_law_8_a_head_trained_from_codes_is_the_head_trained_through_the_frozen_encoder(folder, texts, tmp_path):
    words = ["scenario=small_similar", "head=linear", "trainer.max_epochs=2", "backbone.cut=encoder.1", "trainer.precision=64-true"]
    assert "computed in" in train(tmp_path / "codes", folder, texts, *words)
    train(tmp_path / "texts", folder, texts, *words, "cache=none", f"paths.cache={tmp_path}")
    mine, theirs = weights(tmp_path / "codes"), weights(tmp_path / "texts")
    torch.testing.assert_close(mine["head.linear.weight" if "head.linear.weight" in mine else "head.weight"],
                               theirs["head.linear.weight" if "head.linear.weight" in theirs else "head.weight"], rtol=1e-9, atol=1e-9)  # fmt: skip


def test_layers_join_in_from_the_top_each_stage_from_its_codes_and_a_run_goes_on(folder, texts, tmp_path):
    words = ["scenario=large_similar", "schedule=top_down", "head=linear", "trainer.max_epochs=5", "cache.max_gb=1"]
    said = train(tmp_path / "whole", folder, texts, *words)
    assert "head + encoder.1 and above" in said and "stage 4" in said
    assert "decay" not in said and said.count("backbone.encoder.0") >= 1
    broken = subprocess.run(
        [sys.executable, "-c", STOPPED.format(root=ROOT), "backbone=bert", f"backbone.name={folder}", "backbone.max_length=12", "data=text_csv",
         f"data.csv={texts}", "trainer=cpu", f"cache.folder={tmp_path / 'codes'}", *words, f"hydra.run.dir={tmp_path / 'broken'}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert broken.returncode == 9, broken.stderr
    train(tmp_path / "broken", folder, texts, *words, "resume=true")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"), "")


STOPPED = """
import os, sys
from ftlit.lit.finetuner import FineTuner
step, seen = FineTuner.training_step, []
def dying(self, batch, batch_idx):
    if self.current_epoch == 3 and batch_idx == 1:
        os._exit(9)
    return step(self, batch, batch_idx)
FineTuner.training_step = dying
sys.argv[0] = "{root}/train.py"
from ftlit.recipes.main import main
main()
"""


def test_probes_tell_each_cut_apart(folder, texts, tmp_path):
    said = train(tmp_path / "run", folder, texts, "recipe=probe", "probe.poolings=[average,max]")
    assert all(word in said for word in ("embeddings", "encoder.1", "pooler", "max, 16"))
    (result,) = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test/accuracy"] > 0.8  # the class is a word


def test_texts_and_images_are_not_mixed_up(folder, texts, tmp_path):
    for words, line in (
        (["backbone=bert", f"backbone.name={folder}", "backbone.max_length=12"], "this network takes texts, and these data are images"),
        (["data=text_csv", f"data.csv={texts}"], "this network takes images, and these data are texts"),
        (["backbone=bert", f"backbone.name={folder}", "data=text_csv", f"data.csv={texts}", "data.mix=mixup"], "no option 'data.mix'"),
    ):
        given = [*words, "trainer=cpu", f"hydra.run.dir={tmp_path}"]
        done = subprocess.run([sys.executable, ROOT / "train.py", *given], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1


@torch.no_grad()
def test_a_real_encoder_gives_what_transformers_gives():
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
    words = [f"data.test_csv={test}", "backbone.max_length=32", "backbone.cut=encoder.5"]
    train(tmp_path / "small", folder, texts, "scenario=small_similar", *words)
    frozen = ["scenario=large_similar", "trainer.max_epochs=1", "schedule.freeze_embeddings=true", "schedule.freeze_layers=0-3"]
    train(tmp_path / "large", folder, texts, *frozen, *words)
    for run in ("small", "large"):
        assert json.loads((tmp_path / run / "result.json").read_text())["test/accuracy"] > 0.6
    assert len(WORDS) == 20
