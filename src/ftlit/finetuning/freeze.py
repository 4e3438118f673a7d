"""Frozen means frozen: no gradient, and evaluation mode, so that statistics and dropout stand still too (invariant 3).

A batch norm in a part that trains has one of three policies:

- `live`: normalises with its batch, updates its statistics, weight and bias train.
- `frozen_stats`: normalises with the statistics it came with, weight and bias train.
- `frozen`: nothing of it changes.

`auto` is `frozen_stats` in the layers of a `Backbone` that come pretrained, `live` everywhere else: the statistics of many images are worth
more than those of a few steps (benchmarks/batchnorm.py).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, get_args

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ftlit.errors import unknown
from ftlit.models.backbone import Backbone, Layers
from ftlit.patterns import covers, idle, select

Policy = Literal["live", "frozen", "frozen_stats"]
Choice = Policy | Literal["auto"]
BatchNorm = Choice | Mapping[str, Choice]
POLICIES: tuple[Choice, ...] = ("auto", *get_args(Policy))


def check_batchnorm(batchnorm: BatchNorm) -> None:
    """Raise `UserError` where `batchnorm` names a policy that there is not."""
    for policy in [batchnorm] if isinstance(batchnorm, str) else batchnorm.values():
        if policy not in POLICIES:
            raise unknown("batchnorm policy", policy, POLICIES)


def set_trainable(module: nn.Module, patterns: Sequence[str], batchnorm: BatchNorm = "auto") -> bool:
    """Train exactly the parameters that `patterns` cover; freeze all others. `module` is changed in place.

    A frozen parameter has `requires_grad=False` and no gradient (an optimizer would go on moving it by momentum and decay
    otherwise). Modes follow, see `modes_of`. A parameter with two names trains if either is covered.

    Args:
        module: any module.
        patterns: see `ftlit.patterns`.
        batchnorm: a policy for every batch norm, or pattern -> policy (the first that covers it wins, `auto` where none does).

    Returns:
        Whether any parameter changed sides.

    Raises:
        UserError: a pattern that covers nothing, or a policy that there is not.
    """
    named = list(module.named_parameters(remove_duplicate=False))
    chosen = trained(module, patterns, batchnorm)
    training = {id(parameter) for name, parameter in named if name in chosen}
    changed = False
    for _, parameter in named:
        changed |= parameter.requires_grad != (id(parameter) in training)
        parameter.requires_grad_(id(parameter) in training)
        if not parameter.requires_grad:
            parameter.grad = None
    set_modes(modes_of(module, batchnorm))
    return changed


def trained(module: nn.Module, patterns: Sequence[str], batchnorm: BatchNorm = "auto") -> set[str]:
    """Names of the parameters that `set_trainable` would train. Nothing is changed; raises as it does."""
    named = list(module.named_parameters(remove_duplicate=False))
    chosen = set(select(patterns, [name for name, _ in named]))
    policies = batchnorm_policies(module, batchnorm)
    kept = {id(p) for norm, policy in policies.items() if policy == "frozen" for p in norm.parameters(recurse=False)}
    training = {id(p) for name, p in named if name in chosen and (p.is_floating_point() or p.is_complex())} - kept
    return {name for name, parameter in named if id(parameter) in training}


def batchnorm_policies(module: nn.Module, batchnorm: BatchNorm) -> dict[nn.Module, Policy]:
    """The policy of every batch norm of `module`, in order; `auto` is decided.

    Raises:
        UserError: a pattern that covers no module, or a policy that there is not.
    """
    check_batchnorm(batchnorm)
    rules: Mapping[str, Choice] = {"*": batchnorm} if isinstance(batchnorm, str) else batchnorm
    names = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
    for pattern in rules:
        if pattern != "*" and not any(covers(pattern, name) for name in names):
            raise idle(pattern, names)
    pretrained = _pretrained(module)
    policies: dict[nn.Module, Policy] = {}
    for name, norm in module.named_modules():
        if isinstance(norm, _BatchNorm):
            choice: Choice = next((choice for pattern, choice in rules.items() if pattern == "*" or covers(pattern, name)), "auto")
            unsaid: Policy = "frozen_stats" if norm in pretrained else "live"
            policies[norm] = unsaid if choice == "auto" else choice
    return policies


def _pretrained(module: nn.Module) -> set[nn.Module]:
    """All that lies in a layer, of a backbone in `module`, that does not begin at random."""
    backbones = [part for part in module.modules() if isinstance(part, Backbone)]
    layers = [layer for backbone in backbones for name, layer in backbone.items() if name not in backbone.random_layers]
    return {part for layer in layers for part in layer.modules()}


def set_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Give each module its mode. In place, idempotent, and cheap where nothing has changed: it runs before every step."""
    for module, training in modes.items():
        if module.training is not training:
            module.training = training


def hold_modes(modes: Mapping[nn.Module, bool]) -> None:
    """From now on `.train()`, called on a frozen module or on what holds it, leaves it and all in it in evaluation mode."""
    for module, training in modes.items():
        if not training:
            module.__dict__["train"] = partial(_stay, module)


def release_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Undo `hold_modes`."""
    for module in modes:
        module.__dict__.pop("train", None)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return type(module).train(module, False)


def modes_of(module: nn.Module, batchnorm: BatchNorm = "auto") -> dict[nn.Module, bool]:
    """Training mode (`True`) where a parameter below trains, evaluation mode where all are frozen; batch norms as their policies say.

    A module without parameters (dropout, drop-path, pooling) goes with the module that holds it; a layer without parameters of
    a backbone trains where a layer below it does, since a frozen prefix gives the same features each time.
    """
    trains: dict[nn.Module, bool | None] = {}
    _find(module, trains)
    modes: dict[nn.Module, bool] = {}
    _fill(module, trains, modes, parent_trains=True)
    for layers in (child for child in module.modules() if isinstance(child, Layers)):
        _fill_layers(layers, trains, modes)
    return modes | {norm: False for norm, policy in batchnorm_policies(module, batchnorm).items() if policy != "live"}


def _find(module: nn.Module, trains: dict[nn.Module, bool | None]) -> bool | None:
    """Note whether a parameter of each module trains, `None` for a module without any."""
    below = [parameter.requires_grad for parameter in module._parameters.values() if parameter is not None]
    below += [child for child in (_find(child, trains) for child in module.children()) if child is not None]
    trains[module] = any(below) if below else None
    return trains[module]


def _fill(module: nn.Module, trains: Mapping[nn.Module, bool | None], modes: dict[nn.Module, bool], *, parent_trains: bool) -> None:
    own = trains[module]
    modes[module] = parent_trains if own is None else own
    for child in module.children():
        _fill(child, trains, modes, parent_trains=modes[module])


def _fill_layers(layers: Layers, trains: Mapping[nn.Module, bool | None], modes: dict[nn.Module, bool]) -> None:
    below = False
    for _, layer in layers.items():
        if trains[layer] is None:
            modes.update(dict.fromkeys(layer.modules(), below))
        below |= bool(trains[layer])
