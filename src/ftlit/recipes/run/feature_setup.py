"""From config to features of several cuts in one pass, in one process."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import lightning.pytorch as pl
from omegaconf import DictConfig, ListConfig

from ftlit.data.dataset import SPLITS, Split
from ftlit.features.extract import Features
from ftlit.features.spec import FeatureSpec
from ftlit.features.store import Store
from ftlit.lit.datamodules.extraction import evaluation_features
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.models.backbone import Backbone
from ftlit.models.pooling import POOLINGS, Pooling, poolings_of
from ftlit.recipes.config.hydra_internals import instantiate


@contextmanager
def features_of(
    cfg: DictConfig,
    backbone: Backbone,
    data: ImageData,
    cuts: Sequence[str],
    splits: Sequence[Split] = SPLITS,
    poolings: Sequence[Pooling] = POOLINGS[:1],
) -> Iterator[dict[Split, dict[Pooling, Features]]]:
    """Vectors of these cuts, pooled in these ways where their shape allows it, of the evaluation view of each split; from the store where
    they are, or with `cache=none` from a folder that is gone afterwards. The backbone is moved to the trainer's device, in its precision.
    """
    names = [backbone.cuts[backbone.index(name)] for name in cuts]
    specs = [FeatureSpec(name, way) for name in names for way in poolings if way in poolings_of(backbone.feature_shapes[name])]
    with tempfile.TemporaryDirectory(prefix="ftlit-") as own_folder:
        store = Store(cfg.cache.get("folder", own_folder) or cfg.paths.cache)
        rows = evaluation_features(one_device(cfg)(logger=False, enable_checkpointing=False), store, backbone, data, specs, splits)
        found: dict[Split, dict[Pooling, Features]] = {}
        for split in splits:
            own, targets = rows[split], data.collection.targets(split)
            used = [way for way in poolings if any(spec.pooling == way for spec in own)]
            found[split] = {way: Features({spec.cut: part for spec, part in own.items() if spec.pooling == way}, targets) for way in used}
        yield found


def one_device(cfg: DictConfig) -> Callable[..., pl.Trainer]:
    """The config's trainer with one device: the first of those that were named, else any."""
    devices = cfg.trainer.get("devices")
    first = [devices[0]] if isinstance(devices, ListConfig) and len(devices) else 1
    return partial(instantiate, cfg.trainer, devices=first, num_nodes=1, strategy="auto")
