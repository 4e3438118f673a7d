"""Faults of stages that begin during a run."""

from pathlib import Path
from typing import Any

import torch

from .fault import Found, fault
from .nets import Net, Watch, fit, flat, linear_head, max_difference, number, plain


@fault("`EarlyStopping` ends the run before the backbone is unfrozen", pattern="before the last stage began|before .*unfr")
def early_end(peer: Any, folder: Path) -> Found:
    """A constant metric, patience 1, unfreezing at epoch 4 of 8; finetuning-scheduler with its own FTSEarlyStopping. Harm: the run ends
    with a frozen backbone."""
    net, watch = Net(plain(), linear_head(), peer.optimizer, stalled=True), Watch()
    stopping = [peer.early_stopping("val_loss", patience=1)] if peer.early_stopping else []
    trainer = fit(net, [*peer.callbacks(net, epoch=4, metric=not stopping), *stopping, watch], folder, epochs=8)
    ended = f"ends after epoch {trainer.current_epoch - 1}"
    return Found(watch.unfrozen_at is None, f"unfreezes, {ended}" if watch.unfrozen_at is not None else f"{ended}, frozen")


@fault("compiled, then unfrozen: the backbone does not train", pattern="compil")
def compiled(peer: Any, folder: Path) -> Found:
    """`torch.compile(module)`, a head stage, unfreezing (pytorch#139476, #177158). Harm: the final weights differ from the
    uncompiled run."""

    def run(compile: bool) -> tuple[torch.Tensor, torch.Tensor]:
        net = Net(plain(), linear_head(), peer.optimizer)
        start = flat(net.backbone)
        fit(torch.compile(net, backend="aot_eager") if compile else net, peer.callbacks(net), folder)
        return flat(net), flat(net.backbone) - start

    (weights, _), (compiled_weights, moved) = run(False), run(True)
    difference = max_difference(weights, compiled_weights)
    return Found(
        difference > 1e-5, f"backbone changes by {number(float(moved.abs().max()))}, differs by {number(difference)} from uncompiled"
    )
