"""Invariant 1 on a toy: a cut loses nothing; and looking at a backbone leaves it as it is."""

from copy import deepcopy
from itertools import product

import pytest
import torch
from torch import nn

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.models.backbone import Backbone, Layers
from ftlit.models.pooling import pool, pooled_size, poolings_of
from ftlit.models.weights_origin import RANDOM, WeightsOrigin

CUTS = ("stem", "encoder.0", "encoder.1", "neck.tokens", "top")
SHAPES = {"stem": (4, 4, 4), "encoder.0": (6, 2, 2), "encoder.1": (6, 2, 2), "neck.tokens": (4, 6), "top": (6,)}


class Tokens(nn.Module):
    """A map (N, C, H, W) -> tokens (N, HW, C), scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return x.flatten(2).transpose(1, 2) * self.scale


class First(nn.Linear):
    """Tokens -> a vector, from the first one."""

    def forward(self, x):
        return super().forward(x[:, 0])


def toy() -> Backbone:
    """Map, map, map, tokens, vector; with batch norm, dropout and a buffer that is not saved."""
    torch.manual_seed(0)
    layers = {
        "stem": nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)),
        "encoder.0": nn.Sequential(nn.Conv2d(4, 6, 1), nn.MaxPool2d(2), nn.Dropout(0.5)),
        "encoder.1": nn.BatchNorm2d(6),
        "neck.tokens": Tokens(),
        "top": First(6, 6),
    }
    layers["top"].register_buffer("unsaved", torch.arange(3), persistent=False)
    return Backbone(layers, InputSpec(size=8), token_pool="class_token", origin=WeightsOrigin("custom", "a test"))


@pytest.mark.parametrize("cut", [*CUTS, 0, 2, -1, -3, -5])
def test_a_cut_loses_nothing(cut):
    backbone, x = toy().eval(), torch.randn(2, 3, 8, 8)
    assert torch.equal(backbone.after(cut)(backbone.upto(cut)(x)), backbone(x))


def test_the_layers_run_in_the_order_given_and_keep_it():
    backbone, x = toy().eval(), torch.randn(2, 3, 8, 8)
    expected = x
    for name, layer in backbone.items():
        assert layer is backbone.get_submodule(name)
        expected = layer(expected)
    assert torch.equal(backbone(x), expected)
    assert backbone.cuts == CUTS == tuple(name for name, _ in backbone.items())


@pytest.mark.parametrize(("number", "name"), [(0, "stem"), (4, "top"), (-1, "top"), (-2, "neck.tokens"), (-5, "stem")])
def test_a_cut_is_a_name_or_a_place_from_either_end(number, name):
    backbone = toy()
    assert backbone.index(number) == backbone.index(name)
    assert backbone.upto(number).cuts == CUTS[: CUTS.index(name) + 1]
    assert backbone.after(number).cuts == CUTS[CUTS.index(name) + 1 :]


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ("encodr.1", "no layer 'encodr.1': did you mean 'encoder.1'? There are: stem, encoder.0, encoder.1, neck.tokens, top"),
        ("encoder", "did you mean 'encoder.1'?"),
        (5, "no layer 5: there are: stem, encoder.0"),
        (-6, "no layer -6: there are: stem, encoder.0"),
    ],
)
def test_a_cut_that_is_not_there_is_an_error_with_the_nearest_name(cut, message):
    for use in (Backbone.index, Backbone.upto, Backbone.after):
        with pytest.raises(UserError) as caught:
            use(toy(), cut)
        assert message in str(caught.value)


def test_upto_and_after_share_the_modules_and_upto_stays_the_same_network():
    backbone = toy()
    lower, upper = backbone.upto("encoder.0"), backbone.after("encoder.0")
    parameters = {id(p) for part in (lower, upper) for p in part.parameters()}
    assert parameters == {id(p) for p in backbone.parameters()}
    assert isinstance(lower, Backbone) and not isinstance(upper, Backbone)
    assert (lower.input_spec, lower.token_pool, lower.origin) == (backbone.input_spec, "class_token", backbone.origin)


def test_a_layers_name_is_the_prefix_of_its_parameters_names_and_a_cut_keeps_them():
    backbone = toy()
    expected = [f"{cut}.{name}" for cut, layer in backbone.items() for name in layer.state_dict()]
    assert list(backbone.state_dict()) == expected
    assert "encoder.0.0.weight" in expected and "stem.1.running_mean" in expected
    assert list(backbone.upto("encoder.0").state_dict()) == [name for name in expected if name.startswith(("stem.", "encoder.0."))]


def test_weights_saved_from_a_backbone_load_into_the_backbone_cut_lower_and_back():
    saved, fresh = toy(), toy()
    nn.init.constant_(saved.get_submodule("stem")[0].weight, 3.0)
    lower = {name: t for name, t in saved.state_dict().items() if name in fresh.upto("encoder.1").state_dict()}
    fresh.upto("encoder.1").load_state_dict(lower)
    assert all(torch.equal(t, fresh.state_dict()[name]) for name, t in saved.state_dict().items())


def test_feature_shapes_are_those_of_real_images():
    backbone = toy().eval()
    features = torch.randn(2, 3, 8, 8)
    for name, layer in backbone.items():
        features = layer(features)
        assert backbone.feature_shapes[name] == tuple(features.shape[1:])
    assert backbone.feature_shapes == SHAPES


@pytest.mark.parametrize(("cut", "features"), [("stem", 4), ("encoder.0", 6), ("encoder.1", 6), ("neck.tokens", 6), ("top", 6)])
def test_num_features_is_the_length_of_the_pooled_features(cut, features):
    backbone = toy().eval().upto(cut)
    assert backbone.num_features == features == backbone.pool(backbone(torch.randn(2, 3, 8, 8))).shape[1]


def test_feature_shapes_leave_modes_parameters_buffers_gradients_and_chance_alone():
    backbone = toy().train()
    backbone.get_submodule("stem").eval()
    backbone.get_submodule("encoder.1").weight.requires_grad_(False)
    modes = [module.training for module in backbone.modules()]
    tensors = [*backbone.parameters(), *backbone.buffers()]
    values, wanted, chance = deepcopy(tensors), [t.requires_grad for t in tensors], torch.get_rng_state()
    assert backbone.feature_shapes == SHAPES
    after = [*backbone.parameters(), *backbone.buffers()]
    assert all(a is b for a, b in zip(after, tensors, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(after, values, strict=True))
    assert [t.requires_grad for t in after] == wanted and all(t.grad is None for t in after)
    assert [module.training for module in backbone.modules()] == modes
    assert torch.equal(torch.get_rng_state(), chance)


def test_modes_come_back_also_where_a_layer_cannot_run():
    backbone = Backbone({"stem": nn.Sequential(nn.Linear(5, 5), nn.Dropout())}, InputSpec(size=8)).train()
    with pytest.raises(RuntimeError):
        _ = backbone.feature_shapes
    assert all(module.training for module in backbone.modules())


def test_pool():
    features_map, tokens, vectors = torch.randn(2, 6, 3, 5), torch.randn(2, 7, 6), torch.randn(2, 6)
    assert torch.equal(pool(features_map), features_map.mean((2, 3)))
    assert torch.equal(pool(features_map, "class_token"), features_map.mean((2, 3)))
    assert torch.equal(pool(tokens), tokens.mean(1))
    assert torch.equal(pool(tokens, "class_token"), tokens[:, 0])
    assert torch.equal(pool(vectors), vectors) and torch.equal(pool(vectors, "class_token"), vectors)
    assert torch.equal(toy().pool(tokens), tokens[:, 0])


def test_pooling_by_hand():
    features = torch.arange(2 * 3 * 5 * 4, dtype=torch.float32).reshape(2, 3, 5, 4)
    assert torch.equal(pool(features, pooling="max"), features[:, :, 4, 3])
    halves = product((slice(0, 3), slice(2, 5)), (slice(0, 2), slice(2, 4)))
    quarters = [features[:, :, rows, columns].mean(dim=(2, 3)) for rows, columns in halves]
    assert torch.equal(pool(features, pooling="2x2"), torch.stack(quarters, dim=2).flatten(1))
    assert torch.equal(pool(features[:, :, 0], "class_token", "max"), features[:, 2, 0])
    for shape in ((3, 5, 4), (5, 3), (7,), (3, 1, 4)):
        for way in poolings_of(shape):
            assert pool(torch.randn(2, *shape), pooling=way).shape == (2, pooled_size(shape, way))
    assert poolings_of((3, 1, 4)) == poolings_of((7,)) == ("average",) and poolings_of((5, 3)) == ("average", "max")
    with pytest.raises(UserError, match=r"pooling='max' does not apply to features of shape \(7,\); supported: average"):
        pool(torch.randn(2, 7), pooling="max")


def test_a_backbone_has_layers_and_what_lies_above_its_last_cut_is_nothing():
    with pytest.raises(UserError, match="at least one layer"):
        Backbone({}, InputSpec())
    x = torch.randn(2, 6)
    assert toy().after(-1).cuts == () and Layers({})(x) is x


@pytest.mark.parametrize(
    "name", ["pool", "items", "forward", "train", "cuts", "origin", "input_spec", "num_features", "encoder.forward", "a..b", ""]
)
def test_a_name_that_an_attribute_has_is_no_layers_name(name):
    with pytest.raises(UserError, match="is not a valid name of a layer") as caught:
        Backbone({"stem": nn.Identity(), name: nn.Identity()}, InputSpec())
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("names", [("a", "a.0"), ("a.0", "a"), ("stem", "a.b.c", "a.b")])
def test_no_layer_lies_inside_another(names):
    with pytest.raises(UserError, match="lies inside layer"):
        Backbone({name: nn.Identity() for name in names}, InputSpec())
    assert Layers({"a": nn.Identity(), "ab": nn.Identity()}).cuts == ("a", "ab")


def test_an_origin_that_is_a_string_is_refused_with_what_to_write():
    with pytest.raises(UserError, match=r"ftlit\.WeightsOrigin\(\"custom\", 'my weights'\)"):
        Backbone({"low": nn.Identity()}, InputSpec(), origin="my weights")
    with pytest.raises(UserError, match="did you mean 'file'"):
        WeightsOrigin("files")


@pytest.mark.parametrize(("origin", "reinit", "random"), [(RANDOM, [], ("a", "b")), (WeightsOrigin("file", "w.pth"), ["b"], ("b",))])
def test_random_layers_are_the_reinitialized_ones_or_all_of_a_random_start(origin, reinit, random):
    backbone = Backbone({"a": nn.Identity(), "b": nn.Identity()}, InputSpec(), origin=origin, reinit=reinit)
    assert backbone.random_layers == random and backbone.pretrained == (origin != RANDOM)
