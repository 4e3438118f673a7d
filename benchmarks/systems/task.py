"""The task of every system, and network and data for the systems that use torchvision's."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

WORKERS = max(1, len(os.sched_getaffinity(0)) // 2)  # loader processes of each system


@dataclass(frozen=True)
class Task:
    """Images and a pretrained network.

    Args:
        root: folder of the splits `train`, `val` and `test`, each with one folder per class.
        backbone: `squeezenet1_1`, `resnet18` and so on, or ftlit's `glyph`.
        weights: a weights file of torchvision; `None` for glyph, which ships its weights.
        epochs: `None` for the default of the system.
        seed: seed of all random numbers in training.
        flips: whether images may be mirrored (digits may not).
    """

    root: str
    backbone: str
    weights: str | None
    epochs: int | None
    seed: int
    flips: bool

    def images(self, split: str) -> list[Path]:
        """Image files of a split."""
        return [path for path in sorted(Path(self.root, split).glob("*/*")) if path.is_file()]

    @property
    def few(self) -> bool:
        """Whether there are at most 20 images per class, for which the usual number of epochs is too small."""
        return len(self.images("train")) <= 20 * len(list(Path(self.root, "train").iterdir()))


def backbone_of(task: Task, *, pretrained: bool = True) -> tuple[nn.Module, int]:
    """The network without its head, images -> features (N, C), and C."""
    if task.backbone == "glyph":
        from ftlit import load_backbone

        backbone = load_backbone("glyph", weights="default" if pretrained else None)
        return nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten()), backbone.num_features
    network = models.get_model(task.backbone, weights=None)
    if pretrained:
        network.load_state_dict(torch.load(task.weights, weights_only=True))
    layers = network.features if hasattr(network, "features") else nn.Sequential(*list(network.children())[:-2])
    with torch.no_grad():
        width = layers.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
    return nn.Sequential(layers.train(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), width


def sizes(task: Task) -> tuple[int, int]:
    """Input size in pixels, and size of the shorter side before the crop."""
    return (32, 32) if task.backbone == "glyph" else (224, 256)


def normalization(task: Task) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the channels in pretraining."""
    return ([0.5] * 3, [0.5] * 3) if task.backbone == "glyph" else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def folders(task: Task) -> dict[str, ImageFolder]:
    """The splits with the transforms of PyTorch's tutorial: random crops and flips for train, centre crops for the others, and also for
    train if images may not be mirrored.

    Source: "Transfer Learning for Computer Vision Tutorial", docs.pytorch.org.
    """
    size, resized = sizes(task)
    end: list[Any] = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*normalization(task))]
    plain = v2.Compose([v2.Resize(resized), v2.CenterCrop(size), *end])
    augmented = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *end]) if task.flips else plain
    views = {"train": augmented, "val": plain, "test": plain}
    return {split: ImageFolder(str(Path(task.root, split)), view) for split, view in views.items()}


def loader(data: ImageFolder, batch_size: int, *, shuffle: bool = False) -> DataLoader:
    """Batches, loaded in the background."""
    return DataLoader(data, batch_size, shuffle=shuffle, num_workers=WORKERS, persistent_workers=True)
