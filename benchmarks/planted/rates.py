"""Faults of the learning rates of several groups."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.tuner import Tuner
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from .fault import Found, fault
from .nets import STEPS, Net, Watch, fit, linear_head, loader, plain, ratio_of, trainer_for
from .peers import EPOCHS, LEARNING_RATE, RATIO, Ours

TOTAL_STEPS = EPOCHS * STEPS


def two_groups(module: LightningModule) -> SGD:
    """Layer-wise learning rates with torch's parameter groups."""
    groups = [
        {"params": module.head.parameters(), "lr": LEARNING_RATE},
        {"params": module.backbone.parameters(), "lr": LEARNING_RATE * RATIO},
    ]
    return SGD(groups, lr=LEARNING_RATE, momentum=0.9)


def watched(peer: Any, folder: Path, optimizer: Callable[[Any], SGD], curve: Callable[[SGD], Any]) -> Watch:
    net, watch = Net(plain(), linear_head(), optimizer, curve=curve, stalled=True), Watch()
    fit(net, [*peer.callbacks(net), watch], folder)
    return watch


def flattened(ratios: list[float]) -> bool:
    return max(abs(ratio - RATIO) for ratio in ratios) > 1e-6


@fault("a scheduler removes the ratio between layer-wise learning rates", pattern=r"allow_untested|max_lr|\bratio")
def layer_decay(peer: Any, folder: Path) -> Found:
    """Layer-wise learning rates (ratio 0.1) with torch's `OneCycleLR(optimizer, max_lr=rate)` (timm#2532 loses ratios in the same way).
    Harm: another ratio."""
    optimizer = peer.optimizer if isinstance(peer, Ours) else two_groups
    watch = watched(
        peer, folder, optimizer, lambda o: {"scheduler": OneCycleLR(o, LEARNING_RATE, total_steps=TOTAL_STEPS + 1), "interval": "step"}
    )
    return Found(flattened(watch.ratios), f"ratio {watch.ratio_range}")


@fault("a scheduler crashes on the parameter group that unfreezing adds", pattern="allow_untested|schedulers? that")
def added_group(peer: Any, folder: Path) -> Found:
    """`LambdaLR` while the backbone is unfrozen. Harm: another ratio than the configured one. A crash does not name the fault."""
    watch = watched(peer, folder, peer.optimizer, lambda o: {"scheduler": LambdaLR(o, lambda step: 0.9**step), "interval": "step"})
    return Found(flattened(watch.ratios), f"ratio {watch.ratio_range}")


class Tuned(Net):
    """Record the ratio of the learning rates at each step of a range test."""

    def __init__(self, **options: Any) -> None:
        super().__init__(plain(), linear_head(), **options)
        self.lr, self.ratios = LEARNING_RATE, []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.ratios.append(ratio_of(self.trainer, self))


@fault("`lr_find` gives all groups one learning rate", pattern="groups|one rate|single learning rate")
def range_test(peer: Any, folder: Path) -> Found:
    """A range test of a module with layer-wise learning rates: Lightning's Tuner for the peers, which have no other, the loop of
    `recipe=lr_find` for ftlit. Harm: the ratio in the test differs from the ratio in training."""
    if isinstance(peer, Ours):
        from functools import partial

        from ftlit import Rates
        from ftlit.finetuning.lr_schedule import exponential
        from ftlit.lit.callbacks.loss_by_lr import LossByRate

        rising = partial(Rates, curve=partial(exponential, least=1e-6, most=1.0), steps=10, epochs=3)
        net = Tuned(optimizer=peer.optimizer, curve=lambda optimizer: rising(optimizer).config)
        fit(net, [*peer.callbacks(net), LossByRate()], folder, epochs=3)
    else:
        net = Tuned(optimizer=two_groups)
        trainer = trainer_for(peer.callbacks(net), folder, epochs=3)
        Tuner(trainer).lr_find(net, loader(), num_training=10, min_lr=1e-6, max_lr=1.0)
    low, high = min(net.ratios), max(net.ratios)
    return Found(flattened(net.ratios), f"ratio {low:.2g}" if high - low < 1e-6 else f"ratio {low:.2g} to {high:.2g}")
