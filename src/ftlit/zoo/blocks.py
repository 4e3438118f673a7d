"""Building blocks of the zoo: `NetworkParts`, named sequences of modules, and modules that replace single lines of a `forward`."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ftlit.identity.code_identity import versioned
from ftlit.models.pooling import TokenPool

IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))  # (mean, std) of each channel


@dataclass(frozen=True)
class NetworkParts:
    """The named layers of a network and its classifier.

    Args:
        layers: name -> module, in forward order.
        classifier: features of the last layer -> logits.
        token_pool: how the network pools tokens, if it has any.
    """

    layers: Mapping[str, nn.Module]
    classifier: nn.Module
    token_pool: TokenPool = "mean"


def sequential(**modules: nn.Module) -> nn.Sequential:
    """Build an `nn.Sequential` whose modules have these names."""
    return nn.Sequential(OrderedDict(modules))


def pooled_sequential(**modules: nn.Module) -> nn.Sequential:
    """Average a map (N, C, H, W) over its positions to a vector (N, C), then run `modules`."""
    return sequential(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(1), **modules)


@versioned("renormalise", 1)
class Renormalise(nn.Module):
    """Convert images normalised with ImageNet's mean and std to mean 0.5 and std 0.5.

    The original weights of GoogLeNet and Inception expect the latter; torchvision's name for this step is `transform_input`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convert images (N, 3, H, W); the shape stays the same."""
        channels = [x[:, i : i + 1] * (std / 0.5) + (mean - 0.5) / 0.5 for i, (mean, std) in enumerate(IMAGENET)]
        return torch.cat(channels, dim=1)
