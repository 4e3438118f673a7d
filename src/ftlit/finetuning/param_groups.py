"""Every parameter in exactly one named group, frozen ones too, from the first step on (invariant 2)."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ftlit.errors import UserError, shorten
from ftlit.patterns import first_match

Group = dict[str, Any]
EVERYTHING: Sequence[tuple[str, float]] = (("*", 1.0),)
NO_DECAY = " (no decay)"  # ends the name of a group that weight decay leaves alone


def param_groups(module: nn.Module, lr_scale: Sequence[tuple[str, float]] = EVERYTHING, *, decay_all: bool = True) -> list[Group]:
    """One group a pattern, in the order given: `{"name": pattern, "params": [...], "lr_scale": factor}`.

    Parameters are told apart by identity, never by value; one with several names goes by its first. Nothing is left out because it is
    frozen: a stage changes `requires_grad`, and an optimizer passes over what has no gradient.

    Args:
        module: any module.
        lr_scale: (pattern, factor); the first pattern that covers a parameter's name wins.
        decay_all: `False` puts biases and the weights of norms (parameters of at most one dimension) in groups of their own,
            `"head (no decay)"` for instance, with `weight_decay` 0 (Loshchilov's AdamW decays all; He et al. 2019, section 3.1, does not).

    Raises:
        UserError: a parameter that no pattern covers, or a pattern left without one.
    """
    parameters = dict(module.named_parameters())
    rules = first_match(lr_scale, parameters)
    groups: dict[str, Group] = {}
    for pattern, factor in lr_scale:
        groups[pattern] = Group(name=pattern, params=[], lr_scale=factor)
        groups[pattern + NO_DECAY] = Group(name=pattern + NO_DECAY, params=[], lr_scale=factor, weight_decay=0.0)
    for name, parameter in parameters.items():
        apart = not decay_all and parameter.ndim <= 1
        groups[rules[name][0] + (NO_DECAY if apart else "")]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def build_optimizer(
    module: nn.Module,
    factory: Callable[[list[Group]], Optimizer],
    lr_scale: Sequence[tuple[str, float]] = EVERYTHING,
    *,
    decay_all: bool = True,
) -> Optimizer:
    """The optimizer over all parameters of `module`, each group at the factory's rate times its own scale.

    Args:
        module: any module; its parameters may be frozen.
        factory: a recipe for an optimizer, such as `partial(torch.optim.AdamW, lr=1e-3)`.
        lr_scale: as in `param_groups`.
        decay_all: as in `param_groups`.

    Raises:
        UserError: as `param_groups`.
    """
    optimizer = factory(param_groups(module, lr_scale, decay_all=decay_all))
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group["lr_scale"]
    return optimizer


def check_ratios(optimizer: Optimizer) -> None:
    """Raise `UserError` where the groups of `build_optimizer` no longer have rates in the ratio of their scales.

    torch's `OneCycleLR(optimizer, max_lr=0.1)` gives one rate to all groups, for instance.
    """
    own = [group for group in optimizer.param_groups if "name" in group and group.get("lr_scale")]  # timm's have a scale and no name
    rates = {group["name"]: (float(group["lr"]), group["lr_scale"]) for group in own}
    bases = {name: rate / scale for name, (rate, scale) in rates.items()}
    if bases and max(bases.values()) - min(bases.values()) > 1e-6 * max(bases.values()):
        given = shorten(f"{name} {rate:.2g} (x {scale:.2g})" for name, (rate, scale) in rates.items())
        raise UserError(
            f"a scheduler has set rates that are not in the ratio asked for: {given}; "
            "use ftlit.Rates, or give torch's a list with a rate for each group"
        )
