"""The layers of a backbone within any module: of a `Backbone`, of a network of torchvision or timm, its children, or those that the user
names.
"""

from collections.abc import Sequence
from itertools import chain

from torch import nn

from ftlit.errors import UserError, closest, shorten, unknown
from ftlit.formatting import count
from ftlit.models.backbone import Backbone
from ftlit.patterns import covers, not_covered, outermost, prefixes
from ftlit.zoo import torchvision_layers

Layer = str | Sequence[str]  # the name of a module or a parameter, or a glob; or several of them, which form one layer
Patterns = dict[str, list[str]]  # name of a layer -> names, or globs, of what is in it, relative to the backbone; lowest layer first


def found_layers(module: nn.Module, backbone: str, head: str) -> Patterns:
    """The layers of a backbone in a module, see `ftlit.schedules.layers_of`; those of a torchvision network have the names of
    `backbone_from`, those of a timm network the names of its modules.

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
    part, below = parts[backbone], head if not backbone else head.removeprefix(f"{backbone}.") if covers(backbone, head) else ""
    return _of_torchvision(part, below) or _of_timm(part, below) or {name: [name] for name in _layers_in(part, below)}


def _of_torchvision(network: nn.Module, head: str) -> Patterns:
    """The layers of a torchvision network; what is in none of them and not in the head, such as auxiliary heads, follows as layers of its
    own. Empty for any other network, and for one whose parts the user has replaced by others.
    """
    if type(network) not in torchvision_layers.FAMILIES:
        return {}
    try:
        layers = torchvision_layers.take_apart(network).layers
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return {}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    own = {layer: [names[id(parameter)] for parameter in part.parameters()] for layer, part in layers.items()}
    own = {layer: [name for name in inner if not covers(head, name)] for layer, inner in own.items()}
    held = {layer: outermost(inner, names.values()) for layer, inner in own.items() if inner}
    others = not_covered([*chain(*held.values()), head], names.values())
    return held | {name: [name] for name in others}


def _of_timm(network: nn.Module, head: str) -> Patterns:
    """The layers of a network of timm, as it groups them for layer-wise rates: stages, or the blocks of a transformer. What timm has no
    group for is the top layer, or a part of the one below it where all its parameters are vectors, as those of a norm. Empty for any other
    network, and for one whose parts the user has replaced by others.
    """
    matcher = getattr(network, "group_matcher", None)
    if matcher is None or not type(network).__module__.startswith("timm."):
        return {}
    from timm.models import group_parameters

    names = [name for name, _ in network.named_parameters()]
    try:
        groups = group_parameters(network, matcher(coarse=True))  # number -> names; the last one has all that timm has no group for
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return {}
    layers = [[name for name in groups[number] if not covers(head, name)] for number in sorted(groups)]
    layers = [layer for layer in layers if layer]
    if layers[1:] and all(network.get_parameter(name).ndim == 1 for name in layers[-1]):
        layers[-2:] = [layers[-2] + layers[-1]]
    found = [outermost(layer, names) for layer in layers]
    return {text_of(layer): layer for layer in found}


def _no_part(module: nn.Module, argument: str, path: str) -> UserError:
    """The error for a path that names no module. Where no child is alike, a backbone is the largest one, and a head the last one."""
    parts = dict(module.named_modules())
    above = next(prefix for prefix in (*reversed(prefixes(path)), "") if prefix in parts)
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in parts[above].named_children()}
    names = [name for name, size in sizes.items() if size]
    has, beside = f"{type(module).__name__} has no module {path!r}", shorten(path_in(above, name) for name in names)
    if not names:
        if not above:
            return UserError(f"{has}, nor any other with parameters: give a Schedule of your own stages")
        return UserError(f"{has}: give {above!r}, which has no inner modules with parameters, or build a Schedule from stages")
    if meant := closest(path.removeprefix(f"{above}."), names):
        return UserError(f"{has}: did you mean {argument}={path_in(above, meant)!r}? There are: {beside}")
    likely = max(names, key=sizes.__getitem__) if argument == "backbone" else names[-1]
    itself = "; or backbone='' if the module itself is the backbone" if argument == "backbone" else ""
    return UserError(f"{has}: give {argument}={path_in(above, likely)!r}, or another one of {beside}{itself}")


def _layers_in(part: nn.Module, head: str) -> list[str]:
    if isinstance(part, Backbone):
        return list(part.layers_with_parameters)
    names = [name for name, _ in part.named_parameters(recurse=False)]
    names += [name for name, child in part.named_children() if any(True for _ in child.parameters())]
    names = [name for name in names if not covers(name, head)]
    child = dict(part.named_children()).get(names[0]) if len(names) == 1 else None
    if child is None or not any(True for inner in child.children() for _ in inner.parameters()):
        return names
    return [path_in(names[0], name) for name in _layers_in(child, "")]


def own_layers(module: nn.Module, backbone: str, head: str, layers: Sequence[Layer] | None = None) -> Patterns:
    """The layers of a backbone in a module, lowest first, which hold all parameters of the module with the head.

    Args:
        module: holds backbone and head.
        backbone: path of the backbone; an empty text: the module itself.
        head: path of the head.
        layers: those of the user, in any order: layers registered later are higher. `None`: those of `found_layers`.

    Raises:
        UserError: see `found_layers`; layers that are no names, or without parameters; parameters outside of layers and head.
    """
    found = found_layers(module, backbone, head)
    names = [name for name, _ in module.named_parameters()]
    if not any(covers(head, name) for name in names):
        raise UserError(f"the head {head!r} of {type(module).__name__} has no parameters: name another module as head")
    given = found if layers is None else _sorted(module, backbone, head, layers, found)
    wanted = [head, *(path_in(backbone, pattern) for pattern in chain(*given.values()))]
    if others := [name for name in names if not any(covers(path, name) for path in wanted)]:
        if layers is not None and all(not backbone or covers(backbone, name) for name in others):
            left = [name.removeprefix(f"{backbone}.") for name in not_covered(wanted, names)]
            raise UserError(
                f"layers=[{shorten(map(repr, layers), most=4)}] leaves out {count(len(others), 'parameter')} of {_named(backbone)}: "
                f"add {shorten(left, most=4)}, or give globs such as 'features.*' that cover all"
            )
        raise UserError(
            f"{type(module).__name__} has {count(len(others), 'parameter')} outside of backbone={backbone!r} and head={head!r} "
            f"({shorten(others, most=3)}): name a backbone and a head that contain all parameters, or build a Schedule from stages"
        )
    return given


def _named(backbone: str) -> str:
    return f"the backbone {backbone!r}" if backbone else "the module"


def _sorted(module: nn.Module, backbone: str, head: str, layers: Sequence[Layer], found: Patterns) -> Patterns:
    """The given layers in the order in which the module registers their parameters. Raises `UserError` for one without parameters."""
    given = [layers] if isinstance(layers, str) else [[layer] if isinstance(layer, str) else layer for layer in layers]
    if isinstance(layers, str) or not all(map(_are_names, given)):
        together = 'a list of names for modules that are unfrozen together: layers=[["conv1", "bn1"], "layer1"]'
        give = f"layers=[{layers!r}]" if isinstance(layers, str) else f"one name for each layer, or {together}"
        raise UserError(f"layers={layers!r} is not a list of names: give {give}")
    names = [name for name, _ in module.named_parameters() if not covers(head, name)]
    first: dict[str, int] = {}
    for pattern in chain(*given):
        covered = [place for place, name in enumerate(names) if covers(path_in(backbone, pattern), name)]
        if not covered:
            below = pattern.removeprefix(f"{backbone}.") if backbone else pattern
            if below != pattern and any(covers(pattern, name) for name in names):
                raise UserError(f"the names in layers are relative to the backbone {backbone!r}: give {below!r} instead of {pattern!r}")
            raise unknown("parameters in layer", pattern, [*chain(*found.values())], owner=_named(backbone))
        first[pattern] = covered[0]
    lowest_first = sorted(given, key=lambda layer: min(map(first.__getitem__, layer)))
    return {text_of(layer): list(layer) for layer in lowest_first}


def _are_names(layer: object) -> bool:
    return isinstance(layer, list | tuple) and bool(layer) and all(isinstance(name, str) for name in layer)


def text_of(names: Sequence[str]) -> str:
    """A layer in texts: its name, or the list of its names.

    >>> text_of(["layer1"]), text_of(["conv1", "bn1"])
    ('layer1', '[conv1, bn1]')
    """
    return f"[{shorten(names, most=4)}]" if names[1:] else names[0]


def path_in(parent: str, name: str) -> str:
    """The path of what has this name in `parent`.

    >>> path_in("encoder", "layer1"), path_in("", "layer1")
    ('encoder.layer1', 'layer1')
    """
    return ".".join(filter(None, (parent, name)))
