"""Text encoders: layers equal those of transformers, padding changes nothing, and loading errors are one line."""

import sys

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from text_inputs import DEBERTA, MODERNBERT, SMALL, minilm, save_model, save_tokenizer, trec

from ftlit import InputSpec, TextSpec
from ftlit.errors import UserError
from ftlit.identity.fingerprint import fingerprint, prefixes
from ftlit.models.pooling import pool
from ftlit.recipes.checks.validate import check_input
from ftlit.zoo.text_encoders import TokenEmbeddings, load_bert, take_apart
from ftlit.zoo.weights.transformers_files import ENCODERS

pytestmark = pytest.mark.zoo

pytest.importorskip("transformers")
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 24}
ELECTRA = {**SMALL, "embedding_size": 8}
DEBERTA_V2 = {**DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"}
PLAIN_DEBERTA = {**SMALL, "relative_attention": False}
SETTINGS = {"distilbert": DISTIL, "electra": ELECTRA, "modernbert": MODERNBERT, "deberta-v2": DEBERTA}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def original(kind: str, settings: dict):
    """Return a random encoder of transformers in evaluation mode. No bias or shift is zero, so that every part affects the output."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(1)
    model = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=20, pad_token_id=0, **settings)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch(length: int, *lengths: int) -> torch.Tensor:
    """Return ids of texts of these lengths, padded to `length`."""
    torch.manual_seed(2)
    ids = torch.zeros(len(lengths), length, dtype=torch.int64)
    for row, own in zip(ids, lengths, strict=True):
        row[:own] = torch.randint(1, 20, (own,))
    return ids


OF_EACH_TYPE = [(kind, SETTINGS.get(kind, SMALL)) for kind in ENCODERS]


@pytest.mark.parametrize(("kind", "settings"), [*OF_EACH_TYPE, ("deberta-v2", DEBERTA_V2), ("deberta-v2", PLAIN_DEBERTA)])
@torch.no_grad()
def test_layers_of_every_encoder_type_equal_the_original_at_every_cut_and_length(kind, settings):
    model, ids = original(kind, settings), batch(9, 5, 9, 1)
    layers = take_apart(model, pad_id=0).layers
    encoder = [f"encoder.{i}" for i in range(settings.get("num_hidden_layers", 2))]
    assert list(layers)[: len(encoder) + 1] == ["embeddings", *encoder]
    states = states_of(model, ids)
    for wider in (ids, torch.nn.functional.pad(ids, (0, 4))):
        features = wider
        for name, own in zip(layers, states, strict=True):
            features = layers[name](features)
            if name == "pooler":
                torch.testing.assert_close(features, own, rtol=1e-5, atol=1e-5)
                continue
            real = wider.ne(0)
            assert features[~real].eq(0).all() and features[real].ne(0).any(-1).all()
            torch.testing.assert_close(features[:, :9][ids.ne(0)], own[ids.ne(0)], rtol=1e-5, atol=1e-5)


def states_of(model, ids: torch.Tensor) -> list[torch.Tensor]:
    """Return the output of the embeddings, of each layer of transformers, and what follows."""
    found = model(input_ids=ids, attention_mask=ids.ne(0).long(), output_hidden_states=True)
    states, final = [*found.hidden_states], getattr(found, "pooler_output", None)
    if model.config.model_type == "modernbert":  # its last state is after the norm
        kept = []
        hook = model.layers[-1].register_forward_hook(lambda _, given, output: kept.append(output))
        model(input_ids=ids, attention_mask=ids.ne(0).long())
        hook.remove()
        return [*states[:-1], kept[0], states[-1]]
    return states if final is None else [*states, final]


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
        (tmp_path / "nowhere", {}, "no such folder"),
        (tmp_path / "gpt2", {}, "has the type gpt2; backbone=bert accepts encoders of these types: bert"),
        (tmp_path, {}, "cannot read the config"),
        (bare, {}, "no weights in"),
        (folder, {"max_length": 25}, "this encoder has 24 positions; give 24 or less"),
        (folder, {"hiden_size": 3}, "did you mean 'hidden_size'"),
        (folder, {"vocab_size": 7}, "has 20 tokens, but the encoder has only 7"),
        (folder, {"intermediate_size": 64}, "do not fit this network of "),
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
    with pytest.raises(
        UserError, match=r"is not a folder, and the download from Hugging Face failed \(no network at all\): check the name"
    ):
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
    with pytest.raises(UserError, match="needs token ids"):
        load_bert(str(folder), max_length=8)(torch.zeros(1, 3, 4, 4))
    assert isinstance(load_bert(str(folder), max_length=8).embeddings, TokenEmbeddings)


def test_mixing_texts_and_images_is_an_error(folder):
    texts, images = TextSpec(str(folder)), InputSpec()
    for option, spec, line in (
        ("digits_data", texts, "the backbone takes texts, but the data are images: give data=text_csv"),
        ("csv_data", texts, "the data are images"),
        ("text_csv_data", images, "the backbone takes images, but the data are texts: give backbone=bert"),
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
