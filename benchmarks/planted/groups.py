"""Faults of the parameters in the optimizer."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from .fault import Found, fault
from .nets import Net, fit, flat, linear_head, max_difference, number, plain
from .peers import LEARNING_RATE


class TwoHeads(nn.Module):
    """Two heads, of which the second is not trained yet: its norm still has the same initial values as a norm of the backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear_head(), nn.LayerNorm(8)

    def forward(self, features: Tensor) -> Tensor:
        return self.first(features)


@fault("parameters with equal values are left out of the optimizer on unfreezing", pattern="will be skipped")
def equal_values(peer: Any, folder: Path) -> Found:
    """A norm of the backbone has the same values as an untrained norm of the head (Lightning's `filter_on_optimizer`). Harm: it never
    trains."""
    torch.manual_seed(0)
    net = Net(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh()), TwoHeads(), peer.optimizer)
    start = deepcopy(net.backbone)
    fit(net, peer.callbacks(net), folder)
    moved = [not torch.equal(a, b) for a, b in zip(start.parameters(), net.backbone.parameters(), strict=True)]
    return Found(not all(moved), f"{sum(moved)} of {len(moved)} tensors train")


@fault("a layer that is not in the optimizer never trains", pattern=r"neck|no optimizer holds|not in the optimizer|in no optimizer")
def no_group(peer: Any, folder: Path) -> Found:
    """The optimizer is built over the head, as in the example of BackboneFinetuning, and the module has a neck between backbone and head;
    all layers should train from epoch 1 on. Harm: the neck does not change."""

    class WithNeck(Net):
        def __init__(self) -> None:
            super().__init__(plain(), linear_head(), lambda module: SGD(module.head.parameters(), lr=LEARNING_RATE))
            torch.manual_seed(4)
            self.neck = nn.Linear(8, 8)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.neck(self.backbone(images)))

    net = WithNeck()
    start = flat(net.neck)
    fit(net, peer.callbacks(net), folder)
    moved = max_difference(start, flat(net.neck))
    return Found(moved == 0, f"neck changes by {number(moved)}")
