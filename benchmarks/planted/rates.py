"""Learning rates of several groups."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.tuner import Tuner
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from .fault import Found, fault
from .nets import STEPS, Net, Watch, fit, linear_head, loader, plain, ratio_of, trainer_for
from .peers import EPOCHS, RATE, RATIO, Ours

STEPS_IN_ALL = EPOCHS * STEPS


def two_groups(module: LightningModule) -> SGD:
    """Rates by layer, as a user of torch writes them."""
    groups = [{"params": module.head.parameters(), "lr": RATE}, {"params": module.backbone.parameters(), "lr": RATE * RATIO}]
    return SGD(groups, lr=RATE, momentum=0.9)


def watched(peer: Any, folder: Path, optimizer: Callable[[Any], SGD], curve: Callable[[SGD], Any]) -> Watch:
    net, watch = Net(plain(), linear_head(), optimizer, curve=curve, stalled=True), Watch()
    fit(net, [*peer.callbacks(net), watch], folder)
    return watch


def flattened(ratios: list[float]) -> bool:
    return max(abs(ratio - RATIO) for ratio in ratios) > 1e-6


@fault("a scheduler flattens the rates by layer", names="allow_untested|max_lr|not in the ratio")
def layer_decay(peer: Any, folder: Path) -> Found:
    """Rates by layer (0.1 asked for), then torch's `OneCycleLR(optimizer, max_lr=rate)` (timm#2532 is the same loss of ratios). Harm:
    another ratio."""
    optimizer = peer.optimizer if isinstance(peer, Ours) else two_groups
    watch = watched(peer, folder, optimizer, lambda o: {"scheduler": OneCycleLR(o, RATE, total_steps=STEPS_IN_ALL + 1), "interval": "step"})
    return Found(flattened(watch.ratios), f"ratio {watch.told}")


@fault("a scheduler crashes on the group that unfreezing adds", names="allow_untested|schedulers? that")
def added_group(peer: Any, folder: Path) -> Found:
    """`LambdaLR` while the backbone is unfrozen. Harm: another ratio than asked for. A crash is no silence, and no answer either."""
    watch = watched(peer, folder, peer.optimizer, lambda o: {"scheduler": LambdaLR(o, lambda step: 0.9**step), "interval": "step"})
    return Found(flattened(watch.ratios), f"ratio {watch.told}")


class Tuned(Net):
    """Notes the ratio of the rates at each step of a range test."""

    def __init__(self, **how: Any) -> None:
        super().__init__(plain(), linear_head(), **how)
        self.lr, self.ratios = RATE, []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.ratios.append(ratio_of(self.trainer, self))


@fault("`lr_find` gives all groups one rate", names="groups|one rate|single learning rate")
def range_test(peer: Any, folder: Path) -> Found:
    """A range test of a module with rates by layer: Lightning's Tuner for the peers, which have no other, the loop of `recipe=lr_find`
    for ftlit. Harm: the ratio in the test is not the one that will be trained with."""
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
