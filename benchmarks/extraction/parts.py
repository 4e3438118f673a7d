"""Backbones, photos, loaders, modules and fits that `feature_extraction.py` measures."""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from _measure import timed
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, TensorDataset

from ftlit import Backbone, FineTuner, ImageData, load_backbone
from ftlit.data.dataset import SPLITS, Collection, Examples, LabelledImages
from ftlit.features.fill import evaluating
from ftlit.lit.datamodules.image_sources import folder_data
from ftlit.models.backbone import FeatureBatch

BATCH, CLASSES, RATE = 32, 2, 1e-3
NETWORKS = {"squeezenet1_1": "squeezenet1_1_imagenet_torchvision.pth", "resnet18": None}  # None: random weights
PEER_TARGETS = {"squeezenet1_1": 25, "resnet18": 50}
FLAGS: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
}


def backbone_of(given: argparse.Namespace, name: str) -> Backbone:
    torch.manual_seed(0)
    file = NETWORKS[name]
    return load_backbone(name, weights=given.data / "weights" / file if file else None)


def split_photos(given: argparse.Namespace, backbone: Backbone) -> ImageData:
    """Train 195, val 49, test 153: the default split."""
    root = given.data / "images" / "hymenoptera"
    return folder_data(backbone.input_spec, root=root, augment="none", batch_size=BATCH, num_workers=given.workers)


def photos(given: argparse.Namespace, backbone: Backbone) -> ImageData:
    """All 244 training photos in train. Val is a single photo, the minimum, because its time would count for ftlit only."""
    data = split_photos(given, backbone)
    train, val, test = (data.collection.splits[split] for split in SPLITS)
    whole = Examples([*train.sources, *val.sources], [*train.labels, *val.labels], train.load, [*train.contents, *val.contents])
    collection = Collection({"train": whole, "val": test.subset([0]), "test": test}, data.class_names)
    return ImageData(collection, backbone.input_spec, augment="none", batch_size=BATCH, num_workers=given.workers)


def plain_images(data: ImageData, *, shuffle: bool) -> DataLoader[Any]:
    """The training photos loaded without ftlit, in the evaluation view."""
    images, workers = LabelledImages(data.collection, "train", data.transforms["val"]), data.num_workers
    return DataLoader(images, BATCH, shuffle=shuffle, num_workers=workers, persistent_workers=workers > 0)


def plain_pass(backbone: Backbone, loader: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Extract features with the least possible overhead."""
    found = []
    with evaluating(backbone), torch.inference_mode():
        for images, targets in loader:
            found.append((backbone.pool(backbone(images)), targets))
    features, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
    return features.clone(), targets


def from_memory(features: Tensor, targets: Tensor, cut: str | None = None, *, shuffle: bool = True) -> DataLoader[Any]:
    """Batches of tensors, or of `FeatureBatch` if a cut is given."""

    def at_cut(samples: list[tuple[Tensor, Tensor]]) -> Any:
        values, labels = torch.utils.data.default_collate(samples)
        return FeatureBatch({cut: values}), labels

    return DataLoader(TensorDataset(features, targets), BATCH, shuffle=shuffle, collate_fn=at_cut if cut else None)


class Plain(LightningModule):
    """A module as a user would write it without ftlit: a head, optionally on a backbone."""

    def __init__(self, num_features: int, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(num_features, CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, targets = batch
        features = x if self.backbone is None else self.backbone.pool(self.backbone(x))
        return nn.functional.cross_entropy(self.head(features), targets)

    def configure_optimizers(self) -> AdamW:
        return AdamW((p for p in self.parameters() if p.requires_grad), RATE)


class Epochs(Callback):
    """Duration of all epochs, without setup and teardown."""

    def on_train_start(self, *_: Any) -> None:
        self.begin = perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = perf_counter() - self.begin


def tuner(backbone: Backbone, head: nn.Module, rate: float = RATE) -> FineTuner:
    return FineTuner(backbone, head, num_classes=CLASSES, optimizer=partial(AdamW, lr=rate))


def fit(module: LightningModule, data: Any, epochs: int, *callbacks: Callback, val: bool = False) -> Trainer:
    trainer = Trainer(max_epochs=epochs, callbacks=list(callbacks), **FLAGS, **({} if val else {"limit_val_batches": 0}))
    trainer.fit(module, data)
    return trainer


def scaled(work: Callable[[Epochs], Any], done: int, asked: int) -> float:
    """Duration of `asked` epochs in seconds, extrapolated from `done` epochs."""
    epochs = Epochs()
    return timed(lambda: work(epochs)) + epochs.seconds / done * (asked - done)


def scaling(done: int, asked: int, what: str) -> str:
    return "" if done == asked else f"{what}: {done} epochs were run and extrapolated to {asked}."


def fresh(folder: Path) -> Path:
    """Delete a folder and return its path."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
