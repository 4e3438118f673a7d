"""Extract the features that a config asks for, at several cuts in one pass and in one process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig, ListConfig

from ftlit.data.dataset import SPLITS, Split
from ftlit.errors import UserError
from ftlit.features.extract import Features
from ftlit.features.keys import stored_dtype
from ftlit.features.spec import FeatureSpec
from ftlit.features.store import Store
from ftlit.files import temporary_folder
from ftlit.formatting import sizes_in_words
from ftlit.lit.callbacks.probe_head import FitProbeHead
from ftlit.lit.datamodules.indexed_images import IndexedImages
from ftlit.lit.features.extraction import evaluation_features
from ftlit.lit.features.feature_data import FeatureData
from ftlit.lit.features.feature_planner import WEIGHT_DTYPES
from ftlit.lit.module import FineTuner
from ftlit.models.backbone import Backbone
from ftlit.models.heads import head_cuts
from ftlit.models.pooling import POOLINGS, Pooling, pooled_size, poolings_of
from ftlit.recipes.run.trainer import build_trainer


@contextmanager
def features_of(
    cfg: DictConfig,
    backbone: Backbone,
    data: IndexedImages,
    cuts: Sequence[str],
    splits: Sequence[Split] = SPLITS,
    poolings: Sequence[Pooling] = POOLINGS[:1],
) -> Iterator[dict[Split, dict[Pooling, Features]]]:
    """Yield pooled features of the evaluation view, from the store, or with `cache=none` from a temporary folder.

    The backbone moves to the trainer's device, in its precision.

    Args:
        cfg: for the groups cache, paths and trainer.
        backbone: named layers.
        data: the images.
        cuts: names of layers.
        splits: of the images.
        poolings: each is used at the cuts whose features allow it.

    Yields:
        Split -> pooling -> features.
    """
    specs = specs_of(backbone, cuts, poolings)
    with temporary_folder() as own_folder:
        store = Store(cfg.cache.get("folder", own_folder) or cfg.paths.cache, trust=cfg.cache.get("trust", False))
        rows = evaluation_features(one_device(cfg)(logger=False, enable_checkpointing=False), store, backbone, data, specs, splits)
        found: dict[Split, dict[Pooling, Features]] = {}
        for split in splits:
            targets, groups = data.collection.targets(split), data.collection.splits[split].groups
            own = rows[split].items()
            by_pooling = {pooling: {spec.cut: part for spec, part in own if spec.pooling == pooling} for pooling in poolings}
            found[split] = {pooling: Features(of_cuts, targets, groups) for pooling, of_cuts in by_pooling.items() if of_cuts}
        yield found


def specs_of(backbone: Backbone, cuts: Sequence[str], poolings: Sequence[Pooling]) -> list[FeatureSpec]:
    """Each cut, the lowest first, with each of these poolings that its features allow. Raises `UserError` for an unknown cut."""
    names = [backbone.cuts[place] for place in sorted({backbone.index(name) for name in cuts})]
    return [FeatureSpec(name, pooling) for name in names for pooling in poolings if pooling in poolings_of(backbone.feature_shapes[name])]


def head_feature_bytes(trainer: pl.Trainer, data: Any, module: FineTuner, probe_head: FitProbeHead) -> int:
    """Size of the features in the store that the head is fitted on; 0 with `cache=none`.

    Raises:
        UserError: a given number of views whose features do not fit in `cache.max_gb`.
    """
    if not isinstance(data, FeatureData):
        return 0
    images, splits, views = probe_head.reads(trainer, data)
    shapes = module.backbone.on_meta(data.input_spec.shape)
    values = sum(pooled_size(shapes[cut][0], module.backbone.token_pool) for cut in head_cuts(module) or module.backbone.cuts[-1:])
    dtype = stored_dtype(data.planner.dtype, WEIGHT_DTYPES.get(str(trainer.precision), torch.float32))
    size = (1 + views) * sum(len(images.collection.splits[split]) for split in splits) * values * dtype.itemsize
    if views and data.images.views != "auto" and size > data.planner.max_gb * 1e9:
        needed, room = sizes_in_words(size, data.planner.max_gb * 1e9)
        raise UserError(
            f"data.views={views}: the features that the head is fitted on need {needed}, but cache.max_gb leaves room for only {room}: "
            f"give fewer views, or cache.max_gb={ceil(size / 1e9)}"
        )
    return size


def one_device(cfg: DictConfig) -> Callable[..., pl.Trainer]:
    """Return the config's trainer with one device: the first of the given devices, or any."""
    devices = cfg.trainer.get("devices")
    first = [devices[0]] if isinstance(devices, ListConfig) and len(devices) else 1
    return partial(build_trainer, cfg, devices=first, num_nodes=1, strategy="auto")
