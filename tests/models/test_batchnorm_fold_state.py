"""Invariant 7 for state dicts: checkpoints of a batch norm and of its affine form load into either."""

from copy import deepcopy

import pytest
import torch
from batchnorm_networks import TOLERANCE, assert_same, assert_state_equal, logits, net, network, randomise
from torch import nn

from ftlit.models.batchnorm_fold import batchnorm_to_affine, load_either

pytestmark = pytest.mark.zoo


def test_a_checkpoint_of_either_form_loads_into_either():
    """`whole[1]` is the affine form. The targets start from other weights."""
    x = torch.randn(2, 3, 64, 64)
    whole = [network("resnet18", 64).eval(), batchnorm_to_affine(network("resnet18", 64)).eval()]
    expected = logits(whole[0], x)
    for source in whole:
        for target in map(deepcopy, whole):
            for parameter in target.parameters():
                nn.init.normal_(parameter)
            state = deepcopy(source.state_dict())
            load_either(target, state)
            assert_same(expected, logits(target, x))
            assert_state_equal(state, source.state_dict())


@pytest.mark.parametrize("source", [torch.float16, torch.float32, torch.float64])
def test_loading_folds_in_float64_and_keeps_the_dtype_of_the_module(source):
    old = net(source)
    for target in TOLERANCE:
        affine = batchnorm_to_affine(net()).to(target)
        affine.load_state_dict(old.state_dict())
        expected = batchnorm_to_affine(deepcopy(old).double()).to(target)
        assert_state_equal(affine.state_dict(), expected.state_dict())


def test_a_state_dict_can_be_assigned_to_modules_on_the_meta_device():
    old = net()
    with torch.device("meta"):
        affine = batchnorm_to_affine(net())
    affine.load_state_dict(old.state_dict(), assign=True)
    x = torch.randn(2, 3, 4, 4)
    assert_same(old(x), affine(x))


@pytest.mark.parametrize("settings", [{}, {"affine": False}])
def test_load_state_dict_of_torch_loads_a_batch_norm_checkpoint_into_the_affine_form(settings):
    old = net(**settings)
    affine = batchnorm_to_affine(net(**settings))
    for parameter in affine.parameters():
        nn.init.normal_(parameter)
    affine.load_state_dict(old.state_dict())
    x = torch.randn(2, 3, 4, 4)
    assert_same(old(x), affine(x))


def test_missing_and_unexpected_keys_are_errors():
    for source, target in ((net(), batchnorm_to_affine(net())), (batchnorm_to_affine(net()), net()), (net(), net())):
        for change, message in (({}, r'Missing key.*"1\.bias"'), ({"1.foo": torch.zeros(1)}, r'Unexpected key.*"1\.foo"')):
            state = {**source.state_dict(), **change}
            if not change:
                del state["1.bias"]
            with pytest.raises(RuntimeError, match=f"(?s){message}"):
                load_either(target, state)
    with pytest.raises(RuntimeError, match=r"Missing key.*running_mean"):
        load_either(nn.BatchNorm2d(4, affine=False), {})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"1\.weight"'):
        load_either(net(affine=False), batchnorm_to_affine(net()).state_dict())


def test_a_batch_norm_without_statistics_loads_unchanged():
    old, new = (randomise(nn.BatchNorm2d(4, track_running_stats=False)) for _ in range(2))
    load_either(new, old.state_dict())
    assert_state_equal(new.state_dict(), old.state_dict())
