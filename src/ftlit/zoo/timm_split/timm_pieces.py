"""Layers of a timm network from the longest sequence of module calls inside its `forward_features`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ftlit.zoo.timm_split.grid_constants import SquareImages, with_grid_constants
from ftlit.zoo.timm_split.timm_partial import PartialForward, channels_first, classifier_paths, without
from ftlit.zoo.timm_split.timm_trace import ModuleCall, Trace, call_sequences, child_calls


def sequence_layers(traced: Trace, tail: Sequence[str]) -> dict[str, nn.Module]:
    """Build the layers: the code before the sequence (`embeddings`), the modules of the sequence, the code after it (`top`).

    Args:
        traced: a forward pass.
        tail: methods that run the code after the sequence; see `PartialForward`.

    Raises:
        ValueError: the sequence is less than half of the network.
    """
    sequence, code_before = _sequence(traced)
    code_after = sequence[-1].result is not traced.features
    groups = _parameter_groups(traced.model, by_block=traced.by_block)
    units = [unit for call in sequence for unit in _expand(call, traced, groups)]
    called = {call.name.split(".")[0] for call in traced.calls}
    if sum(_size(unit.module) for unit in units) < sum(_size(traced.model.get_submodule(name)) for name in called) / 2:
        raise ValueError("less than half of the network is a sequence of modules")
    direct = {name for name, _ in traced.model.named_parameters(recurse=False)}
    spare: set[str] = set()
    layers: dict[str, nn.Module] = {}
    bound: Mapping[str, nn.Module] = {}
    if code_before:
        first = traced.calls[: traced.calls.index(sequence[0])]
        spare = {name for name in direct if code_after and _is_unused_before(name, first, units[0].argument, traced)}
        before = PartialForward(_partial_copy(traced, first, spare), "forward_features")
        bound = with_grid_constants([call for call in units if call.others], before, traced.images)
        layers["embeddings"] = channels_first([SquareImages(), before] if bound else [before], traced.images, units[0].argument)
    layers |= _named_layers(_group_units(units, groups), bound)
    if code_after:
        rest = traced.calls[traced.calls.index(sequence[-1]) + 1 :]
        last = [call for call in rest if not call.name.startswith(f"{sequence[-1].name}.")]
        after = PartialForward(_partial_copy(traced, last, direct - spare if code_before else ()), *tail)
        layers["top"] = channels_first([after], units[-1].result, traced.features)
    return layers


def _sequence(traced: Trace) -> tuple[list[ModuleCall], bool]:
    """The longest sequence of calls, and whether there is code before it: which takes the images, or computes other arguments of blocks.

    What has no weights at the beginning of the sequence, or no other arguments, then stays with that code.
    """
    sequence = max(call_sequences(traced.calls), key=lambda calls: sum(_size(call.module) for call in calls))
    with_others = next((i for i, call in enumerate(sequence) if call.others), None)
    if with_others is not None:
        return sequence[with_others:], True
    if sequence[0].takes(traced.images, 0):
        return sequence, False
    return sequence[next(i for i, call in enumerate(sequence) if _has_weights(call)) :], True


def _partial_copy(traced: Trace, kept: Sequence[ModuleCall], spare: Iterable[str]) -> nn.Module:
    """Copy the network with only the modules of the calls `kept`, and without its parameters `spare`."""
    names = {call.name for call in kept}
    parents = {name[:i] for name in names for i, letter in enumerate(name) if letter == "."}
    dropped = {call.name for call in [*traced.calls, *traced.head_calls]} - names - parents
    return without(traced.model, {*dropped, *classifier_paths(traced.model)} - names, spare)


def _is_unused_before(parameter: str, calls: Sequence[ModuleCall], wanted: Tensor | None, traced: Trace) -> bool:
    """Whether the code before the sequence, which makes `calls` and gives `wanted`, does without a direct parameter of the network."""
    try:
        before = PartialForward(_partial_copy(traced, calls, [parameter]), "forward_features")
        return wanted is not None and torch.equal(before(traced.images), wanted)
    except AttributeError:
        return False


def _parameter_groups(model: Any, *, by_block: bool) -> dict[str, int]:
    """Map each parameter to its group in the network's own `group_matcher`, a stage or a block; empty if it has none."""
    from timm.models import group_parameters

    try:
        return dict(group_parameters(model, model.group_matcher(coarse=not by_block), reverse=True))
    except (AttributeError, TypeError, AssertionError):
        return {}


def _expand(call: ModuleCall, traced: Trace, groups: Mapping[str, int]) -> list[ModuleCall]:
    """Replace the call of a container or a stage that spans several groups by the calls of its children."""
    spanned = {groups.get(f"{call.name}.{name}", name.split(".")[0]) for name, _ in call.module.named_parameters()}
    by_call = traced.by_block and not groups  # all that is known is what was called
    children = child_calls(call, traced) if len(spanned) > 1 or by_call else []
    return [unit for child in children for unit in _expand(child, traced, groups)] or [call]


def _group_units(units: Sequence[ModuleCall], groups: Mapping[str, int]) -> list[list[ModuleCall]]:
    """Group calls into layers: a module without weights (an activation) joins the layer before it; the lowest group is one layer."""
    lowest = min(groups.values(), default=-1)
    layers: list[list[ModuleCall]] = []
    for unit in units:
        own_groups = {groups.get(f"{unit.name}.{name}") for name, _ in unit.module.named_parameters()}
        begins = _has_weights(unit) and any(_has_weights(call) for call in (layers[-1] if layers else ()))
        if not layers or (begins and not (len(layers) == 1 and own_groups == {lowest})):
            layers.append([])
        layers[-1].append(unit)
    return layers


def _named_layers(grouped: Sequence[Sequence[ModuleCall]], bound: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Name each layer after its first module with weights; the first layer is `stem` if it has several modules.

    Modules in `bound`, by the names of their calls, take the place of the called ones.
    """
    layers: dict[str, nn.Module] = {}
    for units in grouped:
        own = [unit for unit in units if not isinstance(unit.module, nn.Identity)] or units[:1]
        name = next((unit.name for unit in own if _has_weights(unit)), own[0].name)
        name = "stem" if not layers and len(own) > 1 else name
        modules = [bound.get(unit.name, unit.module) for unit in own]
        layers[name] = channels_first(modules, units[0].argument, units[-1].result, cloned=own[0].modifies_argument)
    return layers


def _has_weights(call: ModuleCall) -> bool:
    return any(parameter.ndim > 1 for parameter in call.module.parameters())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
