"""fastai's `vision_learner(...).fine_tune`, as in its quick start."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from fastai.vision.all import ImageDataLoaders, Normalize, Resize, accuracy, default_split, model_meta, set_seed, vision_learner
from torchvision import models
from torchvision.models import get_model_weights

from ftlit import load_backbone
from systems.task import WORKERS, Task, normalization, sizes

EPOCHS, EPOCHS_OF_FEW = 5, 15  # after the first epoch, in which the body is frozen


def fine_tune(task: Task) -> float:
    """Test accuracy of `fine_tune`: one epoch of the head, then all layers, with its own learning rates. `task.epochs` counts both."""
    set_seed(task.seed)
    size, root = sizes(task)[0], Path(task.root)
    number = len(task.images("train"))
    batches = [Normalize.from_stats(*normalization(task))]
    loaders = ImageDataLoaders.from_folder(
        root,
        train="train",
        valid="val",
        bs=min(64, number),
        item_tfms=Resize(size),
        batch_tfms=batches,
        seed=task.seed,
        num_workers=WORKERS,
    )
    with tempfile.TemporaryDirectory() as home:
        learner = vision_learner(loaders, _architecture(task, Path(home)), metrics=accuracy, normalize=False)
        with learner.no_bar(), learner.no_logging():
            learner.fine_tune(task.epochs - 1 if task.epochs else EPOCHS_OF_FEW if task.few else EPOCHS)
    test = loaders.test_dl(task.images("test"), with_labels=True)
    predictions, labels = learner.get_preds(dl=test)
    return float((predictions.argmax(1) == labels).float().mean())


def glyph(pretrained: bool = True) -> torch.nn.Module:
    """ftlit's glyph backbone, as an architecture of fastai."""
    return load_backbone("glyph", weights="default" if pretrained else None)


# fastai 2.8.12 ignores `vision_learner(cut=)` and reads the cut of an architecture here
model_meta[glyph] = {"cut": lambda body: torch.nn.Sequential(*body.children()), "split": default_split}


def _architecture(task: Task, home: Path) -> Any:
    """The model function of torchvision, with the weights placed in its download cache."""
    if task.backbone == "glyph":
        return glyph
    assert task.weights is not None
    name = Path(get_model_weights(task.backbone).DEFAULT.url).name  # type: ignore[attr-defined]
    os.environ["TORCH_HOME"] = str(home)
    (home / "hub/checkpoints").mkdir(parents=True)
    (home / "hub/checkpoints" / name).symlink_to(Path(task.weights).resolve())
    return getattr(models, task.backbone)
