"""How any timm network comes apart: by what a forward pass of it runs, checked on the spot.

    head twin | unit, unit, unit, ... | tail twin | neck

The units are the longest chain of modules inside `forward_features`. Lines of code in front of them or behind them stay what they are, in
a twin of the network that lacks the units. The neck is `forward_head` up to the classifier, where that is more than a pooling of ours.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torchvision.ops import Permute

from ftlit.errors import UserError, one_line
from ftlit.models.pooling import TokenPool, pool
from ftlit.zoo.blocks import NetworkParts, named
from ftlit.zoo.timm_partial import AverageLogits, CloneInput, PartialForward, without
from ftlit.zoo.timm_trace import ModuleCall, Trace, call_sequences, inner, preserved_state, trace

Modules = dict[str, nn.Module]

WHOLE = "taken as a whole: its layers cannot be told apart exactly"  # and why
SMALL = 96  # pixels; enough for five halvings
TOLERANCE = 1e-5  # of the largest number: an average may be summed in another order
BESIDE = (nn.BatchNorm1d, nn.Dropout, nn.Identity, nn.Linear)
TAILS = (("forward_features",), ("forward_cls", "norm"))  # the lines behind the units, class attention for one


def take_apart(model: Any, size: int) -> tuple[NetworkParts, str]:
    """The named layers and the classifier of a timm network, and a note for its origin if it stays whole.

    invariant 1 is checked by running two random images. The network, its mode and torch's random state stay as they are; modules are shared,
    not copied. Where the logits are of more than one vector, or there are none, the identity stands for
    the classifier.

    Args:
        model: a network of timm.
        size: side of the images, in pixels.

    Raises:
        UserError: the network gives no vector for each image, or cannot take images of this size.
    """
    with preserved_state(model):
        seen = _trace(model, size)
        reasons: list[str] = []
        ways: list[Callable[[Trace], Modules]] = [*(partial(_pieces, tail=tail) for tail in TAILS), _whole]
        for way in ways:
            parts = _exact(way, seen)
            if not isinstance(parts, str):
                break
            reasons.append(parts)
        else:
            raise UserError(
                f"{type(model).__name__} is no image classifier that can be cut: it gives no single vector for an image ({reasons[-1]})"
            )
    for layer in parts.layers.values():
        layer.train(model.training)
    return parts, f"{WHOLE} ({reasons[0]})" if "whole" in parts.layers else ""


def _trace(model: Any, size: int) -> Trace:
    """Of small images, where the network takes any."""
    fixed = model.pretrained_cfg.get("fixed_input_size") or size <= SMALL
    for side in [size] if fixed else [SMALL, size]:
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        try:
            return trace(model, images)
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            reason = error
    raise UserError(f"{type(model).__name__} cannot take images of {size} px: {one_line(reason)}") from reason


def _exact(way: Callable[[Trace], Modules], seen: Trace) -> NetworkParts | str:
    """The parts that `way` makes, if they do what the network did; else why they do not."""
    try:
        layers = way(seen)
        features = seen.images
        for layer in layers.values():
            given, written = features, features._version
            features = layer(given)
            if given._version != written:
                return "a layer writes over what it is given"
        parts = _ended(layers, features, seen)
    except Exception as error:  # a twin that lacks what its lines need fails in any way
        return one_line(error)
    places = [id(parameter) for layer in parts.layers.values() for parameter in layer.parameters()]
    return parts if len(places) == len(set(places)) else "layers share parameters"


def _ended(layers: Modules, features: Tensor, seen: Trace) -> NetworkParts:
    """With the pooling of ours that the network has too, or with a neck. Raises `ValueError` where neither does what the network did."""
    vector = seen.model.forward_head(seen.features, pre_logits=True)
    if vector.ndim != 2:
        raise ValueError("forward_head gives no vector")
    classifier = next(one for one in _severed(seen.model) if isinstance(one, nn.Identity) or _gives(one, vector, seen.logits))
    for token_pool in get_args(TokenPool):
        if _same(pool(features, token_pool), vector):
            return NetworkParts(layers, classifier, token_pool)
    beside = {name for name, _ in seen.model.named_children()} - {call.name.split(".")[0] for call in seen.later}
    direct = [name for name, _ in seen.model.named_parameters(recurse=False)]
    neck = PartialForward(without(seen.model, [*beside, *_classifiers(seen.model)], direct), "forward_head")
    layers = {**layers, "neck": _ordered([neck], seen.features, vector)}
    if not _same(layers["neck"](features), vector):
        raise ValueError("its layers do not give what the network gives")
    return NetworkParts(layers, classifier)


def _gives(classifier: nn.Module, vector: Tensor, logits: Tensor) -> bool:
    try:
        return _same(classifier(vector), logits)
    except RuntimeError:  # classifiers of parts of the vector
        return False


def _same(features: Tensor, wanted: Tensor) -> bool:
    return features.shape == wanted.shape and bool((features - wanted).abs().max() <= TOLERANCE * wanted.abs().max())


def _classifiers(model: Any) -> list[str]:
    """Where the classifiers are; more than one in networks that were distilled."""
    found = model.get_classifier()
    held = list(found) if isinstance(found, tuple | list | nn.ModuleList) else [found]
    paths = [name for name, module in model.named_modules() if any(module is one for one in held) and not isinstance(module, nn.Identity)]
    return [_last(model, path) for path in paths]


def _last(model: nn.Module, path: str) -> str:
    """The linear layer of a head that is told as a whole; a batch norm right before it goes with it."""
    if isinstance(getattr(model.get_submodule(path), "fc", None), nn.Module):
        return f"{path}.fc"
    around = model.get_submodule(path.rpartition(".")[0])
    with_norm = isinstance(around, nn.Sequential) and all(isinstance(one, BESIDE) for one in around)
    return path.rpartition(".")[0] if with_norm else path


def _severed(model: Any) -> list[nn.Module]:
    """What may give the logits of a vector, likeliest first; the identity stands for none."""
    held = [model.get_submodule(path) for path in _classifiers(model)]
    if len(held) != 1:
        return [*[AverageLogits(held)] * bool(held), nn.Identity()]
    if isinstance(held[0], nn.Conv2d):
        held = [named(unflatten=nn.Unflatten(1, (-1, 1, 1)), conv=held[0], flatten=nn.Flatten(1))]
    return [*held, nn.Identity()]


def _whole(seen: Trace) -> Modules:
    return {"whole": PartialForward(without(seen.model, _classifiers(seen.model)), "forward_features", "forward_head")}


def _pieces(seen: Trace, tail: Sequence[str]) -> Modules:
    """Twins and units; see the head of this file. Raises `ValueError` where the units are less than half of the network."""
    run = max(call_sequences(seen.calls), key=lambda calls: sum(_size(call.module) for call in calls))
    glue, rest = not run[0].takes(seen.images, 0), run[-1].result is not seen.features
    if glue:  # what has no weights, in front of the units, stays with the lines
        run = run[next(place for place, call in enumerate(run) if _weighted(call)) :]
    groups = _groups(seen.model)
    units = [unit for call in run for unit in _expanded(call, seen, groups)]
    below = {call.name.split(".")[0] for call in seen.calls}
    if sum(_size(unit.module) for unit in units) < sum(_size(seen.model.get_submodule(name)) for name in below) / 2:
        raise ValueError("less than half of it is a chain of modules")
    layers = _layers(_gathered(units, groups))
    begin, end = seen.calls.index(run[0]), seen.calls.index(run[-1])
    direct = [name for name, _ in seen.model.named_parameters(recurse=False)]
    if glue:
        first = seen.calls[:begin]
        spare = [name for name in direct if rest and _does_without(_twin(seen, first, [name]), seen.images, units[0].given)]
        layers = {
            "embeddings": _ordered([PartialForward(_twin(seen, first, spare), "forward_features")], seen.images, units[0].given),
            **layers,
        }
        direct = [name for name in direct if name not in spare]
    if rest:
        last = [call for call in seen.calls[end + 1 :] if not call.name.startswith(f"{run[-1].name}.")]
        twin = _twin(seen, last, direct if glue else [])
        layers["top"] = _ordered([PartialForward(twin, *tail)], units[-1].result, seen.features)
    return layers


def _twin(seen: Trace, kept: Sequence[ModuleCall], spare: Sequence[str]) -> nn.Module:
    """The network with nothing of what it called but `kept`, and without its `spare` parameters."""
    names = {call.name for call in kept}
    around = {name[:i] for name in names for i, letter in enumerate(name) if letter == "."}
    dropped = {call.name for call in [*seen.calls, *seen.later]} - names - around
    return without(seen.model, {*dropped, *_classifiers(seen.model)} - names, spare)


def _does_without(twin: nn.Module, images: Tensor, wanted: Tensor | None) -> bool:
    try:
        return wanted is not None and torch.equal(PartialForward(twin, "forward_features")(images), wanted)
    except AttributeError:
        return False


def _groups(model: Any) -> dict[str, int]:
    """Parameter -> the group that the network's own `group_matcher` puts it in; none where it has no matcher."""
    from timm.models import group_parameters

    try:
        return dict(group_parameters(model, model.group_matcher(coarse=True), reverse=True))
    except (AttributeError, TypeError):
        return {}


def _expanded(call: ModuleCall, seen: Trace, groups: Mapping[str, int]) -> list[ModuleCall]:
    """What a container of several groups calls, in place of it."""
    held = {groups.get(f"{call.name}.{name}", name.split(".")[0]) for name, _ in call.module.named_parameters()}
    children = inner(call, seen.calls) if len(held) > 1 else []
    return [unit for child in children for unit in _expanded(child, seen, groups)] or [call]


def _gathered(units: Sequence[ModuleCall], groups: Mapping[str, int]) -> list[list[ModuleCall]]:
    """Units in layers: what has no weights (a norm, an activation) follows what has; the units of the lowest group are one layer."""
    lowest = min(groups.values(), default=-1)
    layers: list[list[ModuleCall]] = []
    for unit in units:
        held = {groups.get(f"{unit.name}.{name}") for name, _ in unit.module.named_parameters()}
        begins = _weighted(unit) and any(_weighted(call) for call in (layers[-1] if layers else ()))
        if not layers or (begins and not (len(layers) == 1 and held == {lowest})):
            layers.append([])
        layers[-1].append(unit)
    return layers


def _layers(gathered: Sequence[Sequence[ModuleCall]]) -> Modules:
    """A layer is called as its first module with weights; the first one, where it holds several, `stem`."""
    layers: Modules = {}
    for units in gathered:
        own = [unit for unit in units if not isinstance(unit.module, nn.Identity)] or units[:1]
        name = next((unit.name for unit in own if _weighted(unit)), own[0].name)
        name = "stem" if not layers and len(own) > 1 else name
        layers[name] = _ordered([unit.module for unit in own], units[0].given, units[-1].result, copied=own[0].writes)
    return layers


def _ordered(modules: Sequence[nn.Module], given: Tensor | None, result: Tensor | None, *, copied: bool = False) -> nn.Module:
    """Modules one after the other, with maps N, C, H, W in front of them and behind them, whatever they compute in."""
    run = (
        [CloneInput()] * copied
        + [Permute([0, 2, 3, 1])] * _channels_last(given)
        + [*modules]
        + [Permute([0, 3, 1, 2])] * _channels_last(result)
    )
    return run[0] if len(run) == 1 else nn.Sequential(*run)


def _channels_last(features: Tensor | None) -> bool:
    """Images are square, so that the two equal sizes are height and width."""
    return features is not None and features.ndim == 4 and features.shape[1] == features.shape[2] != features.shape[3]


def _weighted(call: ModuleCall) -> bool:
    return any(parameter.ndim > 1 for parameter in call.module.parameters())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
