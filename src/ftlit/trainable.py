"""Frozen means frozen: no gradient, and evaluation mode, so that statistics and dropout stand still too (law 3)."""

from collections.abc import Sequence

from torch import nn

from ftlit.patterns import select


def set_trainable(module: nn.Module, patterns: Sequence[str]) -> bool:
    """Train exactly the parameters that `patterns` cover; freeze all others. `module` is changed in place.

    A frozen parameter has `requires_grad=False` and no gradient (an optimizer would go on moving it by momentum and decay
    otherwise). Modes follow, see `set_modes`. A parameter with two names trains if either is covered.

    Returns:
        Whether any parameter changed sides.

    Raises:
        UserError: a pattern that covers nothing.
    """
    named = list(module.named_parameters(remove_duplicate=False))
    chosen = set(select(patterns, [name for name, _ in named]))
    training = {id(parameter) for name, parameter in named if name in chosen}
    changed = False
    for _, parameter in named:
        changed |= parameter.requires_grad != (id(parameter) in training)
        parameter.requires_grad_(id(parameter) in training)
        if not parameter.requires_grad:
            parameter.grad = None
    set_modes(module)
    return changed


def set_modes(module: nn.Module) -> None:
    """Training mode where a parameter below trains, evaluation mode where all are frozen. In place, cheap, idempotent.

    A module without parameters (dropout, drop-path, pooling) goes with the module that holds it.
    """
    trains: dict[nn.Module, bool | None] = {}
    _find(module, trains)
    _set(module, trains, parent_trains=True)


def _find(module: nn.Module, trains: dict[nn.Module, bool | None]) -> bool | None:
    """Note whether a parameter of each module trains, `None` for a module without any. Each is looked at once: this runs at every step."""
    below = [parameter.requires_grad for parameter in module._parameters.values() if parameter is not None]
    below += [child for child in (_find(child, trains) for child in module.children()) if child is not None]
    trains[module] = any(below) if below else None
    return trains[module]


def _set(module: nn.Module, trains: dict[nn.Module, bool | None], *, parent_trains: bool) -> None:
    own = trains[module]
    module.training = parent_trains if own is None else own
    for child in module.children():
        _set(child, trains, parent_trains=module.training)
