"""Invariant 7 for fully connected layers: as convolutions they compute the same on every window."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ftlit import InputSpec, UserError, fully_convolutional, linear_to_conv, load_backbone
from ftlit.models.backbone import Backbone
from ftlit.models.heads import ConvHead, LinearHead, MLPHead, PooledHead

pytestmark = pytest.mark.zoo

SIZE, STRIDE = 17, 4


def unpadded(*, classifier=True, pool=None) -> Backbone:
    """Two convolutions and a pooling without padding, stride 4 in all: maps of 3x3 at 17 px; perhaps with hidden linear layers."""
    layers = {
        "conv1": nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU()),
        "conv2": nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(2)),
    }
    places = 9 if pool is None else pool**2
    hidden = [nn.Flatten(1), nn.Dropout(), nn.Linear(6 * places, 8), nn.ReLU()]
    if classifier:
        layers["fc3"] = nn.Sequential(*([] if pool is None else [nn.AdaptiveAvgPool2d(pool)]), *hidden)
        layers["fc4"] = nn.Sequential(nn.Linear(8, 7), nn.Tanh())
    return Backbone(layers, InputSpec(size=SIZE))


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_a_linear_layer_on_a_map_equals_a_convolution(channels, height, width, bias):
    linear = nn.Linear(channels * height * width, 5, bias=bias).double()
    linear.weight.requires_grad_(False)
    maps = torch.randn(2, channels, height, width, dtype=torch.float64)
    conv = linear_to_conv(linear, (height, width))
    assert torch.allclose(conv(maps)[:, :, 0, 0], linear(maps.flatten(1)), atol=1e-12)
    assert not conv.weight.requires_grad and conv.weight.data_ptr() != linear.weight.data_ptr()


@pytest.mark.parametrize("pool", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("make", [LinearHead, MLPHead])
def test_without_padding_each_position_equals_the_network_on_its_window(pool, make):
    torch.manual_seed(0)
    backbone = unpadded(pool=pool).double().eval()
    head = make(7, 3).double().eval()
    dense = fully_convolutional(backbone, head)
    images = torch.randn(2, 3, SIZE + 3 * STRIDE, SIZE + 2 * STRIDE, dtype=torch.float64)
    found = dense(images)
    assert found.shape == (2, 3, 4, 3)
    for row in range(4):
        for column in range(3):
            window = images[:, :, row * STRIDE :, column * STRIDE :][:, :, :SIZE, :SIZE]
            assert torch.allclose(found[:, :, row, column], head(backbone(window)), atol=1e-12)


@pytest.mark.parametrize("make", [LinearHead, lambda n, k: PooledHead(n, k, "max"), lambda n, k: PooledHead(4 * n, k, "2x2")])
def test_pooled_features_are_pooled_window_by_window(make):
    backbone = unpadded(classifier=False).double().eval()
    head = make(6, 3).double().eval()
    dense = fully_convolutional(backbone, head)
    images = torch.randn(2, 3, SIZE + STRIDE, SIZE, dtype=torch.float64)
    for row in range(2):
        features = backbone(images[:, :, row * STRIDE :][:, :, :SIZE])
        wanted = head(features if getattr(head, "takes_map", False) else backbone.pool(features))
        assert torch.allclose(dense(images)[:, :, row, 0], wanted, atol=1e-12)


FAMILIES = (
    "alexnet",
    "vgg11",
    "resnet18",
    "squeezenet1_1",
    "googlenet",
    "shufflenet_v2_x0_5",
    "mobilenet_v3_small",
    "convnext_tiny",
    "glyph",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_output_at_the_training_size_is_one_position_with_the_same_logits(name):
    torch.manual_seed(0)
    backbone = load_backbone(name, weights=None).eval()
    head = MLPHead(backbone.num_features, 5).eval()
    size = backbone.input_spec.size
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        wanted, dense = head(backbone.pool(backbone(images))), fully_convolutional(backbone, head)
        found = dense(images)
        assert found.shape == (2, 5, 1, 1) and torch.allclose(found[:, :, 0, 0], wanted, rtol=1e-5, atol=1e-5)
        assert min(dense(torch.randn(1, 3, size + 32, size + 64)).shape[2:]) > 1


def test_conv_heads_and_lower_cuts_are_supported():
    backbone = load_backbone("glyph", cut="layer3").eval()
    head = ConvHead(96, 10).eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(fully_convolutional(backbone, head)(images)[:, :, 0, 0], head(backbone(images)), atol=1e-5)


@pytest.mark.parametrize("head", [ConvHead(4, 2), PooledHead(4, 2, "max"), PooledHead(4, 2, "average"), PooledHead(16, 2, "2x2")])
def test_the_sequence_of_a_head_computes_what_its_forward_computes(head):
    maps = torch.randn(2, 4, 5, 6)
    assert torch.allclose(nn.Sequential(*head.eval().as_sequence().values())(maps), head(maps), atol=1e-6)


class ScaledHead(nn.Module):
    """A custom head that describes itself as a sequence; its activation stands in it twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.activation = nn.Linear(128, 8), nn.Linear(8, 10), nn.Tanh()

    def forward(self, features):
        return self.activation(self.second(self.activation(self.first(features))))

    def as_sequence(self):
        return {"hidden": nn.Sequential(self.first, self.activation, self.second, self.activation)}


def test_a_custom_head_with_a_sequence_is_converted():
    backbone, head = load_backbone("glyph").eval(), ScaledHead().eval()
    images = torch.rand(2, 3, 32, 32)
    wanted = head(backbone.pool(backbone(images)))
    assert torch.allclose(fully_convolutional(backbone, head)(images)[:, :, 0, 0], wanted, atol=1e-5)


@pytest.mark.parametrize("base", [ConvHead, MLPHead, ScaledHead])
def test_a_subclass_with_another_forward_is_not_converted(base):
    class Doubled(base):
        def forward(self, features):
            return 2 * super().forward(features)

    with pytest.raises(UserError, match="supported heads: linear, mlp, conv, and classes with a method as_sequence"):
        fully_convolutional(load_backbone("glyph"), Doubled() if base is ScaledHead else Doubled(128, 10))


def test_convolutional_layers_are_shared_and_keep_their_mode():
    backbone = load_backbone("glyph").train()
    dense = fully_convolutional(backbone, LinearHead(128, 10))
    assert dense.get_submodule("backbone.layer4") is backbone.get_submodule("layer4") and dense.training


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("vit_b_32", LinearHead, "this backbone gives tokens"),
        ("maxvit_t", LinearHead, "accepts only images of 224 px"),
        ("glyph", nn.Bilinear, "cannot be converted to a convolution"),
        ("glyph", nn.MaxPool2d, "cannot be converted to a convolution"),
    ],
)
def test_the_error_for_a_network_that_cannot_be_converted_is_one_line(name, head, message):
    backbone = load_backbone(name, weights=None)
    own = {nn.Bilinear: lambda: nn.Bilinear(2, 2, 2), nn.MaxPool2d: lambda: nn.Sequential(nn.MaxPool2d(2))}
    module = own[head]() if head in own else head(backbone.num_features, 2)
    with pytest.raises(UserError, match=message) as caught:
        fully_convolutional(backbone, module)
    assert "\n" not in str(caught.value)


def test_a_linear_layer_for_another_map_size_is_an_error():
    with pytest.raises(UserError, match="10 inputs cannot read a feature map of 3x3, because 10 is not a multiple of 9"):
        linear_to_conv(nn.Linear(10, 2), 3)


def test_a_network_of_linear_layers_becomes_a_network_of_convolutions():
    backbone = load_backbone("mlp", weights=None, hidden=[12, 8], input_spec={"size": 8}).eval()
    head = LinearHead(8, 3)
    images = torch.randn(2, 3, 10, 9)
    found = fully_convolutional(backbone, head)(images)
    assert found.shape == (2, 3, 3, 2)
    assert torch.allclose(found[:, :, 2, 1], head(backbone(images[:, :, 2:, 1:])), atol=1e-5)


def test_a_head_on_several_layers_has_no_map():
    head = LinearHead([64, 128], 3, cuts=["layer2", "layer4"])
    with pytest.raises(UserError, match=r"the head reads layer2, layer4, but .* train with head\.cuts=null"):
        fully_convolutional(load_backbone("glyph", weights=None), head)
