"""Which stages of a schedule train from stored features, at which cut, and why not the others."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from ftlit.errors import UserError
from ftlit.features.spec import FeatureSpec
from ftlit.finetuning.freeze import trained
from ftlit.finetuning.schedule import Schedule
from ftlit.formatting import size_in_words
from ftlit.models.backbone import Backbone
from ftlit.patterns import covers

# Of a middling machine each, for "does reading beat computing": a disk, what an image costs before it is a tensor, a processor.
READ_BYTES = 1e9  # a second
LOAD_SECONDS = 5e-4  # an image, decoded and resized by several workers
FLOPS = {"cpu": 1e11}  # a second
FLOPS_ELSEWHERE = 2e13
DRAWS = (_NormBase, _DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)  # or counts, in training mode


@dataclass(frozen=True)
class StageInput:
    """What a stage trains from.

    Args:
        form: features of this form; `None`: images.
        bytes: what the features of all splits and views take on disk.
        why: the form in words, or why it is images.
    """

    form: FeatureSpec | None
    bytes: int
    why: str


def frozen_prefix(backbone: Backbone, layers: Collection[str]) -> str | None:
    """The highest cut below which no layer is among `layers`, which train; `None` where the lowest layer is."""
    below = None
    for layer in backbone.cuts:
        if layer in layers:
            break
        below = layer
    return below


def spec_of(backbone: Backbone, layers: Collection[str], *, pooled: bool) -> FeatureSpec | None:
    """The features that a stage in which these layers train can go on from; `None` where the lowest layer trains.

    Args:
        backbone: whose layers they are.
        layers: their names.
        pooled: whether the head takes pooled vectors; then the features at the last cut are stored as such.
    """
    cut = frozen_prefix(backbone, layers)
    return None if cut is None else FeatureSpec(cut, "average" if pooled and cut == backbone.cuts[-1] else None)


def plan_stage_inputs(
    backbone: Backbone,
    forms: Sequence[FeatureSpec | None],
    rows: Mapping[FeatureSpec, int],
    *,
    dtype: torch.dtype = torch.float32,
    max_bytes: float,
    device: str = "cpu",
    input_shape: Sequence[int] | None = None,
) -> list[StageInput]:
    """What each stage of a schedule trains from: its features, where reading them beats computing them and they fit in `max_bytes`, which
    earlier stages are given first.

    Args:
        backbone: that computes them.
        forms: of the features that each stage can go on from; see `spec_of`.
        rows: how many to store of each form: images, views counted.
        dtype: of the stored features.
        max_bytes: for all cuts together.
        device: kind of device that would compute them.
        input_shape: of one input; `None`: what the backbone's input spec says.
    """
    costs = backbone.on_meta(input_shape or backbone.input_spec.shape)
    noun = backbone.input_spec.noun
    chosen: dict[FeatureSpec | None, StageInput] = {None: StageInput(None, 0, f"{noun}: the lowest layer trains")}
    for form in forms:
        if form is None or form in chosen:
            continue
        shape, flops = costs[form.cut]
        row = dtype.itemsize * (backbone.num_features if form.pooling else torch.Size(shape).numel())
        size, left = row * rows[form], max_bytes - sum(source.bytes for source in chosen.values())
        computing = LOAD_SECONDS + flops / FLOPS.get(device, FLOPS_ELSEWHERE)
        told = f"at {form.cut} ({'pooled, ' if form.pooling else ''}{size_in_words(row)} each)"
        if row / READ_BYTES > computing:
            chosen[form] = StageInput(None, 0, f"{noun}: to read features {told} takes longer than to compute them")
        elif size > left:
            chosen[form] = StageInput(
                None, 0, f"{noun}: features {told} take {size_in_words(size)}, cache.max_gb leaves {size_in_words(left)}"
            )
        else:
            chosen[form] = StageInput(form, size, f"features {told}")
    return [chosen[form] for form in forms]


def the_backbone(module: nn.Module) -> tuple[str, Backbone]:
    """Prefix of its parameters' names, and the backbone. Raises `UserError` where there is none, or more than one."""
    found = [(f"{name}." if name else "", part) for name, part in module.named_modules() if isinstance(part, Backbone)]
    if len(found) != 1:
        raise UserError(f"{type(module).__name__} holds {len(found)} backbones: features are stored for one, give images instead")
    return found[0]


def trained_layers(module: nn.Module, schedule: Schedule | None) -> list[set[str]]:
    """For each stage the layers of the backbone that train; without a schedule those that do now, or are in training mode."""
    prefix, backbone = the_backbone(module)
    if schedule is None:
        return [{name for name, layer in backbone.items() if any(p.requires_grad for p in layer.parameters()) or _moves(layer)}]
    stages = [trained(module, stage.train, stage.policy) for stage in schedule.stages]
    return [{layer for layer in backbone.cuts if any(covers(prefix + layer, name) for name in names)} for names in stages]


def _moves(layer: nn.Module) -> bool:
    """Whether it may give other features each time: norms, dropout, or what is not known, in training mode."""
    return any(
        part.training
        and (isinstance(part, DRAWS) or bool(getattr(part, "dropout", 0)) or not type(part).__module__.startswith("torch.nn."))
        for part in layer.modules()
    )
