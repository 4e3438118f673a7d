"""Parts that are frozen."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from .fault import Found, fault
from .nets import STEPS, Net, fit, furthest, linear_head, number


def lower(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), layer, nn.Tanh())


class HeadStageEnds(Callback):
    """The backbone as the last step of the head stage leaves it."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 3 * STEPS:
            self.backbone, self.keeps_graph = deepcopy(pl_module.backbone), pl_module.keeps_graph


def head_stage(peer: Any, folder: Path, layer: nn.Module) -> tuple[nn.Module, HeadStageEnds]:
    """The backbone before, in evaluation mode, and after three epochs in which the head alone trains."""
    start, end = lower(layer), HeadStageEnds()
    net = Net(deepcopy(start).train(), linear_head(), peer.optimizer)
    fit(net, [*peer.callbacks(net, epoch=3), end], folder)
    return start.eval(), end


def outputs_apart(start: nn.Module, end: HeadStageEnds) -> float:
    images = torch.randn(16, 4, generator=torch.Generator().manual_seed(5)) + 1
    with torch.no_grad():
        torch.manual_seed(6)
        return furthest(start(images), end.backbone(images))


@fault("a frozen batch norm's statistics move", names="running|statistics")
def statistics(peer: Any, folder: Path) -> Found:
    """The head alone trains, `train_bn=False` (Lightning#21531). Harm: running mean or variance changes."""
    start, end = head_stage(peer, folder, nn.BatchNorm1d(8))
    was, now = dict(start.named_buffers()), dict(end.backbone.named_buffers())
    moved = max(furthest(was[name], now[name]) for name in was if "running" in name)
    return Found(moved > 0, f"moved by {number(moved)}")


@fault("a frozen batch norm normalises by the batch in training, by its statistics in evaluation", names="batch stat|eval mode")
def batch_statistics(peer: Any, folder: Path) -> Found:
    """As above. Harm: the frozen backbone's outputs while the head trains are not those in evaluation mode at the start."""
    apart = outputs_apart(*head_stage(peer, folder, nn.BatchNorm1d(8)))
    return Found(apart > 0, f"outputs differ by {number(apart)}")


@fault("a frozen backbone's dropout goes on dropping", names="[Dd]ropout")
def dropout(peer: Any, folder: Path) -> Found:
    """The head alone trains over a frozen backbone with dropout. Harm: as above."""
    apart = outputs_apart(*head_stage(peer, folder, nn.Dropout(0.5)))
    return Found(apart > 0, f"outputs differ by {number(apart)}")


@fault("a frozen backbone keeps its graph for the backward pass", names="graph|batch norms? .*train")
def graph(peer: Any, folder: Path) -> Found:
    """The head alone trains (Lightning#21531: 1.8 times the time, 1.7 times the memory). Harm: features of the backbone require a
    gradient."""
    _, end = head_stage(peer, folder, nn.BatchNorm1d(8))
    return Found(end.keeps_graph, "a graph" if end.keeps_graph else "no graph")
