"""Schedules, the options of the config group `schedule`, and the learning-rate factor of each layer.

A preset takes the names of a backbone's layers, lowest first. Its patterns name parameters of a module that has the backbone as `backbone`
and the head as `head`. How rates change over time is the subject of `lr_schedule`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ftlit.errors import UserError, unknown
from ftlit.finetuning.frozen_layers import Numbers, all_but, frozen_layers, in_backbone
from ftlit.finetuning.schedule import LrFactors, Schedule
from ftlit.finetuning.stage import Stage, Until
from ftlit.finetuning.train_entries import LayerPart, entries_of, pattern_of, whole_layers, with_pattern
from ftlit.formatting import count
from ftlit.models.lora import Lora
from ftlit.patterns import covers
from ftlit.plain_arguments import plain_arguments
from ftlit.registry import Registry

SCHEDULES: Registry[Callable[..., Schedule]] = Registry("schedule")


@plain_arguments
def lr_factors(
    layers: Sequence[str], scale: float = 1.0, decay: float = 1.0, *, backbone: str = "backbone", head: str = "head"
) -> list[tuple[str, float]]:
    """Return the learning-rate factors: 1 for the head, `scale` for the top layer, and `decay` times that of the layer above for others.

    Discriminative rates: Howard and Ruder 2018 (ULMFiT), section 3.2; layer-wise decay: Clark et al. 2020 (ELECTRA), appendix A.

    >>> lr_factors(["stem", "layer1"], 0.1, 0.5)
    [('head', 1.0), ('backbone.layer1', 0.1), ('backbone.stem', 0.05)]
    """
    return [(head, 1.0)] + [(f"{backbone}.{layer}", scale * decay**depth) for depth, layer in enumerate(reversed(layers))]


@SCHEDULES.register("head_only")
def head_only(layers: Sequence[str]) -> Schedule:
    """Train only the head; the backbone stays frozen."""
    return Schedule([Stage(["head"], name="head")], lr_factors(layers))


@SCHEDULES.register("all_at_once")
def all_at_once(
    layers: Sequence[str], *, scale: float = 1.0, decay: float = 1.0, freeze_embeddings: bool = False, freeze_layers: Numbers = ""
) -> Schedule:
    """Train everything from the first epoch, except the frozen layers; see `head_then_all` for the arguments."""
    frozen = frozen_layers(layers, freeze_embeddings, freeze_layers)
    return Schedule([Stage(**all_but(layers, frozen))], lr_factors(layers, scale, decay), in_backbone(frozen))


@SCHEDULES.register("head_then_all")
def head_then_all(
    layers: Sequence[str],
    *,
    epoch: int | None = 2,
    until: Until | Mapping[str, Any] | None = None,
    scale: float = 0.1,
    decay: float = 0.8,
    freeze_embeddings: bool = False,
    freeze_layers: Numbers = "",
) -> Schedule:
    """Train only the head until `epoch`, so that gradients of its random weights do not disturb the pretrained layers; then everything.

    Args:
        layers: names of the backbone's layers.
        epoch: the epoch at which the backbone starts to train; with `until`, the latest; `None`: only `until` decides.
        until: an `Until`, or its fields: the backbone starts to train when this metric is reached.
        scale: ratio of the top layer's rate to the head's.
        decay: ratio of a layer's rate to that of the layer above it.
        freeze_embeddings: whether the layer `embeddings` stays frozen in every stage.
        freeze_layers: numbers of the layers `encoder.<number>` that stay frozen in every stage; see `frozen_layers`.
    """
    frozen = frozen_layers(layers, freeze_embeddings, freeze_layers)
    stages = [Stage(["head"], name="head"), Stage(epoch=epoch, until=_until(until), **all_but(layers, frozen))]
    return Schedule(stages, lr_factors(layers, scale, decay), in_backbone(frozen))


@SCHEDULES.register("last_k")
@plain_arguments
def last_k(
    layers: Sequence[str],
    *,
    k: int = 1,
    epoch: int | None = 2,
    until: Until | Mapping[str, Any] | None = None,
    scale: float = 0.1,
    decay: float = 0.8,
) -> Schedule:
    """Train only the head until `epoch` (see `head_then_all`), then also the top `k` layers; the layers below stay frozen."""
    if not 1 <= k <= len(layers):
        raise UserError(f"last_k with k={k}: this backbone has {count(len(layers), 'layer')}, so give a k from 1 to {len(layers)}")
    top = list(layers[-k:])
    name = f"head + {top[0]}" + (f"..{top[-1]}" if k > 1 else "")
    train = ["head", *(f"backbone.{layer}" for layer in top)]
    return Schedule([Stage(["head"], name="head"), Stage(train, epoch, until=_until(until), name=name)], lr_factors(layers, scale, decay))


@SCHEDULES.register("top_down")
@plain_arguments
def top_down(
    layers: Sequence[str],
    *,
    every: int = 1,
    epoch: int | None = 1,
    until: Until | Mapping[str, Any] | None = None,
    scale: float = 0.1,
    decay: float = 0.8,
    freeze_embeddings: bool = False,
    freeze_layers: Numbers = "",
) -> Schedule:
    """Train only the head until `epoch`, then one more layer every `every` epochs (gradual unfreezing, Howard and Ruder 2018, section 3.3).

    Frozen layers are skipped. With `until` each layer starts when the metric is reached, and at these epochs at the latest. See
    `head_then_all` for the other arguments.
    """
    frozen = frozen_layers(layers, freeze_embeddings, freeze_layers)
    stages, joining = [Stage(["head"], name="head")], [layer for layer in layers if layer not in frozen]
    for i, lowest in enumerate(reversed(joining)):
        last, train = i + 1 == len(joining), ["head", *in_backbone(joining[len(joining) - i - 1 :])]
        name = all_but(layers, frozen)["name"] if last else f"head + {lowest} and above"
        stages.append(Stage(train, None if epoch is None else epoch + i * every, until=_until(until), name=name))
    return Schedule(stages, lr_factors(layers, scale, decay), in_backbone(frozen))


@SCHEDULES.register("bias_only")
def bias_only(
    layers: Sequence[str], *, epoch: int | None = 2, until: Until | Mapping[str, Any] | None = None, scale: float = 1.0, decay: float = 1.0
) -> Schedule:
    """Train only the head until `epoch`, then also the biases of all layers (BitFit, Ben Zaken et al. 2022); see `head_then_all`."""
    return _part_of_backbone("bias", "head + biases", epoch, until, lr_factors(layers, scale, decay))


@SCHEDULES.register("norm_only")
def norm_only(
    layers: Sequence[str], *, epoch: int | None = 2, until: Until | Mapping[str, Any] | None = None, scale: float = 1.0, decay: float = 1.0
) -> Schedule:
    """Train only the head until `epoch`, then also scale and shift of all norms (Frankle et al. 2021); see `head_then_all`."""
    return _part_of_backbone("norm", "head + norms", epoch, until, lr_factors(layers, scale, decay))


@SCHEDULES.register("lora")
def lora(
    layers: Sequence[str],
    *,
    rank: int = 8,
    alpha: float | None = None,
    targets: str | Sequence[str] = (),
    epoch: int | None = 2,
    until: Until | Mapping[str, Any] | None = None,
    scale: float = 1.0,
    decay: float = 1.0,
) -> Schedule:
    """Train only the head until `epoch`, then also low-rank matrices; see `ftlit.models.lora.Lora` and `head_then_all`."""
    schedule = _part_of_backbone("lora", "head + LoRA", epoch, until, lr_factors(layers, scale, decay))
    return replace(schedule, lora=Lora(rank, alpha, targets))


@SCHEDULES.register("explicit")
def explicit(
    layers: Sequence[str],
    *,
    stages: Sequence[Mapping[str, Any]],
    lr_scale: Mapping[str, float] | None = None,
    lora: Mapping[str, Any] | None = None,
) -> Schedule:
    """Build a schedule from its stages and learning-rate factors.

    A pattern that is the name of a layer, or a glob over names of layers, stands for `backbone.<pattern>`.

    Args:
        layers: names of the backbone's layers.
        stages: mappings with the fields of `Stage`; `until` is a mapping with the fields of `Until`.
        lr_scale: pattern -> learning-rate factor; the first pattern that covers a parameter wins. 1 for everything by default.
        lora: fields of `Lora`, for stages that train `{layer: lora}`.

    Raises:
        UserError: invalid stages or factors, see `Stage` and `Schedule`, or an unknown field.
    """

    def full(pattern: str) -> str:
        names_layer = any(covers(pattern, layer) or pattern.startswith(f"{layer}.") for layer in layers)
        return f"backbone.{pattern}" if names_layer and pattern != "*" else pattern

    def build_stage(given: Mapping[str, Any]) -> Stage:
        stage = _fields(Stage, given)
        train = stage.get("train") or []
        if not isinstance(train, str | Sequence | Mapping):
            raise UserError(f"train={train} in schedule.stages: give names of layers, such as [head, {layers[-1]}]")
        stage["train"] = [with_pattern(entry, full(pattern_of(entry))) for entry in entries_of(train)]
        return Stage(**{**stage, "until": _until(stage.get("until"))})

    factors = [(full(pattern), factor) for pattern, factor in (lr_scale or {"*": 1.0}).items()]
    return Schedule([build_stage(given) for given in stages], factors, lora=Lora(**_fields(Lora, lora)) if lora else None)


def _part_of_backbone(
    part: LayerPart, name: str, epoch: int | None, until: Until | Mapping[str, Any] | None, factors: LrFactors
) -> Schedule:
    both = Stage(["head", {"backbone": part}], epoch, until=_until(until), name=name)
    return Schedule([Stage(["head"], name="head"), both], factors)


def with_reinit(schedule: Schedule, layers: Sequence[str], *, backbone: str = "backbone", head: str = "head") -> Schedule:
    """Train reinitialized layers like the head: in every stage in which the head trains, and at its rate.

    Layers that the user froze stay frozen. A schedule without a learning-rate factor for each layer (`explicit`) is returned unchanged.

    Args:
        schedule: any schedule.
        layers: names of the reinitialized layers.
        backbone: name of the backbone in the module.
        head: name of the head in the module.
    """
    factors = dict(schedule.lr_scale)
    new = [name for name in (f"{backbone}.{layer}" for layer in layers) if name not in schedule.frozen]
    if not set(new) <= factors.keys() or head not in factors:
        return schedule

    def with_new(stage: Stage) -> Stage:
        whole = whole_layers(stage.entries)
        lacking = [name for name in new if head in whole and not any(covers(pattern, name) for pattern in whole)]
        return replace(stage, train=[*stage.entries, *lacking], name=" + ".join([stage.name, *(name.split(".", 1)[1] for name in lacking)]))

    lr_scale = [(pattern, factors[head] if pattern in new else factor) for pattern, factor in schedule.lr_scale]
    return replace(schedule, stages=[with_new(stage) for stage in schedule.stages], lr_scale=lr_scale)


def _until(given: Until | Mapping[str, Any] | None) -> Until | None:
    if given is None or isinstance(given, Until):
        return given
    if not isinstance(given, Mapping):
        raise UserError(f"until={given} is not valid: give a condition on a metric, such as {{metric: val/accuracy, threshold: 0.9}}")
    if "metric" not in given:
        raise UserError(f"until={dict(given)} of a stage has no metric: add one, such as `metric: val/accuracy`")
    return Until(**_fields(Until, given))


def _fields(dataclass: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `given` as a dict. Raises `UserError` for a name that is not a field of the dataclass."""
    known = [field.name for field in fields(dataclass)]
    for name in given:
        if name not in known:
            raise unknown("field", name, known, owner=dataclass.__name__)
    return dict(given)
