"""A folder of weights gives each network the file of its name, and an error proposes the one file that may be misnamed."""

from importlib.util import find_spec

import pytest
import torch
from torchvision import models
from weights_checks import assert_same

from ftlit.errors import UserError
from ftlit.zoo import load_backbone
from ftlit.zoo.efficientnet_lite import MODULE
from ftlit.zoo.torchvision_nets import BUILDERS, file_in_folder, is_at_hand
from ftlit.zoo.weights.weights_folder import file_of

pytestmark = pytest.mark.zoo


@pytest.fixture
def original():
    """A small network with batch norm and random weights."""
    return models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=7)


def load(path):
    return load_backbone("shufflenet_v2_x0_5", weights=path)


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (
            ("efficientnet_lite0_x.pth", "mobilenetv2_imagenet.pth"),
            "if mobilenetv2_imagenet.pth is for mobilenet_v2, rename or link it: ln -s mobilenetv2_imagenet.pth {0}/mobilenet_v2.pth",
        ),
        (
            ("mobilenetv2_035_imagenet_timm_nohead.pth", "mobilenetv2_imagenet_torchvision.pt"),  # another width; the suffix stays
            "ln -s mobilenetv2_imagenet_torchvision.pt {0}/mobilenet_v2.pt",
        ),
        (("efficientnet_lite0_x.pth", "resnet18.pth"), "rename it or link it: ln -s FILE {0}/mobilenet_v2.pth"),
        (
            ("mobilenetv2_a.pth", "mobilenetv2_b.pth"),
            "(files there: mobilenetv2_a.pth, mobilenetv2_b.pth)",
        ),  # several fit: none is proposed
        (("mobilenetv2_a.pth", "mobilenetv2_b.pth"), "rename it or link it: ln -s FILE {0}/mobilenet_v2.pth"),
        (("mobilenetv2_035.pth",), "rename it or link it: ln -s FILE {0}/mobilenet_v2.pth"),
    ],
)
def test_of_a_folder_without_the_file_of_a_network_only_a_file_with_a_similar_name_is_proposed(names, remedy, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UserError) as caught:
        file_of(tmp_path, "mobilenet_v2")
    assert remedy.format(tmp_path) in str(caught.value) and f"={tmp_path}/efficientnet" not in str(caught.value)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5.pth", "shufflenet_v2_x0_5-0123abcd.pth"])
def test_a_folder_gives_a_network_the_file_of_its_name(name, original, tmp_path):
    torch.save(original.state_dict(), tmp_path / name)
    for other in ("shufflenet_v2_x0_5_old.pth", "shufflenet_v2_x1_0.pth", "shufflenet_v2_x0_5.txt"):
        (tmp_path / other).write_bytes(b"not read")
    backbone = load(tmp_path)
    assert_same(backbone, original)
    assert backbone.record["weights"] == str(tmp_path / name) and backbone.origin.describe() == f"file {tmp_path / name}"
    with pytest.raises(UserError, match=rf"has no squeezenet1_1.pth \(files there: {name}, .*\): in a folder"):
        load_backbone("squeezenet1_1", weights=tmp_path)


def test_in_a_folder_of_other_weights_a_network_that_ftlit_ships_keeps_its_own_and_the_plan_says_so(original, tmp_path):
    shipped = [name for name, net in BUILDERS.items() if "default" in net.sources and net.sources["default"].origin.kind == "shipped"]
    assert shipped == ["glyph"]
    torch.save(original.state_dict(), tmp_path / "shufflenet_v2_x0_5.pth")
    backbone, default = load_backbone("glyph", weights=tmp_path), load_backbone("glyph")
    assert all(torch.equal(tensor, default.state_dict()[name]) for name, tensor in backbone.state_dict().items())
    assert backbone.record == default.record and is_at_hand("glyph", str(tmp_path))
    assert backbone.origin.describe() == f"shipped glyph.safetensors; backbone.weights={tmp_path} has no file for glyph"
    (tmp_path / "my_glyph.pth").touch()
    with pytest.raises(UserError, match=r"if .*my_glyph\.pth is for glyph, rename or link it: ln -s my_glyph\.pth"):
        load_backbone("glyph", weights=tmp_path)


def test_two_files_for_one_network_in_a_folder_are_an_error(tmp_path):
    for name in ("shufflenet_v2_x0_5.pth", "shufflenet_v2_x0_5.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"has several files for shufflenet_v2_x0_5 \(shufflenet_v2_x0_5.pth, shufflenet_v2_x0_5.saf"):
        load(tmp_path)


@pytest.mark.skipif(find_spec(MODULE) is None or find_spec("timm") is None, reason="needs the extra photos")
def test_in_a_folder_of_other_weights_a_network_keeps_those_of_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "resnet18.pth").touch()
    name = "efficientnet_lite0"
    assert file_in_folder(tmp_path, name) == "default" and is_at_hand(name, str(tmp_path))
    note = f"backbone.weights={tmp_path} has no file for {name}"
    assert load_backbone(name, weights=tmp_path).origin.describe().endswith(f".pth); {note}")
    with pytest.raises(UserError, match=r"has no efficientnet_lite0\.pth"):  # timm has another network of this name
        file_of(tmp_path, name)
    monkeypatch.setattr("ftlit.zoo.efficientnet_lite.find_spec", lambda name: None)
    assert not is_at_hand(name, str(tmp_path))
    with pytest.raises(UserError, match=r"has no efficientnet_lite0\.pth"):
        file_in_folder(tmp_path, name)
