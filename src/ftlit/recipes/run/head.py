"""The head of a run: whether it fits the features, and how it is fitted as a linear probe."""

from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig
from torch import nn

from ftlit.errors import UserError, one_line
from ftlit.finetuning.losses import WeightedCrossEntropy
from ftlit.finetuning.schedule import Schedule, trains_head_alone
from ftlit.lit.callbacks.probe_head import FitProbeHead, check_probe_head
from ftlit.models.backbone import Backbone
from ftlit.models.heads import is_linear_probe, logits_of
from ftlit.recipes.config.hydra_internals import instantiate


def build_probe_head(cfg: DictConfig, head: nn.Module, schedule: Schedule) -> FitProbeHead | None:
    """The callback that fits the head as a linear probe; `None` for another head. Raises `UserError` for options that it cannot follow."""
    if not is_linear_probe(type(head)):
        return None
    probes = instantiate(cfg.probe)
    if probes.cuts is not None or probes.repeats > 1:
        raise UserError(
            "head=linear_probe is fitted once, at the cut of the backbone: leave probe.cuts and probe.repeats out, or give recipe=probe"
        )
    if "average" not in probes.poolings:
        raise UserError(
            f"probe.poolings={list(probes.poolings)}: head=linear_probe needs probe.poolings=[average]; other poolings need recipe=probe"
        )
    weights = cfg.loss.get("class_weights")
    if _ignores_weights(schedule, weighted=bool(weights)):
        raise UserError(f"loss.class_weights={weights} has no effect on head=linear_probe: leave it out, or give head=linear")
    return FitProbeHead("head", probes, trains=not _only_fits(schedule))


def may_fit_head(trainer: pl.Trainer, data: Any, schedule: Schedule, loss: nn.Module) -> bool:
    """Whether `head=linear_probe` would be accepted in a run with these parts."""
    try:
        check_probe_head(trainer, data)
    except UserError:
        return False
    return not _ignores_weights(schedule, weighted=isinstance(loss, WeightedCrossEntropy))


def _ignores_weights(schedule: Schedule, *, weighted: bool) -> bool:
    """Whether weights of classes would have no effect on a head that is fitted: no stage trains after it."""
    return weighted and _only_fits(schedule)


def _only_fits(schedule: Schedule) -> bool:
    """Whether a linear probe leaves nothing to train: no stage trains more than the head."""
    return all(trains_head_alone(stage) for stage in schedule.stages)


def check_head(backbone: Backbone, head: nn.Module, num_classes: int) -> None:
    """Try a head on features of zeros, so that a custom one that does not fit is found before training. Raises `UserError`."""
    shape = backbone.feature_shapes[backbone.cuts[-1]]
    try:
        with torch.no_grad():
            logits = logits_of(head.eval(), torch.zeros(2, *shape), backbone.pool)
    except Exception as error:
        where = f"{shape} at cut {backbone.cuts[-1]!r}"
        raise UserError(f"{type(head).__name__} does not accept the features {where}: {one_line(error)}") from error
    found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found != (2, num_classes):
        shown = f"(N{''.join(f', {size}' for size in found[1:])})" if isinstance(found, tuple) else found
        name = f"{type(head).__module__}.{type(head).__qualname__}"
        raise UserError(f"head {name} returns {shown}, but there are {num_classes} classes: it must return (N, {num_classes})")
