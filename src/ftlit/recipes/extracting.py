"""From config to codes of several cuts in one pass, in one process."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import lightning.pytorch as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from ftlit.backbone import Backbone
from ftlit.codes import Codes, evaluating
from ftlit.column import Rows
from ftlit.dataset import SPLITS, Split
from ftlit.lit.extracting import EVALUATION, Extraction
from ftlit.lit.images import ImageData
from ftlit.pooling import POOLINGS, Pooling, poolings_of
from ftlit.sources import Form
from ftlit.store import Store


@contextmanager
def codes_of(
    cfg: DictConfig,
    backbone: Backbone,
    data: ImageData,
    cuts: Sequence[str],
    splits: Sequence[Split] = SPLITS,
    poolings: Sequence[Pooling] = POOLINGS[:1],
) -> Iterator[dict[Split, dict[Pooling, Codes]]]:
    """Vectors of these cuts, pooled in these ways where their shape allows it, of the evaluation view of each split; from the store where
    they are, or with `cache=none` from a folder that is gone afterwards. The backbone is moved to the trainer's device, in its precision.
    """
    names = [backbone.cuts[backbone.index(name)] for name in cuts]
    forms = [Form(name, way) for name in names for way in poolings if way in poolings_of(backbone.code_shapes[name])]
    with _extracted(cfg, backbone, data, forms, splits) as rows:
        found: dict[Split, dict[Pooling, Codes]] = {}
        for split in splits:
            own, targets = rows[split], data.collection.targets(split)
            used = [way for way in poolings if any(form.pooling == way for form in own)]
            found[split] = {way: Codes({form.cut: part for form, part in own.items() if form.pooling == way}, targets) for way in used}
        yield found


@contextmanager
def whole_codes_of(
    cfg: DictConfig, backbone: Backbone, data: ImageData, cut: str, splits: Sequence[Split] = SPLITS
) -> Iterator[dict[Split, Rows]]:
    """All of the codes at a cut, not pooled; else as `codes_of`."""
    form = Form(cut, None)
    with _extracted(cfg, backbone, data, [form], splits) as rows:
        yield {split: rows[split][form] for split in splits}


@contextmanager
def _extracted(
    cfg: DictConfig, backbone: Backbone, data: ImageData, forms: Sequence[Form], splits: Sequence[Split]
) -> Iterator[dict[Split, dict[Form, Rows]]]:
    trainer: pl.Trainer = instantiate(
        cfg.trainer, devices=_first(cfg), num_nodes=1, strategy="auto", logger=False, enable_checkpointing=False
    )
    backbone.to(trainer.strategy.root_device)
    trainer.precision_plugin.convert_module(backbone)
    with tempfile.TemporaryDirectory(prefix="ftlit-") as own_folder:
        extraction = Extraction(data, Store(cfg.cache.get("folder", own_folder) or cfg.paths.cache), dtype=None, seed=0)
        with evaluating(backbone):
            rows = extraction.rows(trainer, backbone, {(split, EVALUATION): forms for split in splits}, None)
        yield {split: rows[split, EVALUATION] for split in splits}


def _first(cfg: DictConfig) -> int | list[int]:
    """The first of the devices that were named, else one."""
    devices = cfg.trainer.get("devices")
    return [devices[0]] if isinstance(devices, ListConfig) and len(devices) else 1
