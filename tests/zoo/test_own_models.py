"""Networks that exist already as backbones: layers that compute what the network computes, or one line that says why not."""

import pytest
import timm
import torch
from invariant_1 import check_cuts
from torch import nn
from torchvision.models import VisionTransformer, alexnet, efficientnet_b0, mnasnet0_5, mobilenet_v3_small, resnet18, squeezenet1_1, vgg11
from transformers import ViTConfig, ViTModel

from ftlit import InputSpec, UserError, WeightsOrigin, backbone_from, load_backbone

SPEC = InputSpec(size=64)
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
RESNET = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool"]
VIT = ["embeddings", "layers.0", "layers.1", "layernorm"]


@pytest.mark.parametrize("build", [squeezenet1_1, mobilenet_v3_small, efficientnet_b0, vgg11])
def test_a_network_of_torchvision_without_classifier_has_the_layers_below_it(build):
    network = build().eval()
    network.classifier = nn.Identity()
    backbone = backbone_from(network, input_spec=SPEC).eval()
    features = IMAGES
    with torch.no_grad():
        for _, layer in backbone.items():
            features = layer(features)
        assert len(backbone.cuts) > 4 and torch.allclose(features, network.features(IMAGES), atol=1e-5)


CLASSIFIERS = [
    lambda: nn.AdaptiveAvgPool2d(1),
    lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)),
    lambda: nn.Sequential(nn.Dropout(), nn.Flatten(), nn.ReLU(), nn.LazyLinear(3)),  # as many modules as mobilenet_v3 has
]


@pytest.mark.parametrize("classifier", CLASSIFIERS, ids=["one", "two", "four"])
@pytest.mark.parametrize("build", [squeezenet1_1, mobilenet_v3_small, mnasnet0_5, alexnet])
def test_the_classifier_of_a_network_of_torchvision_may_be_any_module(build, classifier):
    network = build()
    network.classifier = classifier()
    assert len(backbone_from(network, input_spec=SPEC).cuts) > 4


@pytest.mark.parametrize("heads", [nn.Identity(), nn.Linear(8, 2), nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))], ids=type)
def test_the_heads_of_a_vision_transformer_may_be_any_module(heads):
    network = VisionTransformer(image_size=64, patch_size=32, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=8)
    network.heads = heads
    assert backbone_from(network, input_spec=SPEC).cuts == ("embeddings", "encoder.0", "encoder.1")


def test_another_replaced_part_is_one_line_that_names_layers():
    network = squeezenet1_1()
    network.features = nn.Conv2d(3, 512, 8)
    with pytest.raises(
        UserError, match=r"SqueezeNet is built in another way .*give layers=\[\.\.\.\], .* such as 'features', 'classifier'"
    ):
        backbone_from(network, input_spec=SPEC)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.low, self.mid, self.high = nn.Conv2d(3, 4, 3, stride=4), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.pair = nn.Bilinear(4, 4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.mid(self.low(x))
        x = self.high(self.high(x.relu())).mean((2, 3))
        return self.head(self.pair(x, x))


def vit():
    torch.manual_seed(0)
    size = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 64,
        "patch_size": 16,
    }
    return ViTModel(ViTConfig(**size), add_pooling_layer=False)


def test_networks_of_torchvision_and_timm_have_the_layers_of_their_loaders():
    torch.manual_seed(0)
    net = resnet18().train()
    backbone = backbone_from(net, input_spec=SPEC, origin=WeightsOrigin("custom", "mine"))
    assert (
        backbone.cuts == load_backbone("resnet18", weights=None).cuts
        and backbone.pretrained
        and all(part.training for part in net.modules())
    )
    check_cuts(backbone.eval(), IMAGES)
    assert torch.equal(net.eval().fc(backbone.pool(backbone(IMAGES))), net(IMAGES))
    of_timm = backbone_from(timm.create_model("vit_tiny_patch16_224", img_size=64), input_spec=SPEC)
    assert of_timm.cuts[:2] == ("embeddings", "blocks.0")
    assert backbone_from(of_timm) is backbone_from(of_timm, list(of_timm.cuts), input_spec=SPEC) is of_timm


def test_the_origin_that_a_network_states_is_that_of_its_backbone_unless_another_is_given():
    net = Net()
    assert not backbone_from(net, ["low", "mid"], input_spec=SPEC).pretrained
    net.origin = WeightsOrigin("torchvision", "IMAGENET1K_V1")
    assert backbone_from(net, ["low", "mid"], input_spec=SPEC).origin is net.origin
    mine = WeightsOrigin("custom", "mine")
    assert backbone_from(net, ["low", "mid"], input_spec=SPEC, origin=mine).origin is mine


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": ["layer1"]}, "with layers stem, layer1, layer2, .*: leave layers out"),
        ({"input_spec": SPEC}, "with input_spec InputSpec"),
        ({"origin": WeightsOrigin("custom", "mine")}, "with origin WeightsOrigin"),
    ],
)
def test_what_a_backbone_has_already_is_not_silently_ignored(given, message):
    with pytest.raises(UserError, match=f"^the model is a Backbone already, {message}") as raised:
        backbone_from(load_backbone("glyph"), **given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("build", "layers", "path"), [(resnet18, RESNET, "avgpool"), (vit, VIT, "layernorm"), (Net, ["low", "mid"], "mid")]
)
def test_named_layers_give_what_the_network_gives_and_keep_the_names_of_its_weights(build, layers, path):
    torch.manual_seed(0)
    net, found = build().eval(), []
    backbone = backbone_from(net, layers, input_spec=SPEC)
    net.get_submodule(path).register_forward_hook(lambda _, args, out: found.append(out))
    net(IMAGES)
    assert backbone.cuts == tuple(layers) and torch.allclose(backbone.eval()(IMAGES), found[0], atol=1e-6)
    assert backbone.state_dict().keys() <= net.state_dict().keys()


@pytest.mark.parametrize(
    ("build", "layers", "message"),
    [
        (resnet18, ["layer1", "layer2"], "layer1 does not take the images: name also what runs before layer1: conv1, bn1, relu, maxpool"),
        (resnet18, [*RESNET[:5], "layer3"], "layer3 does not take the output of layer1: name also what runs before layer3: layer2"),
        (resnet18, ["conv1", "layr1"], "ResNet has no module 'layr1': did you mean 'layer1'"),
        (resnet18, [*RESNET, "fc"], "fc does not take the output of avgpool: code of the network lies between them"),
        (Net, None, r"the layers of Net are not known: give layers=\[...\], .* such as 'low', 'mid'$"),
        (Net, ["low", "mid", "high"], "'high' runs 2 times for an image, so it cannot be a layer: name a module that runs once"),
        (Net, ["low", "mid", "pair"], "'pair' takes a further input, (input2|others), so it cannot be a layer"),
        (Net, [], r"layers=\[\]: name at least one module"),
        (Net, "low", r"layers='low' is one text: give a list, layers=\['low'\]"),
        (lambda: nn.Linear(3, 2), ["0"], "Linear has no modules: leave out '0'"),
        (
            lambda: nn.Sequential(nn.Linear(3, 2)),
            ["0"],
            r"Sequential cannot be run on images of shape \(3, 64, 64\): .*; if it needs another size, give input_spec=",
        ),
    ],
)
def test_layers_that_are_no_sequence_are_one_line(build, layers, message):
    with pytest.raises(UserError, match=f"^{message}") as raised:
        backbone_from(build(), layers, input_spec=SPEC)
    assert "\n" not in str(raised.value)
