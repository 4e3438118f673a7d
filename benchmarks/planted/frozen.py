"""Faults of frozen layers."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from .fault import Found, fault
from .nets import STEPS, Net, fit, linear_head, max_difference, number


def lower(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), layer, nn.Tanh())


class HeadStageEnds(Callback):
    """Copy the backbone after the last step of the head stage."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 3 * STEPS:
            self.backbone, self.keeps_graph = deepcopy(pl_module.backbone), pl_module.keeps_graph


def head_stage(peer: Any, folder: Path, layer: nn.Module) -> tuple[nn.Module, HeadStageEnds]:
    """The backbone before, in evaluation mode, and after three epochs that train only the head."""
    start, end = lower(layer), HeadStageEnds()
    net = Net(deepcopy(start).train(), linear_head(), peer.optimizer)
    fit(net, [*peer.callbacks(net, epoch=3), end], folder)
    return start.eval(), end


def output_difference(start: nn.Module, end: HeadStageEnds) -> float:
    images = torch.randn(16, 4, generator=torch.Generator().manual_seed(5)) + 1
    with torch.no_grad():
        torch.manual_seed(6)
        return max_difference(start(images), end.backbone(images))


@fault("the statistics of a frozen batch norm change", pattern="running|statistics")
def statistics(peer: Any, folder: Path) -> Found:
    """Only the head trains, with `train_bn=False` (Lightning#21531). Harm: running mean or variance changes."""
    start, end = head_stage(peer, folder, nn.BatchNorm1d(8))
    was, now = dict(start.named_buffers()), dict(end.backbone.named_buffers())
    moved = max(max_difference(was[name], now[name]) for name in was if "running" in name)
    return Found(moved > 0, f"change of {number(moved)}")


@fault("a frozen batch norm uses batch statistics in training and running statistics in evaluation", pattern="batch stat|eval mode")
def batch_statistics(peer: Any, folder: Path) -> Found:
    """As above. Harm: the outputs of the frozen backbone while the head trains differ from its outputs in evaluation mode at the start."""
    difference = output_difference(*head_stage(peer, folder, nn.BatchNorm1d(8)))
    return Found(difference > 0, f"outputs differ by {number(difference)}")


@fault("dropout stays active in a frozen backbone", pattern="[Dd]ropout")
def dropout(peer: Any, folder: Path) -> Found:
    """Only the head trains, on a frozen backbone with dropout. Harm: as above."""
    difference = output_difference(*head_stage(peer, folder, nn.Dropout(0.5)))
    return Found(difference > 0, f"outputs differ by {number(difference)}")


@fault("a frozen backbone keeps the graph for the backward pass", pattern="graph|batch norms? .*train")
def graph(peer: Any, folder: Path) -> Found:
    """Only the head trains (Lightning#21531: 1.8 times the time, 1.7 times the memory). Harm: the features of the backbone require a
    gradient."""
    _, end = head_stage(peer, folder, nn.BatchNorm1d(8))
    return Found(end.keeps_graph, "graph kept" if end.keeps_graph else "no graph")
