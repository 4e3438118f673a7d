"""Invariant 1 for networks of torchvision: a cut loses nothing, and backbone plus severed classifier equal the original network."""

from collections import Counter
from inspect import signature
from pathlib import Path

import pytest
import torch
from hydra import compose
from invariant_1 import check_cuts
from lanes import nightly
from torch import nn
from torchvision import models

import ftlit.conf
from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.models.backbone import Backbone
from ftlit.recipes.config.hydra_internals import initialize_hydra
from ftlit.zoo import load_backbone
from ftlit.zoo.build import EmptyWeights
from ftlit.zoo.torchvision_layers import FAMILIES, take_apart
from ftlit.zoo.torchvision_nets import BUILDERS, available

pytestmark = pytest.mark.zoo

# one small network of each family -> the smallest convenient input
SMALL = {
    "alexnet": 64, "resnet18": 64, "resnext50_32x4d": 64, "densenet121": 64, "googlenet": 64, "inception_v3": 96,
    "squeezenet1_0": 64, "squeezenet1_1": 64, "shufflenet_v2_x0_5": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64,
    "efficientnet_b0": 64, "mnasnet0_5": 64, "regnet_y_400mf": 64, "convnext_tiny": 64, "vit_b_32": 64,
    "swin_t": 64, "swin_v2_t": 64,
}  # fmt: skip
# with layers as another network of these has them
ALIKE = ("resnext50_32x4d", "squeezenet1_0", "shufflenet_v2_x0_5", "mobilenet_v2", "mnasnet0_5", "regnet_y_400mf", "swin_v2_t")
OWN = set(BUILDERS)
GIANTS = {"vit_h_14", "regnet_y_128gf", "efficientnet_b7", "efficientnet_v2_l", "vit_l_16", "vit_l_32", "convnext_large"}
SETTINGS = {
    "googlenet": {"init_weights": False, "transform_input": True},
    "inception_v3": {"init_weights": False, "transform_input": True},
    "vit": {"image_size": 64},
}


def build(name, **settings):
    settings = {**SETTINGS.get(name, SETTINGS.get(name.split("_")[0], {})), **settings}
    model = models.get_model(name, weights=None, **settings)
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for statistic in (module.weight, module.running_var):
                statistic.data.uniform_(0.5, 1.5)
            for statistic in (module.bias, module.running_mean):
                statistic.data.normal_(std=0.1)
    for tensor_name, parameter in model.named_parameters():  # ViT's classifier starts at 0, ConvNeXt's blocks at 1e-6, which hides errors
        if tensor_name == "heads.head.weight" or tensor_name.endswith("layer_scale"):
            parameter.data.uniform_(-0.5, 0.5)
    return model.eval()


def backbone_of(parts, size):
    return Backbone(parts.layers, InputSpec(size=size), token_pool=parts.token_pool).eval()


def check_invariant_1(model, size):
    parts = take_apart(model)
    backbone = backbone_of(parts, size)
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(parts.classifier(backbone(x)), model(x), rtol=1e-5, atol=1e-5)
        check_cuts(backbone, x)


def check_partition(model):
    """Every parameter is in exactly one layer, in the classifier, or in an auxiliary head."""
    parts = take_apart(model)
    places = Counter(id(p) for module in [*parts.layers.values(), parts.classifier] for p in module.parameters())
    assert set(places.values()) == {1}
    left = {name.split(".")[0] for name, p in model.named_parameters() if id(p) not in places}
    assert left <= {"aux1", "aux2", "AuxLogits"}
    severed = [m for m in parts.classifier.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(severed) == 1


@pytest.mark.parametrize("name", nightly(SMALL, ALIKE))
def test_a_cut_loses_nothing(name):
    model = build(name)
    check_invariant_1(model, SMALL[name])
    check_partition(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(available()) - GIANTS - OWN))
def test_a_cut_loses_nothing_in_any_builder(name):
    model = build(name)
    check_invariant_1(model, 224 if name == "maxvit_t" else 96 if name == "inception_v3" else 64)
    check_partition(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(available()) - OWN))
def test_every_network_splits_into_layers_without_weights(name):
    with EmptyWeights():
        backbone = load_backbone(name, weights=None)
    assert list(backbone.feature_shapes) == list(backbone.cuts)
    assert backbone.num_features > 0


def test_every_family_of_torchvision_is_in_the_table():
    built = {signature(models.get_model_builder(name)).return_annotation for name in set(available()) - OWN}
    assert built <= set(FAMILIES)


@pytest.mark.parametrize(("name", "cuts"), [
    ("alexnet", "conv1 conv2 conv3 conv4 conv5 fc6 fc7"),
    ("vgg11", "conv1 conv2 conv3 conv4 conv5 fc6 fc7"),
    ("resnet18", "stem layer1 layer2 layer3 layer4"),
    ("densenet121", "stem denseblock1 denseblock2 denseblock3 denseblock4"),
    ("squeezenet1_1", "conv1 fire2 fire3 fire4 fire5 fire6 fire7 fire8 fire9"),
    ("shufflenet_v2_x0_5", "conv1 stage2 stage3 stage4 conv5"),
    ("mnasnet0_5", "stem stack1 stack2 stack3 stack4 stack5 stack6 conv_last"),
    ("regnet_x_400mf", "stem block1 block2 block3 block4"),
    ("convnext_tiny", "stem stage1 stage2 stage3 stage4"),
    ("swin_t", "stem stage1 stage2 stage3 stage4"),
    ("maxvit_t", "stem blocks.0 blocks.1 blocks.2 blocks.3 fc"),
    ("vit_b_32", " ".join(["embeddings", *(f"encoder.{i}" for i in range(12))])),
    ("mobilenet_v3_small", " ".join([*(f"features.{i}" for i in range(13)), "fc"])),
])  # fmt: skip
def test_layers_have_the_expected_names(name, cuts):
    with EmptyWeights():
        assert " ".join(load_backbone(name, weights=None).cuts) == cuts


@pytest.mark.parametrize("name", ["alexnet", "vgg11"])
def test_fc6_and_fc7_are_the_4096_features_after_their_relu(name):
    backbone = load_backbone(name, weights=None, input_spec={"size": 64}).eval()
    x = torch.randn(2, 3, 64, 64)
    for cut in ("fc6", "fc7"):
        features = backbone.upto(cut)(x)
        assert features.shape == (2, 4096)
        assert features.min() == 0 < features.max()


@pytest.mark.parametrize("name", ["swin_t", "resnet18", "densenet121"])
def test_maps_are_channels_first(name):
    with EmptyWeights():
        shapes = load_backbone(name, weights=None, input_spec={"size": 96}).feature_shapes
    for channels, height, width in shapes.values():
        assert height == width <= 48 <= channels


def test_dropout_keeps_its_position_in_training():
    """In training mode the layers draw the same random numbers in the same order as the whole network."""
    for name in ("alexnet", "vgg11_bn", "mobilenet_v3_small"):
        model = build(name).train()
        parts = take_apart(model)
        x = torch.randn(2, 3, 64, 64)
        torch.manual_seed(1)
        whole = model(x)
        torch.manual_seed(1)
        for layer in parts.layers.values():
            x = layer(x)
        assert torch.equal(parts.classifier(x), whole), name


def test_a_vit_may_have_a_hidden_layer_before_its_classifier():
    check_invariant_1(build("vit_b_32", representation_size=16), 64)


@pytest.mark.parametrize(("weights", "settings", "kept"), [
    ("published name", {}, True),
    ("published name", {"input_spec": {"mean": 0.5, "std": 0.5}}, False),  # the images are already normalised as the weights need it
    ("published name", {"transform_input": False}, False),
    ("own name", {}, False),
    ("own name", {"transform_input": True}, True),
    (None, {}, False),
    (None, {"transform_input": True}, True),
])  # fmt: skip
def test_only_published_weights_imply_transform_input(weights, settings, kept, tmp_path):
    name, published_as = "googlenet", Path(models.GoogLeNet_Weights.IMAGENET1K_V1.url).name
    if weights:
        path = tmp_path / (published_as if weights == "published name" else "mine.pth")
        torch.save(models.get_model(name, weights=None, init_weights=False).state_dict(), path)
    backbone = load_backbone(name, weights=path if weights else None, **{"init_weights": False, **settings})
    assert ("renormalise" in dict(backbone.stem.named_children())) == kept


def test_another_image_size_is_supported():
    backbone = load_backbone("vit_b_32", weights=None, input_spec={"size": 96}).eval()
    assert backbone.feature_shapes["encoder.11"] == (1 + 3 * 3, 768)
    with pytest.raises(UserError, match="built for images of 96 px"):
        backbone(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(("name", "size", "message"), [
    ("alexnet", 16, "give input_spec.size=63 or more"),
    ("inception_v3", 50, "give input_spec.size=75 or more"),
    ("convnext_tiny", 20, "give input_spec.size=32 or more"),
    ("vit_b_16", 100, "a multiple of 16 px, not 100: give input_spec.size=96 or 112"),
    ("vit_b_32", 20, "a multiple of 32 px, not 20: give input_spec.size=32"),
    ("maxvit_t", 100, "a multiple of 224 px, not 100: give input_spec.size=224"),
])  # fmt: skip
def test_the_error_for_an_unsupported_size_gives_a_supported_size(name, size, message):
    with EmptyWeights():
        with pytest.raises(UserError, match=message) as error:
            load_backbone(name, weights=None, input_spec={"size": size})
        assert "\n" not in str(error.value)
        if "smallest" in message:
            assert load_backbone(name, weights=None, input_spec={"size": int(message.split()[-2])})


@pytest.mark.parametrize("name", nightly(sorted(set(SMALL) - {"vit_b_32"}), ALIKE))
def test_a_network_accepts_odd_image_sizes(name):
    """Invariant 1 with strides that do not divide the size, and padded windows of Swin."""
    check_invariant_1(build(name), 107)


def test_the_input_spec_is_that_of_the_weights():
    with EmptyWeights():
        spec = load_backbone("efficientnet_v2_l", weights=None).input_spec
        assert spec == InputSpec(480, 480, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
        given = {"size": 160, "resize": None, "mean": 0.5, "std": None, "interpolation": None}
        spec = load_backbone("mobilenet_v2", weights=None, input_spec=given).input_spec
    assert spec == InputSpec(160, 166, (0.5, 0.5, 0.5), (0.229, 0.224, 0.225), "bilinear")  # 166 / 160 as 232 / 224


@pytest.mark.parametrize(("settings", "message"), [
    ({"name": "resnt50"}, "did you mean 'resnet50'"),
    ({"name": "mobilenet_v2", "width_mul": 0.5}, "did you mean 'width_mult'"),
    ({"name": "mobilenet_v3_small", "width_mul": 0.5}, "did you mean 'width_mult'"),
    ({"name": "mobilenet_v2", "width_mult": "wide"}, "cannot be built with"),
    ({"name": "resnet18", "cut": "layr3"}, "did you mean 'layer3'"),
    ({"name": "resnet18", "input_spec": {"sise": 3}}, "did you mean 'size'"),
    ({"name": "resnet18", "input_spec": {"size": "big"}}, "input_spec.size='big': give one whole number"),
    ({"name": "resnet18", "input_spec": {"mean": "dark"}}, "input_spec.mean=dark: give one number or three"),
])  # fmt: skip
def test_user_errors_are_one_line(settings, message):
    with EmptyWeights(), pytest.raises(UserError, match=message) as error:
        load_backbone(**{"weights": None, **settings})
    assert "\n" not in str(error.value)


def test_arguments_reach_the_builder_and_a_negative_cut_counts_from_the_top():
    with EmptyWeights():
        backbone = load_backbone("mobilenet_v2", weights=None, width_mult=0.35, cut=-2)
    assert backbone.cuts[-1] == "features.17"
    assert backbone.num_features == 112


def test_conf_has_one_option_for_each_backbone():
    options = {path.stem for path in Path(ftlit.conf.__path__[0], "backbone").glob("[!_]*.yaml")}
    assert options == {*available(), "timm", "bert", "auto"}


def test_every_option_composes_and_binds():
    with initialize_hydra():
        for name in available():
            overrides = [f"+backbone={name}", "backbone.weights=null", "backbone.input_spec.mean=0.5", "backbone.cut=-2"]
            option = dict(compose(overrides=overrides).backbone)
            assert option.pop("_target_") == "ftlit.load_backbone"
            assert signature(load_backbone).bind(**option).arguments["name"] == name
        assert compose(overrides=["+backbone=mobilenet_v2", "backbone.width_mult=0.35"]).backbone.width_mult == 0.35
