"""Decide which stages of a schedule train from stored features, at which cut, and why the others do not."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from ftlit.errors import UserError
from ftlit.features.spec import FeatureSpec
from ftlit.finetuning.freeze import trained
from ftlit.finetuning.schedule import Schedule
from ftlit.formatting import count, size_in_words, sizes_in_words
from ftlit.models.backbone import Backbone
from ftlit.models.pooling import Pooling, pooled_size
from ftlit.patterns import covers

# An average machine, to decide whether reading features is faster than computing them.
READ_BYTES_PER_SECOND = 1e9
LOAD_SECONDS = 5e-4  # per image, decoded and resized by several workers
FLOPS_PER_SECOND = {"cpu": 1e11}
OTHER_FLOPS_PER_SECOND = 2e13  # of a device that is not in the table
CHANGES_IN_TRAINING = (_NormBase, _DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)  # random, or with statistics


Specs = tuple[FeatureSpec, ...]  # of the features that a stage reads; empty: images


@dataclass(frozen=True)
class StageInput:
    """The input of a stage: stored features or images.

    Args:
        specs: of the features, the lowest cut first; none: images.
        bytes: size of the features of all splits and views on disk.
        reason: description of the features, or why the stage reads images.
        pixels: whether the images are read from stored pixels.
    """

    specs: Specs
    bytes: int
    reason: str
    pixels: bool = False


def frozen_prefix(backbone: Backbone, layers: Collection[str]) -> str | None:
    """Return the highest cut below which none of `layers` trains; `None` if the lowest layer trains."""
    below = None
    for layer in backbone.cuts:
        if layer in layers:
            break
        below = layer
    return below


def specs_of(backbone: Backbone, layers: Collection[str], *, pooled: bool, head_cuts: Sequence[str] = ()) -> Specs:
    """Return the features that a stage can train from; none if the lowest layer trains.

    Args:
        backbone: named layers.
        layers: names of those that train.
        pooled: whether the head takes pooled vectors; then features at the last cut are stored pooled.
        head_cuts: the cuts that the head names, the lowest first; none: it reads the last one.
    """
    cut = frozen_prefix(backbone, layers)
    if cut is None:
        return ()
    pooling: Pooling | None = "average" if pooled else None
    ends = head_cuts or backbone.cuts[-1:]
    if backbone.index(cut) >= backbone.index(ends[-1]):
        return tuple(FeatureSpec(name, pooling) for name in ends)
    below = [FeatureSpec(name, pooling) for name in ends if backbone.index(name) < backbone.index(cut)]
    return (*below, FeatureSpec(cut, None))


def specs_before_training(backbone: Backbone, inputs: Sequence[StageInput], layers: Sequence[Collection[str]], now: int) -> list[Specs]:
    """Return the specs whose features can be computed now, because no layer below their cut trains before their stage begins.

    Args:
        backbone: named layers.
        inputs: of each stage.
        layers: names of the layers that train in each stage.
        now: the current stage; those before it are over.

    Returns:
        The specs of each stage; none if the features cannot be computed now, or if the stage is over or reads images.
    """

    def stays_frozen(specs: Specs, stage: int) -> bool:
        return not set(backbone.upto(specs[-1].cut).cuts) & set().union(*layers[now:stage])

    wanted = [stage_input.specs for stage_input in inputs]
    return [specs if specs and stage >= now and stays_frozen(specs, stage) else () for stage, specs in enumerate(wanted)]


def plan_stage_inputs(
    backbone: Backbone,
    specs: Sequence[Specs],
    rows: Mapping[Specs, int],
    *,
    dtype: torch.dtype = torch.float32,
    max_bytes: float,
    device: str = "cpu",
    input_shape: Sequence[int] | None = None,
) -> list[StageInput]:
    """Decide what each stage of a schedule reads.

    A stage reads features if reading is faster than computing and the features fit in `max_bytes`; earlier stages come first.

    Args:
        backbone: computes the features.
        specs: of the features that each stage can train from; see `specs_of`.
        rows: specs -> number of rows to store: images times views.
        dtype: of the stored features.
        max_bytes: of all features together.
        device: type of the device that would compute them.
        input_shape: of one input; `None`: that of the backbone's input spec.

    Returns:
        An input for each stage.
    """
    costs = backbone.on_meta(input_shape or backbone.input_spec.shape)
    noun = backbone.input_spec.noun
    chosen: dict[Specs, StageInput] = {(): StageInput((), 0, f"{noun}, because the lowest layer trains")}
    for own in specs:
        if own in chosen:
            continue
        flops = costs[own[-1].cut][1]
        shapes = {spec: costs[spec.cut][0] for spec in own}
        numbers = (pooled_size(shape, backbone.token_pool) if spec.pooling else torch.Size(shape).numel() for spec, shape in shapes.items())
        row = dtype.itemsize * sum(numbers)
        size, left = row * rows[own], max_bytes - sum(stage_input.bytes for stage_input in chosen.values())
        computing = LOAD_SECONDS + flops / FLOPS_PER_SECOND.get(device, OTHER_FLOPS_PER_SECOND)
        description = f"at {', '.join(spec.cut for spec in own)} ({'pooled, ' if own[-1].pooling else ''}{size_in_words(row)} per example)"
        if row / READ_BYTES_PER_SECOND > computing:
            chosen[own] = StageInput((), 0, f"{noun}, because reading features {description} takes longer than computing them")
        elif size > left:
            needed, room = sizes_in_words(size, left)
            reason = f"{noun}, because features {description} need {needed}, but cache.max_gb leaves room for only {room}"
            chosen[own] = StageInput((), 0, reason)
        else:
            chosen[own] = StageInput(own, size, f"features {description}")
    return [chosen[own] for own in specs]


def with_shared_epochs(inputs: Sequence[StageInput], schedule: Schedule) -> list[StageInput]:
    """Add to the reason of a stage that its last epoch reads the input of the next stage, where that begins within an epoch."""
    found = list(inputs)
    for i, stage in enumerate(schedule.stages[1:]):
        if stage.step is not None and inputs[i].specs and inputs[i].specs != inputs[i + 1].specs:
            shared = f"its last epoch reads the same as stage {i + 1}, which begins within that epoch"
            found[i] = replace(inputs[i], reason=f"{inputs[i].reason}; {shared}")
    return found


def views_by_specs(specs: Sequence[Specs], views: Sequence[Collection[int]]) -> dict[Specs, set[int]]:
    """Join the views (numbers) that the stages with the same specs read."""
    found: dict[Specs, set[int]] = {}
    for own, numbers in zip(specs, views, strict=True):
        if own:
            found.setdefault(own, set()).update(numbers)
    return found


def stages_of_epoch(schedule: Schedule, current: int, epoch: int, steps: range, decided: Mapping[int, int]) -> set[int]:
    """Return the other stages to which training batches of an epoch may belong.

    Args:
        schedule: the stages.
        current: the current stage.
        epoch: number of the epoch.
        steps: optimizer steps of the epoch.
        decided: stages that began by a metric; see `Schedule.stage_at`.
    """
    before = range(schedule.stage_at(epoch, steps.start, decided), current)
    after = range(current + 1, len(schedule.stages))
    return {*before, *(place for place in after if (step := schedule.stages[place].step) is not None and step < steps.stop)}


def the_backbone(module: nn.Module) -> tuple[str, Backbone]:
    """Return the prefix of the backbone's parameter names, and the backbone. Raises `UserError` if there is not exactly one."""
    found = [(f"{name}." if name else "", part) for name, part in module.named_modules() if isinstance(part, Backbone)]
    if len(found) != 1:
        raise UserError(
            f"{type(module).__name__} has {count(len(found), 'Backbone')}, but FeatureData and FitProbeHead need exactly one: train on "
            "ImageData without FeatureData and FitProbeHead, or build the module with one Backbone"
        )
    return found[0]


def trained_layers(module: nn.Module, schedule: Schedule | None) -> list[set[str]]:
    """Return the layers of the backbone that train in each stage; without a schedule those that train, or may change, now."""
    prefix, backbone = the_backbone(module)
    if schedule is None:
        return [{name for name, layer in backbone.items() if any(p.requires_grad for p in layer.parameters()) or may_change(layer)}]
    return layers_of_stages(module, schedule, prefix.removesuffix("."), backbone.cuts)


def layers_of_stages(module: nn.Module, schedule: Schedule | None, path: str, layers: Sequence[str]) -> list[set[str]]:
    """Return the layers of a part of a module that train in each stage; without a schedule, in one stage, those that train now.

    Args:
        module: the module.
        schedule: its patterns name parameters of the module.
        path: of the part.
        layers: names below it.
    """
    paths = {layer: ".".join(filter(None, (path, layer))) for layer in layers}
    stages = names_of_stages(module, schedule)
    return [{layer for layer, own in paths.items() if any(covers(own, name) for name in names)} for names in stages]


def names_of_stages(module: nn.Module, schedule: Schedule | None) -> list[set[str]]:
    """Return the names of the parameters that train in each stage; without a schedule, in one stage, those that train now."""
    now = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return [trained(module, stage.train, stage.policy) for stage in schedule.stages] if schedule else [now]


def may_change(layer: nn.Module) -> bool:
    """Whether the features may differ each time: norms, dropout or custom modules in training mode."""
    return any(
        part.training
        and (
            isinstance(part, CHANGES_IN_TRAINING) or bool(getattr(part, "dropout", 0)) or not type(part).__module__.startswith("torch.nn.")
        )
        for part in layer.modules()
    )
