"""Weights are loaded completely or not at all, come from the named source, and no code in a file is executed."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from weights_checks import assert_same

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.models.backbone import Layers
from ftlit.models.weights_origin import WeightsOrigin
from ftlit.zoo import load_backbone
from ftlit.zoo.torchvision_nets import BUILDERS, Net
from ftlit.zoo.weights.weight_sources import WeightSource, read

pytestmark = pytest.mark.zoo


@pytest.fixture
def original():
    """A small network with batch norm and random weights."""
    return models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=7)


def load(path, **settings):
    return load_backbone("shufflenet_v2_x0_5", weights=path, **settings)


def without_classifier(state):
    return {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}


LAYOUTS = {
    "as it is": lambda state: state,
    "without classifier": without_classifier,
    "another classifier": lambda state: without_classifier(state) | {"fc.0.weight": torch.ones(2, 2), "fc.2.bias": torch.ones(3)},
    "DataParallel": lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
    "wrapped twice": lambda state: {"state_dict": {f"module.model.{key}": t for key, t in state.items()}, "best_prec1": 0.5},
    "a Lightning module": lambda state: {"state_dict": {**{f"model.{key}": t for key, t in state.items()}, "loss.weight": torch.ones(2)}},
    "torchvision's references": lambda state: {"model": state, "epoch": 3},
    "another key": lambda state: {"model_state_dict": state},
    "before num_batches_tracked": lambda state: {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")},
    "with auxiliary heads": lambda state: state | {"AuxLogits.fc.weight": torch.ones(2)},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_state_dicts_of_every_layout_load(layout, original, tmp_path):
    torch.save(LAYOUTS[layout](original.state_dict()), tmp_path / "w.pth")
    backbone = load(tmp_path / "w.pth")
    assert_same(backbone, original)
    assert backbone.origin.describe() == f"file {tmp_path / 'w.pth'}"
    assert all(p.requires_grad and p.dtype == torch.float32 and not p.is_meta for p in backbone.parameters())


@pytest.mark.parametrize("suffix", [".pt", ".th", ".ckpt", ".safetensors"])
def test_every_file_type_loads(suffix, original, tmp_path):
    path = tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(original.state_dict(), path)
    assert_same(load(str(path)), original)


def test_weights_saved_from_a_backbone_load_in_half_precision(original, tmp_path):
    first = load_backbone("vgg11", weights=None, input_spec={"size": 32}, cut="conv5")
    state = {f"backbone.{name}": tensor.half() for name, tensor in first.state_dict().items()} | {"head.weight": torch.ones(2)}
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    again = load_backbone("vgg11", weights=tmp_path / "w.pt", cut="conv5")
    assert again.state_dict().keys() == first.state_dict().keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name].half().float())
    with pytest.raises(UserError, match=r"4 missing \(fc6"):
        load_backbone("vgg11", weights=tmp_path / "w.pt")


def test_weights_none_gives_a_random_start():
    assert load_backbone("squeezenet1_1", weights=None).origin.describe() == "random start"


def test_old_parameter_names_are_converted(tmp_path):
    densenet = models.get_model("densenet121", weights=None)
    renamed = {key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): t for key, t in densenet.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in renamed
    torch.save(renamed, tmp_path / "densenet.pth")
    assert_same(load_backbone("densenet121", weights=tmp_path / "densenet.pth"), densenet)
    vit = models.get_model("vit_b_32", weights=None, image_size=64)
    renamed = {key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): t for key, t in vit.state_dict().items()}
    torch.save(renamed, tmp_path / "vit.pth")
    assert_same(load_backbone("vit_b_32", weights=tmp_path / "vit.pth", input_spec={"size": 64}), vit)
    positions = vit.encoder.pos_embedding
    larger = load_backbone("vit_b_32", weights=tmp_path / "vit.pth", input_spec={"size": 96})
    assert larger.origin.resized == ("embeddings.position_embedding",)
    resized = larger.embeddings.position_embedding
    wanted = models.vision_transformer.interpolate_embeddings(96, 32, {"encoder.pos_embedding": positions})["encoder.pos_embedding"]
    torch.testing.assert_close(resized, wanted)


def test_the_error_names_the_tensors_that_do_not_fit(original, tmp_path):
    state = original.state_dict()
    state["stage2.0.branch1.0.weightt"] = state.pop("stage2.0.branch1.0.weight")
    state["conv5.0.weight"] = torch.ones(3, 4)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError) as error:
        load(tmp_path / "w.pth")
    message = str(error.value)
    assert "1 missing (stage2.0.branch1.0.weight)" in message
    assert "1 unexpected (stage2.0.branch1.0.weightt)" in message
    assert "1 of another shape (conv5.0.weight 3x4 instead of 1024x192x1x1)" in message
    assert "\n" not in message


def test_weights_of_another_network_are_an_error(original, tmp_path):
    torch.save(original.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError) as error:
        load_backbone("squeezenet1_1", weights=tmp_path / "w.pth")
    message = str(error.value)
    for part in (
        "are of another network: they have tensors such as conv1.0.weight, ",
        "this network needs 50 tensors such as conv1.conv.weight",
        "give the backbone that these weights were trained with",
    ):
        assert part in message
    assert "\n" not in message


def test_a_lower_cut_needs_only_the_weights_of_its_layers(original, tmp_path):
    state = {key: tensor for key, tensor in original.state_dict().items() if not key.startswith(("stage4", "conv5", "fc"))}
    torch.save(state, tmp_path / "w.pth")
    assert_same(load(tmp_path / "w.pth", cut="stage3"), original)
    with pytest.raises(UserError, match="missing"):
        load(tmp_path / "w.pth")


def test_weights_with_nan_are_an_error_at_the_cuts_that_use_them(original, tmp_path):
    """torchvision's IMAGENET1K_FEATURES of VGG16 has NaN in fc6 and fc7."""
    nn.init.constant_(original.conv5[0].weight, float("nan"))
    torch.save(original.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"has NaN or infinite values in conv5: give a backbone\.cut=\.\.\. nearer to the input"):
        load(tmp_path / "w.pth")
    assert_same(load(tmp_path / "w.pth", cut="stage4"), original)


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize("content", [b"", b"no weights", pickle.dumps({"a": 1}, protocol=2), b"PK\x03\x04 damaged"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_without_weights_is_an_error_of_one_line(content, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_no_code_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Malicious()}, "w.pth")
    with pytest.raises(UserError, match="could run code"):
        load("w.pth")
    Path("bare.pth").write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(UserError, match="could run code"):
        load("bare.pth")
    assert not Path("touched").exists()
    torch.save(models.get_model("shufflenet_v2_x0_5"), "whole.pth")
    with pytest.raises(UserError, match="could run code"):
        load("whole.pth")


def test_missing_weights_are_an_error(original, tmp_path):
    with pytest.raises(UserError, match=r"no weights file .*nowhere\.pth: set backbone\.weights=.*, or backbone\.weights=null"):
        load(tmp_path / "nowhere.pth")
    with pytest.raises(UserError, match="did you mean 'IMAGENET1K_V1'"):
        load("IMAGENET_V1")
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="contains no weights"):
        load(tmp_path / "w.pth")


def test_loading_weights_draws_no_random_numbers(original, tmp_path):
    torch.save(original.state_dict(), tmp_path / "w.pth")
    torch.manual_seed(0)
    load(tmp_path / "w.pth")
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), expected)


def test_a_custom_network_needs_one_entry_in_the_table(tmp_path, monkeypatch):
    """As for the shipped network: layers, a file in half precision with the names of the backbone, an input spec."""
    first = Layers({"stem": nn.Conv2d(3, 4, 3), "encoder.0": nn.Sequential(nn.ReLU(), nn.Conv2d(4, 6, 3))})
    save_file({name: tensor.half() for name, tensor in first.state_dict().items()}, tmp_path / "own.safetensors")
    source = WeightSource(WeightsOrigin("shipped", "own"), lambda: read(tmp_path / "own.safetensors"), InputSpec(size=8))
    layers = {"stem": nn.Conv2d(3, 4, 3), "encoder.0": nn.Sequential(nn.ReLU(), nn.Conv2d(4, 6, 3))}
    monkeypatch.setitem(BUILDERS, "own", Net(lambda: Layers(layers), {"default": source}))
    backbone = load_backbone("own", input_spec={"mean": 0.5})
    assert (backbone.origin.describe(), backbone.input_spec.size, backbone.input_spec.mean) == ("shipped own", 8, (0.5, 0.5, 0.5))
    assert all(torch.equal(tensor, first.state_dict()[name].half().float()) for name, tensor in backbone.state_dict().items())
    assert load_backbone("own", weights=None).origin.describe() == "random start"
    with pytest.raises(UserError, match="own has no arguments: leave out 'width'"):
        load_backbone("own", width=3)


def test_reinitialized_layers_are_random_and_all_others_come_from_the_file(tmp_path):
    torch.manual_seed(3)
    fresh = {name: layer.state_dict() for name, layer in load_backbone("glyph", weights=None).items()}
    torch.manual_seed(3)
    backbone, shipped = load_backbone("glyph", reinit=["layer4", -3]), load_backbone("glyph")
    assert backbone.reinit == ("layer2", "layer4") and backbone.upto("layer3").reinit == ("layer2",) and shipped.reinit == ()
    for name, layer in backbone.items():
        wanted = fresh[name] if name in backbone.reinit else shipped.get_submodule(name).state_dict()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in layer.state_dict().items()), name
    assert not any(parameter.is_meta for parameter in backbone.parameters())
    with pytest.raises(UserError, match="no layer 'layer5': did you mean 'layer4'"):
        load_backbone("glyph", reinit=["layer5"])


def test_a_file_may_lack_the_reinitialized_layers(tmp_path):
    state = {name: tensor for name, tensor in load_backbone("glyph").state_dict().items() if not name.startswith("layer4")}
    state["layer3.conv1.weight"] = state["layer3.conv1.weight"] * float("nan")
    torch.save(state, tmp_path / "lower.pth")
    assert load_backbone("glyph", weights=tmp_path / "lower.pth", reinit=["layer3", "layer4"]).reinit == ("layer3", "layer4")
    with pytest.raises(UserError, match="missing"):
        load_backbone("glyph", weights=tmp_path / "lower.pth")
