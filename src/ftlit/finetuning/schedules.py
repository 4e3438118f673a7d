"""The ready-made schedules for any module: `ftlit.schedules.top_down(module, backbone="encoder", head="fc", every=2)`."""

import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from inspect import Parameter, signature
from typing import Any

from torch import nn

from ftlit.errors import UserError, closest, shorten, unknown
from ftlit.finetuning import presets
from ftlit.finetuning.freeze import BatchNorm
from ftlit.finetuning.param_groups import check_factors
from ftlit.finetuning.presets import lr_factors
from ftlit.finetuning.schedule import Schedule
from ftlit.finetuning.train_entries import pattern_of, with_pattern
from ftlit.formatting import count
from ftlit.models.backbone import Backbone
from ftlit.models.lora import Lora
from ftlit.patterns import covers, not_covered, prefixes

WORDS = {"all", "but", "and", "above", "biases", "norms", "LoRA"}  # of stage names; a layer of such a name keeps it there as it is
OF_MATRICES = {
    field.name for field in fields(Lora)
}  # options of the command line, where the run adds the LoRA matrices; here the user does


def layers_of(module: nn.Module, backbone: str = "backbone", head: str = "head") -> list[str]:
    """The names of the layers of a backbone in a module, lowest first: those of a `Backbone`, else its parameters and children as they were
    registered, without the head and without those that have no parameters. A single child with children is taken apart in its place.

    Args:
        module: holds backbone and head, each anywhere below it.
        backbone: path of the backbone; an empty text: the module itself.
        head: path of the head.

    Raises:
        UserError: not a module, or it has no such part.
    """
    if not isinstance(module, nn.Module):
        raise UserError(
            f"a schedule is made for an nn.Module, not for {module!r}: give the module, as in top_down(module, head='fc'), or no module, "
            "as in StagedFinetuning(top_down(head='fc'))"
        )
    parts = dict(module.named_modules())
    for argument, path in (("backbone", backbone), ("head", head)):
        if path not in parts:
            raise _no_part(module, argument, path)
    return _layers_in(parts[backbone], head if not backbone else head.removeprefix(f"{backbone}."))


def _no_part(module: nn.Module, argument: str, path: str) -> UserError:
    """The error for a path that names no module. Where no child is alike, a backbone is the largest one, and a head the last one."""
    parts = dict(module.named_modules())
    above = next(prefix for prefix in (*reversed(prefixes(path)), "") if prefix in parts)
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in parts[above].named_children()}
    names = [name for name, size in sizes.items() if size]
    has, beside = f"{type(module).__name__} has no module {path!r}", shorten(_path(above, name) for name in names)
    if not names:
        return UserError(f"{has}: give {above!r}, which has no inner modules with parameters, or build a Schedule from stages")
    if meant := closest(path.removeprefix(f"{above}."), names):
        return UserError(f"{has}: did you mean {argument}={_path(above, meant)!r}? There are: {beside}")
    likely = max(names, key=sizes.__getitem__) if argument == "backbone" else names[-1]
    itself = "; or backbone='' if the module itself is the backbone" if argument == "backbone" else ""
    return UserError(f"{has}: give {argument}={_path(above, likely)!r}, or another one of {beside}{itself}")


def _layers_in(part: nn.Module, head: str) -> list[str]:
    if isinstance(part, Backbone):
        return list(part.layers_with_parameters)
    names = [name for name, _ in part.named_parameters(recurse=False)]
    names += [name for name, child in part.named_children() if any(True for _ in child.parameters())]
    names = [name for name in names if not covers(name, head)]
    child = dict(part.named_children()).get(names[0]) if len(names) == 1 else None
    if child is None or not any(True for inner in child.children() for _ in inner.parameters()):
        return names
    return [_path(names[0], name) for name in _layers_in(child, "")]


def layer_lrs(
    module: nn.Module,
    *,
    backbone: str = "backbone",
    head: str = "head",
    layers: Sequence[str] | None = None,
    scale: float = 0.1,
    decay: float = 0.8,
) -> list[tuple[str, float]]:
    """Learning-rate factors for `build_optimizer`: 1 for the head, `scale` for the top layer, `decay` times that of the layer above for
    each other one.

    Args:
        module: see `layers_of`.
        backbone: see `layers_of`.
        head: see `layers_of`.
        layers: names of the layers below `backbone`, or globs over them; in any order: layers registered later are higher. `None`: see
            `layers_of`.
        scale: ratio of the top layer's rate to the head's.
        decay: ratio of a layer's rate to that of the layer above it.

    Raises:
        UserError: no such part, parameters outside of backbone and head, or a factor that is not a number from 0.
    """
    layers = _checked(module, backbone, head, layers)
    return check_factors([(_renamed(pattern, backbone, head), factor) for pattern, factor in lr_factors(layers, scale, decay)])


def _for_any_module(preset: Callable[..., Schedule]) -> Callable[..., Schedule]:
    def schedule(
        module: nn.Module | None = None,
        *,
        backbone: str = "backbone",
        head: str = "head",
        layers: Sequence[str] | None = None,
        batchnorm: BatchNorm = "auto",
        **options: Any,
    ) -> Schedule:
        accepted = _options_of(preset)
        if wrong := next((name for name in options if name not in accepted), None):
            if wrong in signature(preset).parameters:
                raise _of_add_lora(backbone, wrong, options[wrong])
            raise unknown("argument", wrong, ["backbone", "head", "layers", "batchnorm", *accepted], owner=preset.__name__)
        if module is None:
            return partial(schedule, backbone=backbone, head=head, layers=layers, batchnorm=batchnorm, **options)  # type: ignore[return-value]
        return _in_names_of(preset(_checked(module, backbone, head, layers), **options), backbone, head, batchnorm)

    _describe(schedule, preset)
    return schedule


def _in_names_of(found: Schedule, backbone: str, head: str, batchnorm: BatchNorm) -> Schedule:
    """The schedule with the names of the parts of another module."""
    layers = {name.removeprefix("backbone."): _renamed(name, backbone, head) for name, _ in found.lr_scale if name != "head"}
    names = "|".join(map(re.escape, sorted(layers.keys() - WORDS, key=len, reverse=True))) or "(?!)"
    rename = partial(re.compile(rf"(?<![\w.])(?:{names})(?!\w|\.\w)").sub, lambda match: layers[match[0]])
    stages = []
    for stage in found.stages:
        entries = [with_pattern(entry, _renamed(pattern_of(entry), backbone, head)) for entry in stage.entries]
        first, *others = stage.name.split(" + ", 1)  # only the first `head` is the head: a layer may have this name too
        name = " + ".join([head if first == "head" else rename(first), *map(rename, others)])
        stages.append(replace(stage, train=entries, batchnorm=batchnorm, name=name))
    factors = [(_renamed(pattern, backbone, head), factor) for pattern, factor in found.lr_scale]
    frozen = [_renamed(name, backbone, head) for name in found.frozen]
    return replace(found, stages=stages, lr_scale=factors, frozen=frozen, lora=None)  # the module has its matrices already


def _options_of(preset: Callable[..., Schedule]) -> list[str]:
    """The names of the options that have an effect on any module."""
    return [name for name in list(signature(preset).parameters)[1:] if name not in OF_MATRICES]


def _of_add_lora(backbone: str, name: str, value: object) -> UserError:
    part = f"self.{backbone}" if backbone else "self"
    call = f"ftlit.add_lora({part}, ftlit.Lora({name}={value!r}))"
    return UserError(f"{name}={value!r} is an option of the LoRA matrices, not of the schedule: leave it out, and call {call} in __init__")


def _describe(schedule: Any, preset: Callable[..., Schedule]) -> None:
    """Give a function that takes the options of `preset` its name, its signature and a docstring, in place."""
    first, *rest = signature(schedule).parameters.values()
    own_options = [signature(preset).parameters[name] for name in _options_of(preset)]
    parameters = [first, *(one for one in rest if one.kind is Parameter.KEYWORD_ONLY), *own_options]
    schedule.__signature__ = signature(schedule).replace(parameters=parameters)
    schedule.__name__ = schedule.__qualname__ = preset.__name__
    summary = (preset.__doc__ or "").partition("\n")[0]
    schedule.__doc__ = f"""{summary}

    Args:
        module: see `layers_of`; `None`: return a function of the module, which `StagedFinetuning` calls with its module.
        backbone: see `layers_of`.
        head: see `layers_of`.
        layers: names of the layers below `backbone`, or globs over them; in any order: layers registered later are higher. `None`: see
            `layers_of`.
        batchnorm: of all stages, see `Stage`; `frozen_stats` suits a pretrained network that is no `Backbone`.
        options: those of the option `schedule={preset.__name__}` of the command line.

    Raises:
        UserError: no such part, parameters outside of backbone and head, or an unknown option.
    """


head_only = _for_any_module(presets.head_only)
all_at_once = _for_any_module(presets.all_at_once)
head_then_all = _for_any_module(presets.head_then_all)
last_k = _for_any_module(presets.last_k)
top_down = _for_any_module(presets.top_down)
bias_only = _for_any_module(presets.bias_only)
norm_only = _for_any_module(presets.norm_only)
lora = _for_any_module(presets.lora)


def _checked(module: nn.Module, backbone: str, head: str, layers: Sequence[str] | None) -> list[str]:
    """The layers, lowest first. Raises `UserError` where they and the head do not have all parameters of the module."""
    found = layers_of(module, backbone, head)
    names = [name for name, _ in module.named_parameters()]
    if not any(covers(head, name) for name in names):
        raise UserError(f"the head {head!r} of {type(module).__name__} has no parameters: name another module as head")
    given = found if layers is None else _sorted(module, backbone, head, layers, found)
    wanted = [head, *(_path(backbone, layer) for layer in given)]
    if others := [name for name in names if not any(covers(path, name) for path in wanted)]:
        if layers is not None and all(not backbone or covers(backbone, name) for name in others):
            left = [name.removeprefix(f"{backbone}.") for name in not_covered(wanted, names)]
            raise UserError(
                f"layers=[{shorten(map(repr, given), most=4)}] leaves out {count(len(others), 'parameter')} of {_named(backbone)}: "
                f"add {shorten(left, most=4)}, or give globs such as 'features.*' that cover all"
            )
        raise UserError(
            f"{type(module).__name__} has {count(len(others), 'parameter')} outside of backbone={backbone!r} and head={head!r} "
            f"({shorten(others, most=3)}): name a backbone and a head that contain all parameters, or build a Schedule from stages"
        )
    return given


def _named(backbone: str) -> str:
    return f"the backbone {backbone!r}" if backbone else "the module"


def _sorted(module: nn.Module, backbone: str, head: str, layers: Sequence[str], found: Sequence[str]) -> list[str]:
    """The given layers in the order in which the module registers their parameters. Raises `UserError` for one without parameters."""
    if isinstance(layers, str) or not all(isinstance(layer, str) for layer in layers):
        together = "a glob such as 'features.[0-3]' for modules that are unfrozen together"
        give = f"layers=[{layers!r}]" if isinstance(layers, str) else f"one name for each layer, or {together}"
        raise UserError(f"layers={layers!r} is not a list of names: give {give}")
    names = [name for name, _ in module.named_parameters() if not covers(head, name)]
    first: dict[str, int] = {}
    for layer in layers:
        covered = [place for place, name in enumerate(names) if covers(_path(backbone, layer), name)]
        if not covered:
            below = layer.removeprefix(f"{backbone}.") if backbone else layer
            if below != layer and any(covers(layer, name) for name in names):
                raise UserError(f"the names in layers are relative to the backbone {backbone!r}: give {below!r} instead of {layer!r}")
            raise unknown("parameters in layer", layer, found, owner=_named(backbone))
        first[layer] = covered[0]
    return sorted(first, key=first.__getitem__)


def _renamed(pattern: str, backbone: str, head: str) -> str:
    """A pattern of the presets, for a module with other names."""
    if pattern == "head":
        return head
    if not pattern.startswith("backbone"):
        return pattern
    return _path(backbone, pattern.removeprefix("backbone").removeprefix(".")) or "*"  # the module itself: the head trains in all stages


def _path(parent: str, name: str) -> str:
    return ".".join(filter(None, (parent, name)))
