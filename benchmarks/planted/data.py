"""Faults of images and their features."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from .fault import Found, fault
from .nets import Net, linear_head, loader, plain, trainer_for
from .peers import Ours

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def pooled(backbone: nn.Module) -> nn.Module:
    return nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def normalised(images: Tensor, mean: Any, std: Any) -> Tensor:
    return (images - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)


@fault("images are not normalised as the weights were trained", pattern="weights (were trained|expect)")
def normalisation(peer: Any, folder: Path) -> Found:
    """Weights trained with mean and std 0.5 get images normalised with ImageNet's mean and std (FOA#2, fastai#3716). For ftlit the input
    spec is overridden and the warnings of the plan are checked; without the override the spec of the weights is used. Harm: the features
    differ."""
    from ftlit import load_backbone

    backbone = load_backbone("glyph").eval()
    spec = backbone.input_spec
    images = torch.rand(24, 3, spec.size, spec.size, generator=torch.Generator().manual_seed(0))
    wrong = normalised(images, *IMAGENET)
    with torch.no_grad():
        right_features, features = (pooled(backbone)(x) for x in (normalised(images, spec.mean, spec.std), wrong))
    number = f"features off by {float((features - right_features).norm() / right_features.norm()):.0%}"
    if isinstance(peer, Ours):
        return Found(True, number, plan_warnings(load_backbone("glyph", input_spec={"mean": IMAGENET[0], "std": IMAGENET[1]})))
    net = Net(pooled(backbone), nn.Linear(features.shape[1], 3), peer.optimizer)
    batches = DataLoader(TensorDataset(wrong, torch.arange(24) % 3), batch_size=8)
    trainer_for(peer.callbacks(net), folder, epochs=2).fit(net, batches, batches)
    return Found(True, number)


def plan_warnings(backbone: nn.Module) -> list[str]:
    """Warnings in the plan of a run."""
    from ftlit import Schedule, Stage
    from ftlit.finetuning.examine import examine

    module = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(128, 3)})
    optimizer = Ours().optimizer(module)
    return list(examine(module, Schedule([Stage(["head"]), Stage(["*"], 1)]), optimizer, ["head"]).warnings)


@fault("the best epoch is chosen on the images that are then reported", pattern="exact duplicates are in several splits|val.*test")
def chosen_on_test(peer: Any, folder: Path) -> Found:
    """Val and test hold the same images (dinov2's `linear.py`). Harm: the run succeeds, as it does in all three libraries; ftlit lists
    the duplicates before the run."""
    if isinstance(peer, Ours):
        return Found(True, "", duplicate_notes())
    net = Net(plain(), linear_head(), peer.optimizer)
    keep = peer.checkpoint(dirpath=folder / "kept", monitor="val_loss", save_top_k=1)
    same = loader()
    trainer = trainer_for([*peer.callbacks(net), keep], folder)
    trainer.fit(net, loader(), same)
    trainer.test(net, same, ckpt_path=keep.best_model_path, weights_only=False, verbose=False)
    return Found(True)


def duplicate_notes() -> list[str]:
    """The notes of ftlit on a data set with equal val and test images."""
    from ftlit.data.dataset import Examples
    from ftlit.data.splitting.splits import SplitRule, assemble

    def examples(first: int) -> Examples:
        arrays = [np.full((8, 8, 3), first + i, dtype=np.uint8) for i in range(12)]
        return Examples(arrays, [(i % 3,) for i in range(12)], Image.fromarray, arrays)

    splits = {"train": examples(0), "val": examples(100), "test": examples(100)}
    return assemble(splits, list("abc"), SplitRule({})).notes


@fault(
    "cached features are used after a change of weights, transform or image", pattern="stale", without=("Lightning", "finetuning-scheduler")
)
def stale_features(peer: Any, folder: Path) -> Found:
    """After features are cached, one weight, one transform and one image change (kaiko-eva: the key is "the directory exists"). Harm: the
    cached features differ from those of the network."""
    from ftlit import extract_features, load_backbone

    backbone = load_backbone("glyph").eval()
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def error(shown: Tensor) -> float:
        features = extract_features(backbone, [shown], cache=folder / "features")["layer4"].read(range(len(shown)))
        with torch.no_grad():
            return float((features - pooled(backbone)(shown)).abs().max())

    found = [error(images)]
    with torch.no_grad():
        next(backbone.parameters()).view(-1)[0] += 1
    found += [error(images), error(images.flip(-1))]
    images[3] = 1 - images[3]
    found += [error(images)]
    return Found(max(found) > 1e-4, f"{sum(value > 1e-4 for value in found)} of 3 changes missed")
