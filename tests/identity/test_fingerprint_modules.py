"""Fingerprints of modules and data sets: every change that affects an output gives another fingerprint."""

from collections import OrderedDict
from copy import deepcopy
from functools import partial

import pytest
import torch
from fingerprint_examples import Scale, double
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from ftlit.finetuning.freeze import hold_modes, modes_of, set_trainable
from ftlit.identity.fingerprint import fingerprint, prefixes
from ftlit.models.batchnorm_fold import batchnorm_to_affine
from ftlit.zoo import load_backbone


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Scale(), nn.Dropout(0.5))


def all_frozen(model: nn.Module) -> nn.Module:
    set_trainable(model, ["0"], "frozen_stats")
    return model


def held(model: nn.Module) -> nn.Module:
    set_trainable(model, ["1"])
    hold_modes(modes_of(model))
    return model


def stepped(model: nn.Module) -> nn.Module:
    model.eval()(torch.ones(2, 3, 4, 4)).sum().backward()
    return model


@pytest.mark.parametrize(
    "change",
    [
        deepcopy, nn.Module.eval, all_frozen, held, stepped, lambda m: deepcopy(held(m)), lambda m: m.requires_grad_(False),
        lambda m: m.to(memory_format=torch.channels_last), lambda m: m.to(torch.float64).to(torch.float32), lambda m: m.share_memory(),
    ],
)  # fmt: skip
def test_mode_requires_grad_and_memory_format_do_not_change_the_fingerprint(change):
    assert fingerprint(change(net())) == fingerprint(net())


def test_building_saving_and_calling_do_not_change_the_fingerprint_of_a_backbone(tmp_path):
    backbone = load_backbone("glyph")
    before = fingerprint(backbone)
    backbone.eval()(torch.zeros(1, 3, 32, 32))
    torch.save(backbone, tmp_path / "whole.pt")
    assert before == fingerprint(backbone) == fingerprint(load_backbone("glyph"))
    assert before == fingerprint(torch.load(tmp_path / "whole.pt", weights_only=False))


class Shift(Scale):
    pass


def weight(m):
    m[0].weight.data[0, 0, 0, 0] += 1e-6


def statistic(m):
    m[1].running_mean[3] += 1e-6


def count(m):
    m[1].num_batches_tracked += 1


def hooked(m):
    m[2].register_forward_hook(lambda module, args, out: out + 1)


def hooked_before(m):
    m[2].register_forward_pre_hook(lambda module, args: args[0] + 1)


def scaling(factor):
    return lambda module, args, out: out * factor


def times(factor, module, args, out):
    return out * factor


def replaced(m):
    m[3].forward = double


CHANGES = {
    "weight": weight, "buffer": statistic, "count": count, "hook": hooked, "hook before": hooked_before, "forward": replaced,
    "hook that closes over a number": lambda m: m[2].register_forward_hook(scaling(2.0)),
    "over another": lambda m: m[2].register_forward_hook(scaling(5.0)),
    "hook with a tensor": lambda m: m[2].register_forward_hook(partial(times, torch.ones(1))),
    "with another": lambda m: m[2].register_forward_hook(partial(times, torch.zeros(1))),
    "eps": lambda m: setattr(m[1], "eps", 1e-3),
    "stride": lambda m: setattr(m[0], "stride", (2, 2)),
    "own attribute": lambda m: setattr(m[3], "factor", 2.5),
    "new attribute": lambda m: setattr(m[3], "other", 1),
    "class": lambda m: m.__setitem__(3, Shift()),
    "class of the same shape": lambda m: m.__setitem__(2, nn.ReLU6()),
    "in place": lambda m: setattr(m[2], "inplace", True),
    "dropout": lambda m: setattr(m[4], "p", 0.25),
    "no bias": lambda m: setattr(m[0], "bias", None),
    "buffer from parameter": lambda m: (m[1].__delattr__("bias"), m[1].register_buffer("bias", torch.zeros(4))),
    "a layer less": lambda m: m.__delitem__(4),
    "dtype": lambda m: m.to(torch.float64),
    "folded": batchnorm_to_affine,
}  # fmt: skip


def test_each_change_of_a_module_gives_another_fingerprint():
    found = {"none": fingerprint(net())}
    for name, change in CHANGES.items():
        model = net()
        change(model)
        found[name] = fingerprint(model)
    assert len(set(found.values())) == len(found)


def test_order_and_names_of_layers_change_the_fingerprint():
    a, b = Scale(2.0), Scale(3.0)
    nets = [nn.Sequential(a, b), nn.Sequential(b, a), nn.Sequential(OrderedDict(x=a, y=b)), nn.ModuleList([a, b])]
    assert len({fingerprint(one) for one in nets}) == 4


def test_a_traced_network_is_identified_by_its_code_and_its_weights():
    def traced(layer):
        torch.manual_seed(0)
        return fx.symbolic_trace(nn.Sequential(*[nn.Linear(2, 2) for _ in range(30)], layer))

    assert fingerprint(traced(nn.ReLU())) == fingerprint(traced(nn.ReLU())) != fingerprint(traced(nn.Sigmoid()))
    one, other = traced(nn.ReLU()), traced(nn.ReLU())
    other.get_parameter("3.weight").data += 1
    assert fingerprint(one) != fingerprint(other)


class Pictures(torch.utils.data.Dataset):
    def __init__(self, root="here", kind="rgb", loader=abs, samples=(1, 2)):
        self.root, self.kind, self.loader, self.samples = root, kind, loader, list(samples)


def test_a_data_set_is_identified_by_its_loading_and_not_by_images_or_root():
    plain = fingerprint(Pictures())
    assert plain == fingerprint(Pictures(root="there")) == fingerprint(Pictures(samples=range(9)))
    assert len({plain, fingerprint(Pictures(kind="thermal")), fingerprint(Pictures(loader=float))}) == 3


def test_a_method_of_a_data_set_is_identified_by_its_numbers_and_not_by_its_images():
    class Data(torch.utils.data.Dataset):
        def __init__(self, gain, pictures):
            self.gain, self.pictures, self.root = gain, pictures, "somewhere"

        def load(self, place):
            return self.pictures[place] * self.gain

    assert fingerprint(Data(1, [1, 2]).load) == fingerprint(Data(1, [1, 2, 3]).load) != fingerprint(Data(2, [1, 2]).load)


@given(at=st.integers(0, 4))
def test_a_changed_layer_changes_its_prefix_and_those_above_but_none_below(at):
    layers = {f"layer{i}": nn.Linear(2, 2) for i in range(5)}
    before = prefixes(layers)
    layers[f"layer{at}"].bias.data += 1
    after = prefixes(layers)
    assert [before[name] == after[name] for name in layers] == [i < at for i in range(5)]


def test_each_cut_has_a_different_prefix_that_does_not_depend_on_later_layers():
    backbone = load_backbone("glyph")
    found = prefixes(dict(backbone.items()))
    assert tuple(found) == backbone.cuts and len(set(found.values())) == len(found)
    for cut in backbone.cuts:
        assert prefixes(dict(backbone.upto(cut).items())) == {name: found[name] for name in backbone.upto(cut).cuts}


def test_equal_layers_at_other_positions_have_other_prefixes():
    layer = nn.ReLU()
    assert len(set(prefixes({"a": layer, "b": layer, "c": layer}).values())) == 3
