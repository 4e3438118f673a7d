"""Stages that begin in the midst of a run."""

from pathlib import Path
from typing import Any

import torch

from .fault import Found, fault
from .nets import Net, Watch, fit, flat, furthest, linear_head, number, plain


@fault("`EarlyStopping` ends the run before the backbone is unfrozen", names="before the last one began|before .*unfr")
def early_end(peer: Any, folder: Path) -> Found:
    """A metric that stalls, patience 1, unfreezing due at epoch 4 of 8; finetuning-scheduler with its own FTSEarlyStopping. Harm: the
    run ends with a frozen backbone."""
    net, watch = Net(plain(), linear_head(), peer.optimizer, stalled=True), Watch()
    stopping = [peer.early_stopping("val_loss", patience=1)] if peer.early_stopping else []
    trainer = fit(net, [*peer.callbacks(net, epoch=4, metric=not stopping), *stopping, watch], folder, epochs=8)
    ended = f"ends after epoch {trainer.current_epoch - 1}"
    return Found(watch.unfrozen_at is None, f"unfreezes, {ended}" if watch.unfrozen_at is not None else f"{ended}, frozen")


@fault("compiled, then unfrozen: the backbone does not train", names="compil")
def compiled(peer: Any, folder: Path) -> Found:
    """`torch.compile(module)`, head stage, unfreezing (pytorch#139476, #177158). Harm: the end differs from the uncompiled run's."""

    def run(compile: bool) -> tuple[torch.Tensor, torch.Tensor]:
        net = Net(plain(), linear_head(), peer.optimizer)
        start = flat(net.backbone)
        fit(torch.compile(net, backend="aot_eager") if compile else net, peer.callbacks(net), folder)
        return flat(net), flat(net.backbone) - start

    (weights, _), (again, moved) = run(False), run(True)
    apart = furthest(weights, again)
    return Found(apart > 1e-5, f"backbone moves by {number(float(moved.abs().max()))}, {number(apart)} from uncompiled")
