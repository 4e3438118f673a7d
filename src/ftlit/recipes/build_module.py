"""The LightningModule of a run."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from ftlit.finetuning.losses import LOSSES
from ftlit.finetuning.schedule import Schedule
from ftlit.inference.record import part_of, record_of
from ftlit.lit.module import FineTuner
from ftlit.models.backbone import Backbone
from ftlit.recipes.checks.check_values import AFFINE
from ftlit.recipes.checks.early_checks import wrong_loss
from ftlit.recipes.checks.own_parts import build_part
from ftlit.recipes.config.class_weights import class_weights_of, trained_classes
from ftlit.recipes.config.hydra_internals import instantiate


def build_module(
    cfg: DictConfig,
    backbone: Backbone,
    head: nn.Module,
    data: Any,
    schedule: Schedule,
    recorded: Mapping[str, Any],
    base: Mapping[str, str] | None,
    lora: Mapping[str, Any] | None = None,
) -> FineTuner:
    """The module of a backbone and a head, with the loss, the optimizer and the rates of the config.

    Args:
        cfg: the composed config.
        backbone: of the run.
        head: of the run.
        data: its classes and their counts are read.
        schedule: its learning-rate factors are read.
        recorded: the head as checkpoints record it.
        base: the weights that slim checkpoints leave out; `None` for full ones.
        lora: what `add_schedule_lora` returned for the backbone.

    Raises:
        UserError: the loss does not fit the labels.
    """
    loss, weights = _build_loss(cfg, data), class_weights_of(cfg, data)
    own: Any = OmegaConf.to_container(cfg.backbone, resolve=True)
    about = {"class_names": data.class_names, "multilabel": data.multilabel, "affine": cfg.batchnorm == AFFINE, "lora": lora}
    record = record_of(backbone, own, recorded, loss=part_of(cfg.loss, LOSSES), **about, **trained_classes(data, ["train"], weights))
    return FineTuner(
        backbone,
        head,
        num_classes=data.num_classes,
        optimizer=instantiate(cfg.optimizer),
        lr_scale=schedule.lr_scale,
        lr_scheduler=instantiate(cfg.lr_scheduler),
        decay_all=cfg.decay_all,
        loss=loss,
        multilabel=data.multilabel,
        record={**record, "base": base},
        slim=base is not None,
    )


def _build_loss(cfg: DictConfig, data: Any) -> nn.Module:
    weights, node = class_weights_of(cfg, data), cfg.loss
    given = {} if weights is None else {"class_weights": weights}
    if given:  # weights by number do not merge with those by name
        node = OmegaConf.masked_copy(node, [str(name) for name in node if name not in given])
    loss: nn.Module = build_part("loss", node, counts=list(data.counts["train"].values()), **given)
    if isinstance(loss, nn.CrossEntropyLoss if data.multilabel else nn.BCEWithLogitsLoss):
        raise wrong_loss(several=data.multilabel)
    return loss
