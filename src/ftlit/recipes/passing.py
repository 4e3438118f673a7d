"""From config to codes of several cuts in one pass, in one process."""

from collections.abc import Sequence

import lightning.pytorch as pl
from hydra.utils import instantiate
from omegaconf import DictConfig

from ftlit.backbone import Backbone
from ftlit.codes import Codes, evaluating
from ftlit.dataset import SPLITS, Split
from ftlit.lit.extracting import EVALUATION, Extraction
from ftlit.lit.images import ImageData
from ftlit.sources import Form
from ftlit.store import Store


def codes_of(
    cfg: DictConfig, backbone: Backbone, data: ImageData, cuts: Sequence[str], splits: Sequence[Split] = SPLITS
) -> dict[Split, Codes]:
    """Vectors of these cuts, pooled as the network pools, of the evaluation view of each split; from the store where they are. The
    backbone is moved to the trainer's device, in its precision.
    """
    trainer: pl.Trainer = instantiate(cfg.trainer, devices=1, num_nodes=1, strategy="auto", logger=False, enable_checkpointing=False)
    forms = [Form(backbone.cuts[backbone.index(name)], True) for name in cuts]
    backbone.to(trainer.strategy.root_device)
    trainer.precision_plugin.convert_module(backbone)
    extraction = Extraction(data, Store(cfg.paths.cache), dtype=None, seed=0)
    with evaluating(backbone):
        rows = extraction.rows(trainer, backbone, {(split, EVALUATION): forms for split in splits}, None)
    return {
        split: Codes({form.cut: own for form, own in rows[split, EVALUATION].items()}, data.collection.targets(split)) for split in splits
    }
