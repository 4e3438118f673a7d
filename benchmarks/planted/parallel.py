"""Faults of several processes."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from .fault import Found, fault
from .nets import Net, fit, flat, linear_head, max_difference, number, plain


@fault("DDP: weights of the processes diverge after unfreezing", pattern="reducer|drift|averaged", processes=2)
def ranks(peer: Any, folder: Path) -> Found:
    """The backbone is unfrozen after DDP has wrapped the module (Lightning#20340). Harm: the weights of two processes differ."""

    class Gather(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            own = flat(pl_module)
            self.all = [torch.empty_like(own) for _ in range(trainer.world_size)]
            torch.distributed.all_gather(self.all, own)

    net, gather = Net(plain(), linear_head(), peer.optimizer).double(), Gather()
    fit(net, [*peer.callbacks(net), gather], folder)
    difference = max_difference(*gather.all)
    return Found(difference > 0, f"weights differ by {number(difference)}")
