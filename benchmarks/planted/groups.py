"""What the optimizer holds."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from .fault import Found, fault
from .nets import Net, fit, flat, furthest, linear_head, number, plain
from .peers import RATE


class TwoHeads(nn.Module):
    """As where a second task has no labels yet: its norm is as new as the backbone's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear_head(), nn.LayerNorm(8)

    def forward(self, features: Tensor) -> Tensor:
        return self.first(features)


@fault("parameters of equal values are left out of the optimizer on unfreezing", names="will be skipped")
def equal_values(peer: Any, folder: Path) -> Found:
    """The backbone's norm has the values of an unmoved norm of the head (Lightning's `filter_on_optimizer`). Harm: it never moves."""
    torch.manual_seed(0)
    net = Net(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh()), TwoHeads(), peer.optimizer)
    start = deepcopy(net.backbone)
    fit(net, peer.callbacks(net), folder)
    moved = [not torch.equal(a, b) for a, b in zip(start.parameters(), net.backbone.parameters(), strict=True)]
    return Found(not all(moved), f"{sum(moved)} of {len(moved)} tensors train")


@fault("a layer that no optimizer holds never trains", names=r"neck|no optimizer holds")
def no_group(peer: Any, folder: Path) -> Found:
    """The optimizer is built over the head, as in BackboneFinetuning's example, and the module has a neck between the two; all is to
    train from epoch 1 on. Harm: the neck does not move."""

    class WithNeck(Net):
        def __init__(self) -> None:
            super().__init__(plain(), linear_head(), lambda module: SGD(module.head.parameters(), lr=RATE))
            torch.manual_seed(4)
            self.neck = nn.Linear(8, 8)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.neck(self.backbone(images)))

    net = WithNeck()
    start = flat(net.neck)
    fit(net, peer.callbacks(net), folder)
    moved = furthest(start, flat(net.neck))
    return Found(moved == 0, f"neck moves by {number(moved)}")
