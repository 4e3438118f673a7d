"""Batches whose images are mixed by mixup or cutmix."""

from collections.abc import Callable

from torch import nn
from torch.utils.data import default_collate
from torchvision.transforms import v2

from ftlit.data.dataset import Batch
from ftlit.data.loading import in_shared_memory
from ftlit.errors import invalid

MIXES: dict[str, Callable[[int], list[nn.Module]]] = {
    "none": lambda num_classes: [],
    # alpha as in torchvision's reference training
    "mixup": lambda num_classes: [v2.MixUp(alpha=0.2, num_classes=num_classes)],
    "cutmix": lambda num_classes: [v2.CutMix(alpha=1.0, num_classes=num_classes)],
    "both": lambda num_classes: [v2.RandomChoice([*MIXES["mixup"](num_classes), *MIXES["cutmix"](num_classes)])],
}


class MixedCollate:
    """Samples -> batch whose images are mixed by mixup (Zhang et al. 2018), cutmix (Yun et al. 2019) or either at random.

    Args:
        mix: `none`, `mixup`, `cutmix` or `both`. All but `none` give soft targets, float32 (N, num_classes).
        num_classes: length of a target.

    Raises:
        UserError: an unknown `mix`.
    """

    def __init__(self, mix: str, num_classes: int) -> None:
        if mix not in MIXES:
            raise invalid("mix", mix, MIXES)
        self.steps = MIXES[mix](num_classes)

    def __call__(self, samples: list[Batch]) -> Batch:
        """(image, target) pairs -> (images, targets)."""
        images, targets = default_collate(samples)
        for step in self.steps:
            images, targets = step(images, targets)
        return in_shared_memory(images), targets
