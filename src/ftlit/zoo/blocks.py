"""What a network falls into when it is taken apart, and the few modules that stand for a line of its `forward`."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ftlit.code_identity import versioned
from ftlit.models.pooling import TokenPool

IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))


@dataclass(frozen=True)
class NetworkParts:
    """A network taken apart.

    Args:
        layers: name -> module, in forward order.
        classifier: features of the last layer -> logits.
        token_pool: how the network pools tokens, if it has any.
    """

    layers: Mapping[str, nn.Module]
    classifier: nn.Module
    token_pool: TokenPool = "mean"


def named(**modules: nn.Module) -> nn.Sequential:
    """Modules that run one after the other, each under its name."""
    return nn.Sequential(OrderedDict(modules))


def pooled(**modules: nn.Module) -> nn.Sequential:
    """A map (N, C, H, W) averaged over its places to a vector (N, C), then `modules`."""
    return named(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(1), **modules)


@versioned("renormalise", 1)
class Renormalise(nn.Module):
    """Images normalised with ImageNet's mean and std -> normalised with 0.5 and 0.5, as GoogLeNet's and Inception's first
    owners did it. torchvision calls it `transform_input`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 3, H, W), kept."""
        channels = [x[:, i : i + 1] * (std / 0.5) + (mean - 0.5) / 0.5 for i, (mean, std) in enumerate(IMAGENET)]
        return torch.cat(channels, dim=1)
