"""Networks with batch norm, for the tests of rewrites."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ftlit.models.heads import LinearHead
from ftlit.zoo import load_backbone

SETTINGS = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def randomise(module):
    """Randomise statistics, weights and biases: their default values would hide a missing factor."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            for name, tensor in norm.state_dict().items():
                if tensor.is_floating_point():
                    tensor.uniform_(0.5, 1.5) if name in ("weight", "running_var") else tensor.normal_(std=0.3)
    return module


def network(name, size):
    torch.manual_seed(0)
    backbone = load_backbone(name, weights=None, input_spec={"size": size}, **SETTINGS.get(name, {}))
    return nn.Sequential(OrderedDict(backbone=randomise(backbone), head=LinearHead(backbone.num_features, 10)))


def logits(model, x):
    with torch.no_grad():
        return model.head(model.backbone.pool(model.backbone(x)))


def net(dtype=torch.float32, **settings):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **settings), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4, **settings)]
    return randomise(nn.Sequential(*layers)).to(dtype).eval()


def assert_same(one, other):
    """Within the tolerance of the dtype, relative to the largest value."""
    assert (one - other).abs().max() <= TOLERANCE[one.dtype] * one.abs().max()


def assert_state_equal(one, other):
    assert list(one) == list(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
