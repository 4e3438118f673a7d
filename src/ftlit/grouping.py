"""Every parameter in exactly one named group, frozen ones too, from the first step on (law 2)."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ftlit.patterns import first_match

Group = dict[str, Any]
EVERYTHING: Sequence[tuple[str, float]] = (("*", 1.0),)


def param_groups(module: nn.Module, lr_scale: Sequence[tuple[str, float]] = EVERYTHING) -> list[Group]:
    """One group a pattern, in the order given: `{"name": pattern, "params": [...], "lr_scale": factor}`.

    Parameters are told apart by identity, never by value. Nothing is left out because it is frozen: a stage changes `requires_grad`,
    and an optimizer passes over what has no gradient.

    Raises:
        UserError: a parameter that no pattern covers, or a pattern left without one.
    """
    parameters = dict(module.named_parameters())
    rules = first_match(lr_scale, parameters)
    groups = {pattern: Group(name=pattern, params=[], lr_scale=factor) for pattern, factor in lr_scale}
    for name, parameter in parameters.items():
        groups[rules[name][0]]["params"].append(parameter)
    return list(groups.values())


def build_optimizer(
    module: nn.Module, factory: Callable[[list[Group]], Optimizer], lr_scale: Sequence[tuple[str, float]] = EVERYTHING
) -> Optimizer:
    """The optimizer over all parameters of `module`, each group at the factory's rate times its own scale.

    Args:
        module: any module; its parameters may be frozen.
        factory: a recipe for an optimizer, such as `partial(torch.optim.AdamW, lr=1e-3)`.
        lr_scale: (pattern, factor); the first pattern that covers a parameter's name wins.

    Raises:
        UserError: as `param_groups`.
    """
    optimizer = factory(param_groups(module, lr_scale))
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group["lr_scale"]
    return optimizer
