"""Invariant 3: frozen means frozen. Parameters, statistics and modes of frozen layers never change, even after `.train()`."""

from collections import OrderedDict
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.finetuning.freeze import batchnorm_policies, hold_modes, modes_of, release_modes, set_modes, set_trainable
from ftlit.models.backbone import Backbone
from ftlit.models.weights_origin import RANDOM, WeightsOrigin


def layer(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.ReLU())


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(layer(), layer(), nn.Dropout(0.5), nn.Linear(4, 2))


def modes(module: nn.Module) -> dict[str, bool]:
    return {name: child.training for name, child in module.named_modules()}


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()


subsets = st.sets(st.sampled_from(["0", "1", "3", "0.0", "1.1.bias", "3.weight"]), min_size=1).map(sorted)


def test_exactly_the_covered_parameters_train():
    model = net()
    set_trainable(model, ["1", "3.bias"])
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["1.0.weight", "1.0.bias", "1.1.weight", "1.1.bias", "3.bias"]


def test_frozen_parameters_and_statistics_and_the_outputs_of_a_frozen_prefix_do_not_change():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    train(model, optimizer)  # momentum must not change layers that are frozen later
    set_trainable(model, ["3"])
    frozen, x = deepcopy(model[:3].state_dict()), torch.randn(5, 4)
    before, head = model[:2](x), model[3].weight.clone()
    model.train()
    set_modes(modes_of(model))
    train(model, optimizer)
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in model[:3].state_dict().items())
    assert torch.equal(model[:2](x), before)
    assert not torch.equal(model[3].weight, head)


def test_trained_layers_have_live_statistics_and_live_dropout():
    model = net()
    set_trainable(model, ["1", "3"])
    before, x = deepcopy(model.state_dict()), torch.randn(8, 4)
    assert not torch.equal(model[1](x), model[1](x))
    assert model[1][1].num_batches_tracked == before["1.1.num_batches_tracked"] + 2
    assert torch.equal(model[0](x), model[0](x))


def test_dropout_inside_frozen_layers_is_off_and_other_dropout_has_the_mode_of_its_parent():
    model = net()
    set_trainable(model, ["3"])
    assert [model[0][2].training, model[1][2].training, model[2].training] == [False, False, True]
    nested = nn.Sequential(nn.Sequential(layer(), nn.Dropout(0.5)), nn.Linear(4, 2))
    set_trainable(nested, ["1"])
    assert not nested[0][1].training


def test_a_partly_trained_module_is_in_training_mode_and_its_frozen_children_are_not():
    model = net()
    set_trainable(model, ["1.0.bias", "3"])
    assert modes(model) == {
        **{"": True, "0": False, "0.0": False, "0.1": False, "0.2": False, "0.3": False},
        **{"1": True, "1.0": True, "1.1": False, "1.2": True, "1.3": True, "2": True, "3": True},
    }


def test_frozen_parameters_have_no_gradient_and_trained_parameters_keep_theirs():
    model = net()
    model(torch.randn(8, 4)).sum().backward()
    kept = {name: parameter.grad for name, parameter in model.named_parameters()}
    set_trainable(model, ["1", "3"])
    for name, parameter in model.named_parameters():
        assert parameter.grad is (None if name.startswith("0") else kept[name])


def test_all_modules_have_the_same_mode_if_all_parameters_are_frozen_or_trained():
    model = net()
    set_trainable(model, ["*"])
    assert all(modes(model).values())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    set_modes(modes_of(model))
    assert not any(modes(model).values())


@given(subsets, subsets)
def test_set_trainable_returns_whether_a_parameter_changed_and_only_the_last_call_counts(first, second):
    model, fresh = net(), net()
    set_trainable(model, first)
    before = [parameter.requires_grad for parameter in model.parameters()]
    assert not set_trainable(model, first)
    changed = set_trainable(model, second)
    after = [parameter.requires_grad for parameter in model.parameters()]
    assert changed == (before != after)
    set_trainable(fresh, second)
    assert modes(model) == modes(fresh)
    assert after == [parameter.requires_grad for parameter in fresh.parameters()]


@given(subsets, st.booleans())
def test_set_modes_is_idempotent_and_undoes_train_and_eval(patterns, mode):
    model = net()
    set_trainable(model, patterns)
    wanted = modes(model)
    set_modes(modes_of(model))
    assert modes(model) == wanted
    model.train(mode)
    set_modes(modes_of(model))
    assert modes(model) == wanted


class Tied(nn.Module):
    """A decoder that shares the weight of the embedding: one parameter with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner, self.decoder = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
        self.decoder.weight = self.embedding.weight


@pytest.mark.parametrize("name", ["embedding", "decoder", "decoder.weight"])
def test_a_parameter_with_two_names_trains_if_either_is_covered(name):
    model = Tied()
    assert set_trainable(model, [name])
    assert model.embedding.weight.requires_grad and not model.inner.weight.requires_grad
    assert model.embedding.training and model.decoder.training and not model.inner.training
    assert not set_trainable(model, ["embedding"])
    assert set_trainable(model, ["inner"])
    assert not model.embedding.weight.requires_grad and not model.decoder.training


def test_a_pattern_without_match_is_an_error_and_changes_nothing():
    model = net()
    set_trainable(model, ["3"])
    before = modes(model), [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(UserError, match="'layer9' matches no parameter"):
        set_trainable(model, ["0", "layer9"])
    assert before == (modes(model), [parameter.requires_grad for parameter in model.parameters()])


STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


def changed_tensors(model: nn.Module, steps: int = 2) -> set[str]:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1), steps)
    return {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}


@pytest.mark.parametrize(
    ("policy", "norm_changes"),
    [("live", {"weight", "bias"} | STATISTICS), ("frozen_stats", {"weight", "bias"}), ("frozen", set())],
)
def test_the_batchnorm_policy_decides_which_tensors_of_a_trained_batch_norm_change(policy, norm_changes):
    model = net()
    set_trainable(model, ["*"], policy)
    names = changed_tensors(model)
    assert {name for name in names if ".1." in name} == {f"{layer}.1.{leaf}" for layer in "01" for leaf in norm_changes}
    assert {"0.0.weight", "1.0.weight", "3.weight"} <= names


@pytest.mark.parametrize("policy", ["live", "frozen_stats", "frozen"])
def test_no_batchnorm_policy_changes_a_frozen_layer(policy):
    model = net()
    set_trainable(model, ["1", "3"], policy)
    assert not any(name.startswith("0.") for name in changed_tensors(model))


FILE = WeightsOrigin("file", "a.pth")


@pytest.mark.parametrize(
    ("origin", "reinit", "batchnorm", "live"),
    [
        (FILE, [], "auto", {"head"}),
        (FILE, [], {"backbone": "auto"}, {"head"}),
        (FILE, [], {"backbone.low": "live"}, {"low", "head"}),
        (FILE, ["high"], "auto", {"high", "head"}),
        (RANDOM, [], "auto", {"low", "high", "head"}),
    ],
)
def test_auto_freezes_the_statistics_of_pretrained_layers_only(origin, reinit, batchnorm, live):
    model = nn.Module()
    layers = {name: nn.BatchNorm2d(3) for name in ("low", "high")}
    model.backbone = Backbone(layers, InputSpec(size=2), origin=origin, reinit=reinit)
    model.head = nn.BatchNorm2d(3)
    set_trainable(model, ["*"], batchnorm)
    norms = {"low": model.backbone.low, "high": model.backbone.high, "head": model.head}
    assert {name for name, norm in norms.items() if norm.training} == live
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_policies_may_differ_by_pattern_and_the_first_match_wins():
    model = net()
    set_trainable(model, ["*"], {"0.1": "frozen", "0": "frozen_stats"})
    assert {name.split(".")[-1] for name in changed_tensors(model) if name.startswith("0.1.")} == set()
    assert STATISTICS <= {name.split(".")[-1] for name in changed_tensors(model) if name.startswith("1.1.")}


def test_a_policy_may_change_from_stage_to_stage():
    model = net()
    for policy, norm_trains in (("frozen", False), ("live", True), ("frozen_stats", False)):
        set_trainable(model, ["*"], policy)
        assert model[0][1].training == norm_trains


@pytest.mark.parametrize(("batchnorm", "message"), [("frozn", "did you mean 'frozen'"), ({"0.9": "frozen"}, "'0.9' matches no parameter")])
def test_an_unknown_policy_or_pattern_is_an_error_and_changes_nothing(batchnorm, message):
    model = net()
    with pytest.raises(UserError, match=message):
        set_trainable(model, ["3"], batchnorm)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("patterns", "active"), [(["top"], False), (["low", "top"], True), (["low"], True)])
def test_a_layer_without_parameters_is_frozen_if_the_layers_below_are_frozen(patterns, active):
    layers = {"low": nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), "drop": nn.Dropout(0.5), "top": nn.Linear(4, 4)}
    backbone = Backbone(layers, InputSpec(size=2))
    set_trainable(backbone, patterns)
    features = [backbone.upto("drop")(torch.ones(4, 3, 2, 2)) for _ in range(2)]
    assert (not torch.equal(*features)) == active


def test_held_modules_stay_in_evaluation_mode_until_they_are_released():
    model = net()
    set_trainable(model, ["1", "3"])
    held = modes_of(model)
    hold_modes(held)
    copy = deepcopy(model)
    for one in (model, copy):
        one.train()
        one[0][1].train()
        assert not any(module.training for module in one[0].modules()) and one[1].training
        one.eval()
        assert not any(module.training for module in one.modules())
    release_modes(held)
    assert all(module.training for module in model.train().modules())


def test_auto_keeps_the_statistics_of_a_plain_network_that_says_that_it_is_pretrained():
    net = nn.Sequential(OrderedDict(body=nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), new=nn.BatchNorm2d(4)))
    assert set(batchnorm_policies(net, "auto").values()) == {"live"}
    net.body.origin = WeightsOrigin("random")
    assert set(batchnorm_policies(net, "auto").values()) == {"live"}
    net.body.origin = WeightsOrigin("torchvision", "IMAGENET1K_V1")
    assert batchnorm_policies(net, "auto") == {net.body[1]: "frozen_stats", net.new: "live"}
    set_trainable(net.train(), ["*"])
    assert not net.body[1].training and net.new.training
    set_trainable(net.train(), ["*"], "live")
    assert net.body[1].training
