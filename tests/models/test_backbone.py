"""Invariant 1 on a small backbone: a cut loses nothing; and reading properties does not change a backbone."""

import re
from copy import deepcopy
from itertools import product

import pytest
import torch
from torch import nn

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.models.backbone import Backbone, Layers
from ftlit.models.feature_batch import FeatureBatch
from ftlit.models.pooling import pool, pooled_size, poolings_of
from ftlit.models.weights_origin import RANDOM, WeightsOrigin

CUTS = ("stem", "encoder.0", "encoder.1", "neck.tokens", "top")
SHAPES = {"stem": (4, 4, 4), "encoder.0": (6, 2, 2), "encoder.1": (6, 2, 2), "neck.tokens": (4, 6), "top": (6,)}


class Tokens(nn.Module):
    """Map (N, C, H, W) -> scaled tokens (N, HW, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return x.flatten(2).transpose(1, 2) * self.scale


class First(nn.Linear):
    """Tokens -> a vector, from the first token."""

    def forward(self, x):
        return super().forward(x[:, 0])


def toy() -> Backbone:
    """Return a backbone with features map, map, map, tokens, vector; with batch norm, dropout and a buffer that is not saved."""
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


@pytest.mark.parametrize("origin", [None, "", 3, "my weights"])
def test_the_origin_that_the_error_proposes_is_accepted(origin):
    with pytest.raises(UserError) as caught:
        Backbone({"low": nn.Identity()}, InputSpec(size=8), origin=origin)
    proposed = re.search(r"give origin=ftlit\.(WeightsOrigin\(.*?\))", str(caught.value))[1]
    assert eval(proposed) == WeightsOrigin("custom", "my weights")
    assert ("leave origin out" in str(caught.value)) == (origin != "my weights")


@pytest.mark.parametrize("cut", [*CUTS, 0, 2, -1, -3, -5])
def test_a_cut_loses_nothing(cut):
    backbone, x = toy().eval(), torch.randn(2, 3, 8, 8)
    assert torch.equal(backbone.after(cut)(backbone.upto(cut)(x)), backbone(x))


@pytest.mark.parametrize("cuts", [("stem", "encoder.1", "top"), ("encoder.0",), CUTS])
def test_features_at_several_cuts_are_those_at_each_and_those_above_continue_from_them(cuts):
    net, x = toy().eval(), torch.randn(3, 3, 8, 8)
    found = net.features_at(x, cuts)
    assert all(torch.equal(values, net.upto(cut)(x)) for cut, values in zip(cuts, found, strict=True))
    batch = FeatureBatch(dict(zip(cuts, found, strict=True)))
    assert batch.cut == cuts[-1] and torch.equal(net(batch), net(x))
    above = (*cuts, *CUTS[CUTS.index(cuts[-1]) + 1 :])
    assert all(map(torch.equal, net.features_at(batch, above), net.features_at(x, above)))


def test_features_at_a_cut_run_no_layer_above_it():
    net = toy().eval()
    del net.top
    assert net.features_at(torch.randn(2, 3, 8, 8), ["encoder.1"])[0].shape == (2, *SHAPES["encoder.1"])


def test_layers_run_in_the_given_order():
    backbone, x = toy().eval(), torch.randn(2, 3, 8, 8)
    expected = x
    for name, layer in backbone.items():
        assert layer is backbone.get_submodule(name)
        expected = layer(expected)
    assert torch.equal(backbone(x), expected)
    assert backbone.cuts == CUTS == tuple(name for name, _ in backbone.items())


@pytest.mark.parametrize(("number", "name"), [(0, "stem"), (4, "top"), (-1, "top"), (-2, "neck.tokens"), (-5, "stem")])
def test_a_cut_is_a_name_or_an_index_from_either_end(number, name):
    backbone = toy()
    assert backbone.index(number) == backbone.index(name)
    assert backbone.upto(number).cuts == CUTS[: CUTS.index(name) + 1]
    assert backbone.after(number).cuts == CUTS[CUTS.index(name) + 1 :]


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ("encodr.1", "no layer 'encodr.1': did you mean 'encoder.1'? There are: stem, encoder.0, encoder.1, neck.tokens, top"),
        ("encoder", "did you mean 'encoder.0'?"),
        (5, "no layer 5: give one of stem, encoder.0"),
        (-6, "no layer -6: give one of stem, encoder.0"),
    ],
)
def test_an_unknown_cut_is_an_error_with_the_closest_match(cut, message):
    for use in (Backbone.index, Backbone.upto, Backbone.after):
        with pytest.raises(UserError) as caught:
            use(toy(), cut)
        assert message in str(caught.value)


def test_upto_and_after_share_the_modules_and_upto_keeps_the_properties():
    backbone = toy()
    lower, upper = backbone.upto("encoder.0"), backbone.after("encoder.0")
    parameters = {id(p) for part in (lower, upper) for p in part.parameters()}
    assert parameters == {id(p) for p in backbone.parameters()}
    assert isinstance(lower, Backbone) and not isinstance(upper, Backbone)
    assert (lower.input_spec, lower.token_pool, lower.origin) == (backbone.input_spec, "class_token", backbone.origin)


def test_parameter_names_begin_with_the_layer_name_and_a_cut_keeps_them():
    backbone = toy()
    expected = [f"{cut}.{name}" for cut, layer in backbone.items() for name in layer.state_dict()]
    assert list(backbone.state_dict()) == expected
    assert "encoder.0.0.weight" in expected and "stem.1.running_mean" in expected
    assert list(backbone.upto("encoder.0").state_dict()) == [name for name in expected if name.startswith(("stem.", "encoder.0."))]


def test_weights_of_a_backbone_load_into_a_lower_cut_and_back():
    saved, fresh = toy(), toy()
    nn.init.constant_(saved.get_submodule("stem")[0].weight, 3.0)
    lower = {name: t for name, t in saved.state_dict().items() if name in fresh.upto("encoder.1").state_dict()}
    fresh.upto("encoder.1").load_state_dict(lower)
    assert all(torch.equal(t, fresh.state_dict()[name]) for name, t in saved.state_dict().items())


def test_feature_shapes_equal_those_of_a_forward_pass():
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


def test_feature_shapes_do_not_change_modes_parameters_buffers_gradients_or_random_state():
    backbone = toy().train()
    backbone.get_submodule("stem").eval()
    backbone.get_submodule("encoder.1").weight.requires_grad_(False)
    modes = [module.training for module in backbone.modules()]
    tensors = [*backbone.parameters(), *backbone.buffers()]
    values, trained, random_state = deepcopy(tensors), [t.requires_grad for t in tensors], torch.get_rng_state()
    assert backbone.feature_shapes == SHAPES
    after = [*backbone.parameters(), *backbone.buffers()]
    assert all(a is b for a, b in zip(after, tensors, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(after, values, strict=True))
    assert [t.requires_grad for t in after] == trained and all(t.grad is None for t in after)
    assert [module.training for module in backbone.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)


def test_modes_are_restored_if_a_layer_fails():
    backbone = Backbone({"stem": nn.Sequential(nn.Linear(5, 5), nn.Dropout())}, InputSpec(size=8)).train()
    with pytest.raises(RuntimeError):
        _ = backbone.feature_shapes
    assert all(module.training for module in backbone.modules())


def test_pool_averages_or_takes_the_class_token():
    features_map, tokens, vectors = torch.randn(2, 6, 3, 5), torch.randn(2, 7, 6), torch.randn(2, 6)
    assert torch.equal(pool(features_map), features_map.mean((2, 3)))
    assert torch.equal(pool(features_map, "class_token"), features_map.mean((2, 3)))
    assert torch.equal(pool(tokens), tokens.mean(1))
    assert torch.equal(pool(tokens, "class_token"), tokens[:, 0])
    assert torch.equal(pool(vectors), vectors) and torch.equal(pool(vectors, "class_token"), vectors)
    assert torch.equal(toy().pool(tokens), tokens[:, 0])


def test_max_and_2x2_pooling_equal_a_manual_computation():
    features = torch.arange(2 * 3 * 5 * 4, dtype=torch.float32).reshape(2, 3, 5, 4)
    assert torch.equal(pool(features, pooling="max"), features[:, :, 4, 3])
    halves = product((slice(0, 3), slice(2, 5)), (slice(0, 2), slice(2, 4)))
    quarters = [features[:, :, rows, columns].mean(dim=(2, 3)) for rows, columns in halves]
    assert torch.equal(pool(features, pooling="2x2"), torch.stack(quarters, dim=2).flatten(1))
    assert torch.equal(pool(features[:, :, 0], "class_token", "max"), features[:, 2, 0])
    for shape in ((3, 5, 4), (5, 3), (7,), (3, 1, 4)):
        for way in poolings_of(shape):
            assert pool(torch.randn(2, *shape), pooling=way).shape == (2, pooled_size(shape, pooling=way))
    assert poolings_of((3, 1, 4)) == poolings_of((7,)) == ("average",) and poolings_of((5, 3)) == ("average", "max")
    with pytest.raises(UserError, match=r"pooling='max' does not apply to features of shape \(7,\); supported: average"):
        pool(torch.randn(2, 7), pooling="max")


def test_a_backbone_needs_a_layer_and_no_layer_follows_the_last_cut():
    with pytest.raises(UserError, match="at least one layer"):
        Backbone({}, InputSpec())
    x = torch.randn(2, 6)
    assert toy().after(-1).cuts == () and Layers({})(x) is x


@pytest.mark.parametrize(
    "name", ["pool", "items", "forward", "train", "cuts", "origin", "input_spec", "num_features", "encoder.forward", "a..b", ""]
)
def test_the_name_of_an_attribute_is_not_a_valid_layer_name(name):
    with pytest.raises(UserError, match="is not a valid layer name") as caught:
        Backbone({"stem": nn.Identity(), name: nn.Identity()}, InputSpec())
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("names", [("a", "a.0"), ("a.0", "a"), ("stem", "a.b.c", "a.b")])
def test_a_layer_inside_another_layer_is_an_error(names):
    with pytest.raises(UserError, match="lies inside layer"):
        Backbone({name: nn.Identity() for name in names}, InputSpec())
    assert Layers({"a": nn.Identity(), "ab": nn.Identity()}).cuts == ("a", "ab")


def test_the_error_for_an_origin_that_is_a_string_gives_the_correct_call():
    with pytest.raises(UserError, match=r"ftlit\.WeightsOrigin\(\"custom\", 'my weights'\)"):
        Backbone({"low": nn.Identity()}, InputSpec(), origin="my weights")
    with pytest.raises(UserError, match="did you mean 'file'"):
        WeightsOrigin("files")


@pytest.mark.parametrize(("origin", "reinit", "random"), [(RANDOM, [], ("a", "b")), (WeightsOrigin("file", "w.pth"), ["b"], ("b",))])
def test_random_layers_are_the_reinitialized_layers_or_all_layers_of_a_random_start(origin, reinit, random):
    backbone = Backbone({"a": nn.Identity(), "b": nn.Identity()}, InputSpec(), origin=origin, reinit=reinit)
    assert backbone.random_layers == random and backbone.pretrained == (origin != RANDOM)
