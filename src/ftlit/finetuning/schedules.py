"""The ready-made schedules for any module: `ftlit.schedules.top_down(module, backbone="encoder", head="fc", every=2)`."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from inspect import Parameter, signature
from typing import Any

from torch import nn

from ftlit.errors import UserError, unknown
from ftlit.finetuning import presets
from ftlit.finetuning.freeze import BatchNorm
from ftlit.finetuning.param_groups import check_factors
from ftlit.finetuning.presets import lr_factors
from ftlit.finetuning.schedule import Schedule
from ftlit.finetuning.train_entries import pattern_of, with_pattern
from ftlit.models.lora import Lora
from ftlit.zoo.layers_of_module import Layer, found_layers, own_layers, path_in, text_of

WORDS = {"all", "but", "and", "above", "biases", "norms", "LoRA"}  # of stage names; a layer of such a name keeps it there as it is
OF_MATRICES = {
    field.name for field in fields(Lora)
}  # options of the command line, where the run adds the LoRA matrices; here the user does


def layers_of(module: nn.Module, backbone: str = "backbone", head: str = "head") -> list[Layer]:
    """The layers of a backbone in a module, lowest first, without the head and without those that have no parameters.

    Those of a `Backbone`; of a torchvision network the layers of `backbone_from`, as names of its modules; of a timm network the groups of
    its `group_matcher` (stages, or the blocks of a transformer); of another module its parameters and children as they were registered,
    where a single child with children is taken apart in its place.

    Args:
        module: holds backbone and head, each anywhere below it.
        backbone: path of the backbone; an empty text: the module itself.
        head: path of the head.

    Raises:
        UserError: not a module, or it has no such part.
    """
    return [names if names[1:] else names[0] for names in found_layers(module, backbone, head).values()]


def layer_lrs(
    module: nn.Module,
    *,
    backbone: str = "backbone",
    head: str = "head",
    layers: Sequence[Layer] | None = None,
    scale: float = 0.1,
    decay: float = 0.8,
) -> list[tuple[str, float]]:
    """Learning-rate factors for `build_optimizer`: 1 for the head, `scale` for the top layer, `decay` times that of the layer above for
    each other one.

    Args:
        module: see `layers_of`.
        backbone: see `layers_of`.
        head: see `layers_of`.
        layers: names of the layers below `backbone`, or globs over them; a list of names is one layer. In any order: layers registered
            later are higher. `None`: see `layers_of`.
        scale: ratio of the top layer's rate to the head's.
        decay: ratio of a layer's rate to that of the layer above it.

    Raises:
        UserError: no such part, parameters outside of backbone and head, or a factor that is not a number from 0.
    """
    found = own_layers(module, backbone, head, layers)
    names = _names(found, backbone, head)
    return check_factors(
        [(name, factor) for pattern, factor in lr_factors([*found], scale, decay) for name in names.get(pattern, [pattern])]
    )


def _for_any_module(preset: Callable[..., Schedule]) -> Callable[..., Schedule]:
    def schedule(
        module: nn.Module | None = None,
        *,
        backbone: str = "backbone",
        head: str = "head",
        layers: Sequence[Layer] | None = None,
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
        found = own_layers(module, backbone, head, layers)
        return _in_names_of(preset([*found], **options), _names(found, backbone, head), batchnorm)

    _describe(schedule, preset)
    return schedule


def _names(layers: Mapping[str, Sequence[str]], backbone: str, head: str) -> dict[str, list[str]]:
    """Pattern of the presets -> the patterns that stand for it in a module with other names. One that is no key stands for itself."""
    names = {f"backbone.{layer}": [path_in(backbone, pattern) for pattern in patterns] for layer, patterns in layers.items()}
    return {"head": [head], "backbone": [backbone or "*"], **names}  # the module itself: the head trains in all stages


def _in_names_of(found: Schedule, names: Mapping[str, Sequence[str]], batchnorm: BatchNorm) -> Schedule:
    """The schedule with the names of the parts of another module, see `_names`."""

    def renamed(patterns: Sequence[str]) -> list[str]:
        return [name for pattern in patterns for name in names.get(pattern, [pattern])]

    layers = {name.removeprefix("backbone."): text_of(names[name]) for name, _ in found.lr_scale if name != "head"}
    layer = "|".join(map(re.escape, sorted(layers.keys() - WORDS, key=len, reverse=True))) or "(?!)"
    rename = partial(re.compile(rf"(?:(?<![\w.])|(?<=\.\.))(?:{layer})(?!\w|\.\w)").sub, lambda match: layers[match[0]])
    stages = []
    for stage in found.stages:
        entries = [with_pattern(entry, name) for entry in stage.entries for name in renamed([pattern_of(entry)])]
        first, *others = stage.name.split(" + ", 1)  # only the first `head` is the head: a layer may have this name too
        name = " + ".join([text_of(names["head"]) if first == "head" else rename(first), *map(rename, others)])
        stages.append(replace(stage, train=entries, batchnorm=batchnorm, name=name))
    factors = [(name, factor) for pattern, factor in found.lr_scale for name in renamed([pattern])]
    # the module has its LoRA matrices already
    return replace(found, stages=stages, lr_scale=factors, frozen=renamed(found.frozen), lora=None)


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
        layers: names of the layers below `backbone`, or globs over them; a list of names is one layer. In any order: layers registered
            later are higher. `None`: see `layers_of`.
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
