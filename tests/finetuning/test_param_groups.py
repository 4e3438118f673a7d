"""Invariant 2: groups partition the parameters by identity, frozen ones included, and frozen parameters never change."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftlit.errors import UserError
from ftlit.finetuning.freeze import set_trainable
from ftlit.finetuning.param_groups import build_optimizer, param_groups

factors = st.floats(1e-4, 10)


def net(layers: int = 4, value: float | None = None) -> nn.ModuleDict:
    """Return layers of equal shapes and, with `value`, of equal values."""
    model = nn.ModuleDict({f"layer{i}": nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)) for i in range(layers)})
    if value is not None:
        for parameter in model.parameters():
            nn.init.constant_(parameter, value)
    return model


@st.composite
def rules(draw, layers: int = 4):
    """Draw patterns of some layers or parts of layers, in any order, followed by a pattern for all others."""
    picked = draw(st.lists(st.sampled_from(range(layers)), unique=True, max_size=layers - 1))
    patterns = [f"layer{i}{draw(st.sampled_from(['', '.0', '.1', '.*.bias', '.0.weight']))}" for i in picked]
    return [(pattern, draw(factors)) for pattern in [*patterns, "*"]]


@given(rules(), st.booleans(), st.sets(st.integers(0, 15)))
def test_each_parameter_is_in_exactly_one_group_by_identity_whether_frozen_or_not(rules, equal_valued, frozen):
    model = net(value=1.0 if equal_valued else None)
    parameters = list(model.parameters())
    for i in frozen:
        parameters[i].requires_grad_(False)
    groups = param_groups(model, rules)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in parameters)
    assert [(group["name"], group["lr_scale"]) for group in groups] == rules


@given(rules())
def test_each_parameter_is_in_the_group_of_the_first_pattern_that_covers_it(rules):
    model = net()
    group_of = {id(parameter): group["name"] for group in param_groups(model, rules) for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        layer, inner = name.split(".")[:2]
        covering = {layer, f"{layer}.{inner}", f"{layer}.*.{leaf}", name, "*"}
        assert group_of[id(parameter)] == next(pattern for pattern, _ in rules if pattern in covering)


@given(rules(), st.floats(1e-6, 1))
def test_the_rate_of_a_group_is_the_base_rate_times_its_scale(rules, base):
    optimizer = build_optimizer(net(), partial(torch.optim.SGD, lr=base), rules)
    assert [(group["name"], group["lr"]) for group in optimizer.param_groups] == [(pattern, base * factor) for pattern, factor in rules]


def test_the_default_is_one_group_with_the_base_rate():
    (group,) = build_optimizer(net(), partial(torch.optim.AdamW, lr=0.3)).param_groups
    assert (group["name"], group["lr"], len(group["params"])) == ("*", 0.3, 16)


def test_a_tied_parameter_is_in_one_group_only():
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "decoder": nn.Linear(3, 5)})
    model.decoder.weight = model.embedding.weight
    first, second = param_groups(model, [("decoder", 1.0), ("*", 0.1)])
    assert [id(p) for p in first["params"]] == [id(model.decoder.bias)]
    assert [id(p) for p in second["params"]] == [id(model.embedding.weight)]


@pytest.mark.parametrize(
    "factory",
    [
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1),
        partial(torch.optim.RMSprop, lr=0.1, momentum=0.9, weight_decay=0.1),
    ],
)
def test_momentum_and_weight_decay_do_not_change_a_parameter_while_it_is_frozen(factory):
    torch.manual_seed(0)
    model = net(2)
    optimizer = build_optimizer(model, factory, [("layer0", 0.5), ("*", 1.0)])

    def step() -> list[bool]:
        """Return whether a step changes all of layer0, any of layer0, all of layer1."""
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        model.layer1(model.layer0(torch.randn(8, 3)).tanh()).pow(3).sum().backward()
        optimizer.step()
        moved = [not torch.equal(b, p) for b, p in zip(before, model.parameters(), strict=True)]
        return [all(moved[:4]), any(moved[:4]), all(moved[4:])]

    assert step() == [True, True, True]  # momentum is no longer 0
    set_trainable(model, ["layer1"])
    assert [step(), step()] == [[False, False, True]] * 2
    set_trainable(model, ["*"])
    assert step() == [True, True, True]


def test_a_pattern_without_a_parameter_is_an_error():
    with pytest.raises(UserError, match="'layr1' matches no parameter: did you mean 'layer1'"):
        param_groups(net(), [("layr1", 1.0), ("*", 1.0)])
    with pytest.raises(UserError, match=r"pattern 'layer1\.0' has no effect"):
        param_groups(net(), [("layer1", 1.0), ("layer1.0", 0.1), ("*", 1.0)])
    with pytest.raises(UserError, match="pattern 'layer1' is given twice"):
        param_groups(net(), [("layer1", 1.0), ("layer1", 0.1), ("*", 1.0)])


def test_an_uncovered_parameter_is_an_error_and_no_optimizer_is_built():
    built = []
    with pytest.raises(UserError, match=r"no pattern matches 'layer2\.0\.weight'"):
        build_optimizer(net(), built.append, [("layer[013]", 1.0)])
    assert not built


def test_an_optimizer_in_place_of_its_factory_is_one_line():
    module = nn.Linear(2, 2)
    with pytest.raises(
        UserError, match=r"^build_optimizer needs a function that builds an optimizer, but this is a SGD: give .*partial\(torch\.optim"
    ):
        build_optimizer(module, torch.optim.SGD(module.parameters(), lr=0.1))
    with pytest.raises(
        UserError,
        match=r"^learning-rate factors are a list of pairs \(pattern, factor\), not \{.*: give \[\('0', 0\.1\), \('\*', 1\.0\)\]$",
    ):
        build_optimizer(module, torch.optim.SGD, {"0": 0.1, "*": 1.0})


@pytest.mark.parametrize("factor", [-1, float("nan"), float("inf"), "0.1", None, True])
def test_a_factor_that_is_no_number_from_0_is_one_line(factor):
    with pytest.raises(UserError, match=rf"^learning-rate factor {factor!r} of '\*': give a number, 0 or more( \('0.1' is a text.*)?$"):
        build_optimizer(nn.Linear(2, 2), partial(torch.optim.SGD, lr=0.1), [("bias", 1.0), ("*", factor)])
    assert build_optimizer(nn.Linear(2, 2), partial(torch.optim.SGD, lr=0.1), [("bias", 1.0), ("*", 0)]).param_groups[1]["lr"] == 0


def test_factors_may_come_from_an_iterator_which_can_be_read_once():
    pairs = [("layer0", 1.0), ("*", 0.1)]
    sizes = [[(group["name"], len(group["params"])) for group in param_groups(net(), given)] for given in (iter(pairs), pairs)]
    assert sizes[0] == sizes[1] == [("layer0", 4), ("*", 12)]
