"""Check of loaded weights."""

import torch

from ftlit.zoo.torchvision_layers import take_apart


def assert_same(backbone, model):
    """Check that each layer of a backbone has the weights of the same layer of a network of torchvision."""
    wanted = take_apart(model).layers
    for name, layer in backbone.items():
        assert layer.state_dict().keys() == wanted[name].state_dict().keys()
        for key, tensor in layer.state_dict().items():
            assert torch.equal(tensor, wanted[name].state_dict()[key]), (name, key)
