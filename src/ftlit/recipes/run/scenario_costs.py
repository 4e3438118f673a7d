"""Estimate how long each scenario would take on this machine, from the time of one step on a few images."""

import time
from collections.abc import Iterator, Mapping
from math import inf
from pkgutil import resolve_name

import torch
from omegaconf import DictConfig

from ftlit.lit.datamodules.indexed_images import IndexedImages
from ftlit.models.backbone import Backbone
from ftlit.models.heads import is_linear_probe
from ftlit.recipes.config.hydra_internals import instantiate

TIMED_IMAGES = 8


def costs_of(backbone: Backbone, data: IndexedImages, configs: Mapping[str, DictConfig]) -> Iterator[tuple[str, float]]:
    """Seconds of each scenario, for optimizer steps and passes over the images only.

    Args:
        backbone: on the device of the run.
        data: images of the run.
        configs: scenario -> its config.
    """
    loading, forward, step = _seconds_per_image(backbone, data)
    sizes = {split: sum(counts.values()) for split, counts in data.counts.items()}
    for name, cfg in configs.items():
        once = sum(sizes.values()) * max(loading, forward)  # features, and the test images
        warm_up = 0 if has_probe_head(cfg) else cfg.schedule.get("epoch") or 0  # only the head trains, from features
        epochs = 0.0 if name.startswith("small") else max(0.0, epochs_of(cfg, sizes["train"] / data.batch_size) - warm_up)
        yield name, once + epochs * (sizes["train"] * max(loading, step) + sizes["val"] * max(loading, forward))


def epochs_of(cfg: DictConfig, batches: float) -> float:
    """Epochs of a run with this number of batches per epoch."""
    trainer = cfg.trainer
    epochs = inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    steps = inf if trainer.get("max_steps", -1) in (None, -1) else trainer.max_steps
    return float(min(epochs, steps * trainer.get("accumulate_grad_batches", 1) / batches))


def has_probe_head(cfg: DictConfig) -> bool:
    """Whether the head is a linear probe. A target that is not a class, a function for instance, is called with arbitrary sizes."""
    target = resolve_name(cfg.head._target_)
    if isinstance(target, type):
        return is_linear_probe(target)
    try:
        with torch.random.fork_rng(devices=[]):  # the weights of the run stay the same
            return is_linear_probe(type(instantiate(cfg.head, in_features=512, num_classes=2)))
    except Exception:  # it needs the real sizes; what fails with these too is an error when the run is built
        return False


def _seconds_per_image(backbone: Backbone, data: IndexedImages) -> tuple[float, float, float]:
    """Seconds to load an image, to run the backbone on it, and to train with it."""
    train, device = data.collection.splits["train"], next(backbone.parameters()).device
    start = time.perf_counter()
    images = torch.stack([data.transforms["train"](train.load(train.sources[i % len(train)])) for i in range(TIMED_IMAGES)])
    loading = (time.perf_counter() - start) / TIMED_IMAGES / max(1, data.num_workers)
    images = images.to(device, next(backbone.parameters()).dtype if images.is_floating_point() else None)
    return loading, _seconds(backbone, images, training=False), _seconds(backbone, images, training=True)


def _seconds(backbone: Backbone, images: torch.Tensor, *, training: bool) -> float:
    for _ in range(2):  # the first one warms up
        start = time.perf_counter()
        with torch.set_grad_enabled(training):
            features = backbone.pool(backbone(images))
        total = features.float().sum()
        if training:
            torch.autograd.backward(total)
        float(total.detach())  # waits for the device
    return (time.perf_counter() - start) / TIMED_IMAGES
