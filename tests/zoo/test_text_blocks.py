"""ModernBERT and DeBERTa: loaded from a folder each layer is whole by itself, and padding gives no NaN."""

import pytest
import torch
from invariant_1 import check_cuts
from safetensors.torch import load_file, save_file
from text_inputs import DEBERTA, MODERNBERT, save_model

from ftlit.identity.fingerprint import prefixes
from ftlit.zoo.text_encoders import load_bert

pytestmark = pytest.mark.zoo

pytest.importorskip("transformers")
KINDS = {"modernbert": MODERNBERT, "deberta-v2": DEBERTA}
IDS = torch.tensor([[2, 5, 6, 7, 8, 9, 10, 3], [2, 4, 3, 0, 0, 0, 0, 0]])


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), request.param, **KINDS[request.param])


@torch.no_grad()
def test_a_folder_gives_the_network_that_transformers_loads_at_every_cut(folder):
    from transformers import AutoModel

    backbone = load_bert(str(folder), max_length=8).eval()
    theirs = AutoModel.from_pretrained(folder).eval()(input_ids=IDS, attention_mask=IDS.ne(0).long()).last_hidden_state
    torch.testing.assert_close(check_cuts(backbone, IDS)[IDS.ne(0)], theirs[IDS.ne(0)], rtol=0, atol=1e-5)
    last = ["encoder.2", "final_norm"] if "modernbert" in (folder / "config.json").read_text() else ["encoder.1"]
    assert list(backbone.cuts)[-len(last) :] == last and backbone.layers_with_parameters == backbone.cuts


def test_weights_saved_by_the_layers_own_names_are_read_again(folder, tmp_path):
    torch.manual_seed(1)
    backbone = load_bert(str(folder), weights=None, max_length=8)
    save_file({name: tensor.clone() for name, tensor in backbone.state_dict().items()}, tmp_path / "own.safetensors")
    again = load_bert(str(folder), weights=str(tmp_path / "own.safetensors"), max_length=8)
    assert prefixes(dict(again.items())) == prefixes(dict(backbone.items()))


def test_gradients_with_padding_are_finite(folder):
    backbone = load_bert(str(folder), max_length=12)
    torch.autograd.backward(backbone.pool(backbone(torch.nn.functional.pad(IDS, (0, 4)))).square().sum())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


@torch.no_grad()
def test_a_text_has_the_same_features_beside_a_longer_one(folder):
    backbone = load_bert(str(folder), max_length=8).eval()
    torch.testing.assert_close(backbone(IDS)[1:, :3], backbone(IDS[1:, :3]), rtol=0, atol=1e-5)


def test_each_layer_of_a_deberta_has_its_own_relative_positions(tmp_path):
    save_model(tmp_path, "deberta-v2", **DEBERTA)
    shared = load_file(tmp_path / "model.safetensors")["encoder.rel_embeddings.weight"]
    torch.manual_seed(3)
    backbone = load_bert(str(tmp_path), max_length=8, reinit=["encoder.1"])
    first, second = (backbone.get_submodule(f"encoder.{i}").block.block.rel_embeddings.weight for i in range(2))
    assert torch.equal(first, shared) and not torch.equal(second, shared)  # the second layer was reinitialized, with its positions
    whole = load_bert(str(tmp_path), max_length=8)
    assert torch.equal(whole.get_submodule("encoder.1").block.block.rel_embeddings.weight, shared)
    tensors = [tensor.data_ptr() for tensor in whole.parameters()]
    assert len(tensors) == len(set(tensors))
