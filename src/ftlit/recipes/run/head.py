"""The head of a run: whether it fits the features, and how it is fitted as a linear probe."""

from pkgutil import resolve_name
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from ftlit.errors import UserError, one_line
from ftlit.finetuning.losses import ClassWeights
from ftlit.finetuning.schedule import Schedule, trains_head_alone
from ftlit.lit.callbacks.probe_head import FitProbeHead, check_probe_head
from ftlit.models.backbone import Backbone
from ftlit.models.feature_batch import FeatureBatch
from ftlit.models.heads import features_for, head_cuts, is_linear_probe, logits_of
from ftlit.models.pooling import pooled_size
from ftlit.recipes.config.hydra_internals import instantiate

AUTO_CUTS = 4  # layers that a head reads which is only fitted: measured by benchmarks/heads.py


def build_probe_head(cfg: DictConfig, head: nn.Module, schedule: Schedule, class_weights: ClassWeights | None) -> FitProbeHead | None:
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
    return FitProbeHead("head", probes, trains=not _only_fits(schedule), class_weights=class_weights)


def may_fit_head(trainer: pl.Trainer, data: Any) -> bool:
    """Whether `head=linear_probe` would be accepted in a run with these parts."""
    try:
        check_probe_head(trainer, data)
    except UserError:
        return False
    return True


def _only_fits(schedule: Schedule) -> bool:
    """Whether a linear probe leaves nothing to train: no stage trains more than the head."""
    return all(trains_head_alone(stage) for stage in schedule.stages)


def read_by_head(cfg: DictConfig, backbone: Backbone) -> Backbone:
    """The backbone up to the highest layer that `head.cuts` names. Raises `UserError` where `backbone.cut` is given too."""
    cuts = cfg.head.get("cuts")
    if not isinstance(cuts, ListConfig):
        return backbone
    if not cuts:
        raise UserError(
            "head.cuts=[] names no layer: give names, such as [layer3,layer4], a count, such as 2 for the last two layers, or null for "
            "the last layer"
        )
    if cfg.backbone.get("cut") is not None:
        raise UserError(
            f"head.cuts={list(cuts)} and backbone.cut={cfg.backbone.cut} both say where the head reads: to read at the layers in "
            f"head.cuts, give backbone.cut=null; to read at {cfg.backbone.cut} and the layer below it, keep backbone.cut and give "
            "head.cuts=2"
        )
    return backbone.upto(max(backbone.index(cut) for cut in cuts))


def head_arguments(cfg: DictConfig, backbone: Backbone, schedule: Schedule) -> dict[str, Any]:
    """The arguments of the head that follow from the backbone: of one on several layers their names, the lowest first, and the length of
    the features at each.
    """
    given, target = cfg.head.get("cuts"), resolve_name(cfg.head._target_)
    if getattr(target, "takes_map", False) and (pooling := cfg.backbone.get("pooling")):
        raise UserError(f"backbone.pooling={pooling} has no effect on {target.__name__}, which pools by itself: leave one of the two out")
    if given == "auto":
        fitted = is_linear_probe(target) and _only_fits(schedule)
        given = AUTO_CUTS if fitted else None
    read = range(-min(given, len(backbone.cuts)), 0) if isinstance(given, int) else given or ()
    cuts = [backbone.cuts[place] for place in sorted({backbone.index(cut) for cut in read})]
    if len(cuts) > 1:
        return {"in_features": [pooled_size(backbone.feature_shapes[cut], backbone.token_pool) for cut in cuts], "cuts": cuts}
    one = {"cuts": [], "combine": "concat"}
    return {"in_features": backbone.num_features, **{name: value for name, value in one.items() if name in cfg.head}}


def recorded_head(cfg: DictConfig, arguments: dict[str, Any]) -> dict[str, Any]:
    """The head as a checkpoint records it: the config, and its `head_arguments`."""
    options: dict[str, Any] = {**OmegaConf.to_container(cfg.head, resolve=True), **arguments}  # type: ignore[dict-item]
    if is_linear_probe(resolve_name(cfg.head._target_)):
        cuts, combine = options.pop("cuts"), options.pop("combine")
        options |= {"cuts": cuts, "combine": "average" if combine == "average" else "concat"} if cuts else {}
    return options


def check_head(backbone: Backbone, head: nn.Module, num_classes: int) -> None:
    """Try a head on features of zeros, so that a custom one that does not fit is found before training. Raises `UserError`."""
    cuts = {cut: torch.zeros(2, *backbone.feature_shapes[cut]) for cut in head_cuts(head) or backbone.cuts[-1:]}
    with torch.no_grad():
        features = features_for(head, backbone, FeatureBatch(cuts))
        try:
            logits = logits_of(head.eval(), features)
        except Exception as error:
            given, maps = (" and ".join(map(_shape, values)) for values in (features, cuts.values()))
            of_maps = given != maps and not getattr(head, "takes_map", False)
            or_maps = f", or one with takes_map = True for the maps {maps}" if of_maps else ""
            where = f"{given} of {' and '.join(map(repr, cuts))}"
            failed = f"{type(head).__name__} does not accept the features {where} ({one_line(error)})"
            raise UserError(f"{failed}: give a head for {given}{or_maps}") from error
    found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found != (2, num_classes):
        shown = _shape(logits) if isinstance(logits, torch.Tensor) else found
        name = f"{type(head).__module__}.{type(head).__qualname__}"
        raise UserError(f"head {name} returns {shown}, but there are {num_classes} classes: it must return (N, {num_classes})")


def _shape(values: torch.Tensor) -> str:
    """`(N, 128)`: the shape of a batch."""
    return f"(N{''.join(f', {size}' for size in values.shape[1:])})"
