"""Estimate how long a run, or each scenario, takes on this machine, from the time of one image."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf
from pkgutil import resolve_name
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig

from ftlit.data.dataset import Split
from ftlit.features.fill import evaluating
from ftlit.features.stage_input import StageInput
from ftlit.finetuning.plan import LayerRow, Plan
from ftlit.lit.datamodules.indexed_images import IndexedImages, number_of_views
from ftlit.models.backbone import Backbone
from ftlit.models.heads import is_linear_probe
from ftlit.models.precision import autocast_of
from ftlit.recipes.config.hydra_internals import instantiate
from ftlit.recipes.run.artifacts import images_of

TIMED_IMAGES = 8
SLOW_IMAGE = 0.1  # seconds; of a slower network, one image is timed
BACKWARD = 2  # times the forward pass
PIXEL_LOADING = 0.3  # of the time that decoding takes (benchmarks/hardware/loading.py)
DEFAULT_EPOCHS = 1000  # Lightning's, where neither epochs nor steps are limited


@dataclass(frozen=True)
class StageWork:
    """What decides how long an epoch of a stage takes. Both shares are of the backbone's operations.

    Args:
        span: its epochs.
        frozen: share below which nothing trains.
        stored: share whose features are stored; `None`: it reads images.
        pixels: whether it reads stored pixels in place of images.
    """

    span: range
    frozen: float
    stored: float | None
    pixels: bool = False


class RunSeconds(NamedTuple):
    """Seconds that a run takes at most.

    Args:
        whole: of the run.
        before_training: the part of them until the linear probe is fitted and, where the run has a baseline, tested.
    """

    whole: float
    before_training: float


def estimate_run(
    trainer: pl.Trainer,
    backbone: Backbone,
    data: Any,
    plan: Plan,
    spans: Sequence[range] | None,
    inputs: Sequence[StageInput],
    *,
    head_passes: int,
    tests: int,
) -> RunSeconds | None:
    """Seconds of a run in one process on a CPU, at most: no stage begins early, and no features are stored yet.

    Args:
        trainer: of the run, before it begins.
        backbone: its weights, modes and statistics stay as they are.
        data: of the run.
        plan: of the schedule; its rows begin with the backbone's layers.
        spans: epochs of each stage; `None`: training has no known end; empty: no gradient training.
        inputs: of each stage; empty: all stages read images.
        head_passes: views of the images that a linear probe is fitted on first, the plain one included; 0: none is fitted.
        tests: passes over the test images.

    Returns:
        `None` on other devices, without a known end, and for data of another kind than ours.
    """
    images = images_of(data)
    alone_on_cpu = trainer.strategy.root_device.type == "cpu" and trainer.world_size == 1
    if not alone_on_cpu or spans is None or images is None or images.batch_overrides or not len(images.collection.splits["train"]):
        return None
    limits = {"train": trainer.limit_train_batches, "val": trainer.limit_val_batches, "test": trainer.limit_test_batches}
    sizes = {split: limited(sum(counts.values()), images.batch_size, limits[split]) for split, counts in images.counts.items()}
    share = shares(backbone, images.input_spec.shape)
    stages = []
    for i, span in enumerate(spans):
        specs = inputs[i].specs if inputs else ()
        frozen = max((share[cut] for cut in _frozen_prefix(backbone, plan.rows, i)), default=0.0)
        stages.append(StageWork(span, frozen, share[specs[-1].cut] if specs else None, bool(inputs) and inputs[i].pixels))
    return _run_seconds(seconds_per_image(backbone, images, str(trainer.precision)), sizes, stages, head_passes=head_passes, tests=tests)


def estimate_features(trainer: pl.Trainer, backbone: Backbone, data: IndexedImages, cuts: Sequence[str], number: int) -> float | None:
    """Seconds to compute features at these cuts of a number of images, none of which are stored yet; `None` on other devices than a CPU."""
    if trainer.strategy.root_device.type != "cpu":
        return None
    share, (loading, forward) = shares(backbone, data.input_spec.shape), seconds_per_image(backbone, data, str(trainer.precision))
    return number * max(loading, forward * max(share[cut] for cut in cuts))


def limited(number: int, batch_size: int, limit: float) -> float:
    """The images that a limit of Lightning leaves: a number of batches, or a share."""
    return min(number, limit * batch_size) if isinstance(limit, int) else number * limit


def _run_seconds(
    per_image: tuple[float, float], sizes: Mapping[Split, float], stages: Sequence[StageWork], *, head_passes: int, tests: int
) -> RunSeconds:
    """Seconds of a run: features and the fit of the head from one pass over train and val, the epochs, the test.

    Args:
        per_image: see `seconds_per_image`.
        sizes: images that are read in each split.
        stages: of gradient training; of two that share an epoch the slower one counts.
        head_passes: views of the images that a linear probe is fitted on first, the plain one included; 0: none is fitted.
        tests: passes over the test images: two where the linear probe is tested before training.
    """
    loading, forward = per_image
    train, val, test = sizes["train"], sizes["val"], sizes["test"]
    from_image = max(loading, forward)
    extracted = max((max(loading, forward * stage.stored) for stage in stages if stage.stored is not None), default=0.0)
    fitted = from_image * head_passes
    epochs: dict[int, float] = {}
    for stage in stages:
        backward = BACKWARD * forward * (1 - stage.frozen)
        if stage.stored is None:
            reading = loading * PIXEL_LOADING if stage.pixels else loading
            step, check = max(reading, forward + backward), max(reading, forward)
        else:
            check = forward * (1 - stage.stored)
            step = check + backward
        for epoch in stage.span:
            epochs[epoch] = max(epochs.get(epoch, 0.0), train * step + val * check)
    decoded = loading if any(stage.pixels for stage in stages) else 0.0
    before = fitted * (train + val) + from_image * test * (tests - 1)
    return RunSeconds((extracted + decoded) * (train + val) + before + sum(epochs.values()) + from_image * test, before)


def _frozen_prefix(backbone: Backbone, rows: Sequence[LayerRow], stage: int) -> list[str]:
    """The cuts below which nothing trains in a stage."""
    below = []
    for cut, row in zip(backbone.cuts, rows, strict=False):
        if row.modes[stage] != "eval":
            break
        below.append(cut)
    return below


def shares(backbone: Backbone, shape: Sequence[int]) -> dict[str, float]:
    """Cut -> the share of the backbone's operations up to it."""
    operations = {cut: number for cut, (_, number) in backbone.on_meta(shape).items()}
    return {cut: number / max(1, operations[backbone.cuts[-1]]) for cut, number in operations.items()}


def costs_of(backbone: Backbone, data: IndexedImages, configs: Mapping[str, DictConfig], precision: str) -> Iterator[tuple[str, float]]:
    """Seconds of each scenario, before its schedule is built: the small ones fit the head, the large ones train all layers in the end.

    Args:
        backbone: on the device of the run.
        data: images of the run.
        configs: scenario -> its config.
        precision: of the run.
    """
    per_image = seconds_per_image(backbone, data, precision)
    sizes = {split: sum(counts.values()) for split, counts in data.counts.items()}
    fitted_on: list[Split] = ["train", "val"] if data.per_class is None else ["train"]  # a head is refitted on both
    for name, cfg in configs.items():
        small, fits_head = name.startswith("small"), has_probe_head(cfg)
        epochs = ceil(epochs_of(cfg, sizes["train"] / data.batch_size))
        of_head = 0 if fits_head else epochs if small else min(epochs, cfg.schedule.get("epoch") or 0)  # trained from features
        stages = [StageWork(range(of_head), 1.0, 1.0)] if of_head else []
        if not small:
            stages.append(StageWork(range(of_head, epochs), 0.0, None))
        passes = 1 + number_of_views(data, fitted_on) if fits_head else 0
        yield name, _run_seconds(per_image, sizes, stages, head_passes=passes, tests=1 if small or not fits_head else 2).whole


def epochs_of(cfg: DictConfig, batches: float) -> float:
    """Epochs of a run with this number of batches per epoch."""
    trainer = cfg.trainer
    steps = inf if trainer.get("max_steps", -1) in (None, -1) else trainer.max_steps
    unlimited = DEFAULT_EPOCHS if trainer.max_epochs is None and steps == inf else inf
    epochs = unlimited if trainer.max_epochs in (None, -1) else trainer.max_epochs
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


def seconds_per_image(backbone: Backbone, data: IndexedImages, precision: str = "32-true", *, at_least: float = 0) -> tuple[float, float]:
    """Seconds to load an image for evaluation, and to run the backbone on it in this precision, without gradients.

    The latter is the least of all measurements in `at_least` seconds, as other programs can only slow it down.
    """
    train, parameter = data.collection.splits["train"], next(backbone.parameters(), torch.empty(0))

    def load(number: int) -> torch.Tensor:
        return torch.stack([data.transforms["val"](train.load(train.sources[i % len(train)])) for i in range(number)])

    start = time.perf_counter()
    images = load(TIMED_IMAGES)
    loading = (time.perf_counter() - start) / TIMED_IMAGES / max(1, data.num_workers)
    images = images.to(parameter.device, parameter.dtype if images.is_floating_point() else None)
    with evaluating(backbone), torch.no_grad(), autocast_of(precision, parameter.device.type):
        start = time.perf_counter()
        first = _seconds(backbone, images[:1])  # also warms up
        batch = images[:1] if first > SLOW_IMAGE else images
        times = [first, _seconds(backbone, batch)]
        while time.perf_counter() - start < at_least:
            times.append(_seconds(backbone, batch))
        return loading, min(times)


def _seconds(backbone: Backbone, images: torch.Tensor) -> float:
    """Seconds per image of a forward pass."""
    start = time.perf_counter()
    float(backbone.pool(backbone(images)).float().sum())  # waits for the device
    return (time.perf_counter() - start) / len(images)
