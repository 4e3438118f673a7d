"""Parameter groups: every parameter, frozen or not, is in exactly one named group from the first step (invariant 2)."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import isfinite
from numbers import Real
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from ftlit.errors import UserError, in_quotes, shorten
from ftlit.patterns import covers, first_match
from ftlit.plain_arguments import known_arguments, plain_arguments

Part = TypeVar("Part")
Group = dict[str, Any]
EVERYTHING: Sequence[tuple[str, float]] = (("*", 1.0),)
REL_TOLERANCE = 1e-6
FLOORS = {"eta_min": "eta_min", "min_lr": "min_lrs"}  # arguments of torch's schedulers for the lowest rate -> their attributes
RATES_ELSEWHERE = (
    "the learning rate belongs to the optimizer, functools.partial(torch.optim.AdamW, lr=1e-3); factors of it for patterns belong to "
    'build_optimizer(module, factory, [("head", 1.0), ("*", 0.1)]), and those for later stages to Rates(..., stage_factors=[1, 0.1])'
)
NO_DECAY = " (no decay)"  # suffix of the name of a group without weight decay


@plain_arguments
def param_groups(module: nn.Module, lr_scale: Sequence[tuple[str, float]] = EVERYTHING, *, decay_all: bool = True) -> list[Group]:
    """Build one group for each pattern, in the given order: `{"name": pattern, "params": [...], "lr_scale": factor}`.

    Parameters are distinguished by identity, not by value; the first name counts for one with several names. Frozen parameters are
    included: a stage changes `requires_grad`, and an optimizer skips parameters without a gradient.

    Args:
        module: any module.
        lr_scale: learning-rate factors (pattern, factor); the first pattern that covers a parameter's name wins.
        decay_all: `False` puts biases and the weights of norms (parameters of at most one dimension) into separate groups with
            `weight_decay` 0, `"head (no decay)"` for instance (He et al. 2019, section 3.1; the original AdamW decays all).

    Raises:
        UserError: a parameter that no pattern covers, a pattern without parameters, or a factor that is not a number from 0.
    """
    lr_scale = check_factors(lr_scale)
    parameters = dict(module.named_parameters())
    rules = first_match(lr_scale, parameters)
    groups: dict[str, Group] = {}
    for pattern, factor in lr_scale:
        groups[pattern] = Group(name=pattern, params=[], lr_scale=factor)
        groups[pattern + NO_DECAY] = Group(name=pattern + NO_DECAY, params=[], lr_scale=factor, weight_decay=0.0)
    for name, parameter in parameters.items():
        no_decay = not decay_all and parameter.ndim <= 1
        groups[rules[name][0] + (NO_DECAY if no_decay else "")]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


@known_arguments(lr=RATES_ELSEWHERE)
@plain_arguments
def build_optimizer(
    module: nn.Module,
    factory: Callable[[list[Group]], Optimizer],
    lr_scale: Sequence[tuple[str, float]] | None = None,
    *,
    decay_all: bool = True,
) -> Optimizer:
    """Build an optimizer over all parameters of `module`; the base rate of each group is the factory's rate times the group's factor.

    Args:
        module: any module; its parameters may be frozen.
        factory: builds an optimizer from groups, such as `partial(torch.optim.AdamW, lr=1e-3)`.
        lr_scale: as in `param_groups`. `None`: the factors of the schedule of `StagedFinetuning`, if the module has a trainer with this
            callback, as in `configure_optimizers`; otherwise 1 for everything.
        decay_all: as in `param_groups`.

    Raises:
        UserError: see `param_groups`; an optimizer in place of its factory.
    """
    if not callable(factory):
        raise UserError(
            f"build_optimizer needs a function that builds an optimizer, but this is a {type(factory).__name__}: give a function such as "
            "functools.partial(torch.optim.AdamW, lr=1e-3)"
        )
    optimizer = factory(param_groups(module, _factors_of_trainer(module) if lr_scale is None else lr_scale, decay_all=decay_all))
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group["lr_scale"]
    return optimizer


def _factors_of_trainer(module: Any) -> Sequence[tuple[str, float]]:
    """The factors of the schedule that a callback of the module's trainer has."""
    try:
        factors = [getattr(getattr(callback, "schedule", None), "lr_scale", None) for callback in module.trainer.callbacks]
    except (AttributeError, RuntimeError):  # no LightningModule, or one without a trainer
        return EVERYTHING
    return next(filter(None, factors), EVERYTHING)


def check_factors(lr_scale: object, *, positive: bool = False) -> list[tuple[str, float]]:
    """Return the pairs (pattern, factor), of an iterator too, which can be read only once. Raise `UserError` for anything else.

    Args:
        lr_scale: the pairs.
        positive: whether a factor must be above 0, as that of layers that a stage trains.
    """
    pairs: list[Any] = list(lr_scale) if isinstance(lr_scale, Iterable) and not isinstance(lr_scale, str | Mapping) else [lr_scale]
    example: list[Any] = list(lr_scale.items()) if isinstance(lr_scale, Mapping) and lr_scale else [("head", 1.0), ("*", 0.1)]
    for pair in pairs:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2 or not isinstance(pair[0], str):
            raise UserError(f"learning-rate factors are a list of pairs (pattern, factor), not {pair!r}: give {example}")
    for pattern, factor in pairs:
        is_number = isinstance(factor, Real) and not isinstance(factor, bool) and isfinite(factor)
        if not is_number or factor < 0 or (positive and factor == 0):
            give = f"a number above 0{in_quotes(factor)}; to freeze layers, remove them from `train`" if positive else "a number, 0 or more"
            raise UserError(f"learning-rate factor {factor!r} of {pattern!r}: give {give}{'' if positive else in_quotes(factor)}")
    return [(pattern, float(factor)) for pattern, factor in pairs]


def check_same_factors(module: nn.Module, lr_scale: Sequence[tuple[str, float]], groups: Sequence[Group]) -> None:
    """Check that each parameter of `module` in the groups has the factor of a schedule there, unless the schedule has none.

    Raises:
        UserError: the first parameter with another factor.
    """
    if tuple(lr_scale) == tuple(EVERYTHING):
        return
    scales = {id(parameter): group.get("lr_scale") for group in groups for parameter in group["params"]}
    for name, parameter in module.named_parameters():
        wanted = next((scale for pattern, scale in lr_scale if covers(pattern, name)), None)
        given = scales.get(id(parameter), wanted)  # one that is in no group trains in no stage
        if wanted is not None and given != wanted:
            has = "no learning-rate factor" if given is None else f"the learning-rate factor {given:g}"
            raise UserError(
                f"{name} has {has} in the optimizer, but {wanted:g} in the schedule: in configure_optimizers, call "
                "build_optimizer without lr_scale, so that it uses those of the schedule, or with lr_scale=schedule.lr_scale"
            )


def lost_ratios(optimizer: Optimizer, tolerance: float = REL_TOLERANCE) -> str:
    """A line on rates of the groups of `build_optimizer` that are not in the ratio of their factors; empty where all are.

    torch's `OneCycleLR(optimizer, max_lr=0.1)`, for instance, sets one rate for all groups.

    Args:
        optimizer: any optimizer.
        tolerance: relative to the largest rate with which training began.
    """
    rates = [(group, float(group["lr"])) for group in _scaled(optimizer)]
    begun = max((float(group.get("initial_lr", rate)) / group["lr_scale"] for group, rate in rates), default=0.0)
    if not _differ([rate / group["lr_scale"] for group, rate in rates], tolerance * begun):
        return ""
    given = shorten(f"{group['name']!r} (factor {group['lr_scale']:.2g}) {rate:.2g}" for group, rate in rates)
    return (
        f"a scheduler has overwritten the learning rates, so that they no longer follow the factors of the parameter groups: {given}; use "
        "ftlit.Rates, or give the scheduler a list with one learning rate per parameter group"
    )


def floors_lose_ratios(scheduler: Any) -> str:
    """A line on a scheduler of torch whose lowest learning rates are not in the ratio of the groups' factors; empty for any other.

    Training may never reach these rates, as with `ReduceLROnPlateau(min_lr=1e-8)`.
    """
    for part in getattr(scheduler, "_schedulers", ()):  # of SequentialLR and ChainedScheduler
        if line := floors_lose_ratios(part):
            return line
    optimizer = getattr(scheduler, "optimizer", None)
    for name, attribute in FLOORS.items():
        floor = getattr(scheduler, attribute, None)
        if not floor or not isinstance(optimizer, Optimizer):
            continue
        floors = list(floor) if isinstance(floor, list | tuple) else [floor] * len(optimizer.param_groups)
        rates = [(rate / group["lr_scale"]) for group, rate in zip(optimizer.param_groups, floors, strict=False) if _is_scaled(group)]
        if _differ(rates, REL_TOLERANCE * max(rates, default=0.0)):
            each = f"{name}=[...] with one rate per parameter group, " if attribute == "min_lrs" else ""
            return (
                f"{type(scheduler).__name__} with {name}={shorten(dict.fromkeys(floors))} takes all parameter groups down to the same "
                f"learning rate: give {name}=0, {each}or ftlit.Rates with a curve such as partial(cosine, least=0.01), which goes down "
                "to a hundredth of the rate of each group"
            )
    return ""


def _scaled(optimizer: Optimizer) -> list[Group]:
    return [group for group in optimizer.param_groups if _is_scaled(group)]


def _is_scaled(group: Group) -> bool:
    return "name" in group and bool(group.get("lr_scale"))  # timm's groups have no name


def _differ(rates: Sequence[float], tolerance: float) -> bool:
    return bool(rates) and max(rates) - min(rates) > tolerance


def rates_of_parameters(module: nn.Module, optimizer: Optimizer) -> tuple[dict[str, list[tuple[str, float]]], bool]:
    """For each parameter of a module the name and base rate of the groups that hold it; and whether they hold others too."""
    names = {id(p): name for name, p in module.named_parameters()}
    found: dict[str, list[tuple[str, float]]] = {name: [] for name in names.values()}
    foreign = False
    for group in optimizer.param_groups:
        rate = float(group.get("initial_lr", group["lr"]))  # a scheduler has set it, and may have begun a warm-up
        for parameter in group["params"]:
            if name := names.get(id(parameter)):
                found[name].append((group.get("name", "?"), rate))
            else:
                foreign = True
    return found, foreign


def group_warnings(found: Mapping[str, Sequence[tuple[str, float]]], trained: Collection[str], *, foreign: bool) -> Iterable[str]:
    """Warn of parameters that are not in exactly one group (invariant 2), of an optimizer for another module, and of rates of 0.

    Args:
        found: what `rates_of_parameters` returned, with `foreign`.
        trained: names of the parameters that some stage trains.
        foreign: whether the groups hold parameters of another module.
    """
    if foreign:
        yield "the optimizer holds parameters of another module: build it from this module"
        if not any(found.values()):
            return
    if missing := [name for name, groups in found.items() if not groups]:
        names = shorten(missing, most=3)
        yield f"these parameters do not train, because they are in no optimizer group: {names}; use ftlit.build_optimizer"
    if twice := [name for name, groups in found.items() if len(groups) > 1]:
        yield f"parameters in several optimizer groups are updated more than once per step: {shorten(twice, most=3)}"
    if still := list(dict.fromkeys(group for name in found if name in trained for group, rate in found[name] if rate == 0)):
        yield (
            f"the learning rate of {shorten(map(repr, still), most=4)} is 0 in the optimizer, so these parameters never change, although a "
            "stage trains them: to freeze them, leave them out of `train`; to train them, give a factor above 0"
        )


def parts_of(configured: object, kind: type[Part]) -> Iterable[Part]:
    """The objects of a class in what `configure_optimizers` returns."""
    if isinstance(configured, kind):
        yield configured
    elif isinstance(configured, Mapping | list | tuple):
        for part in configured.values() if isinstance(configured, Mapping) else configured:
            yield from parts_of(part, kind)


def optimizer_of(configured: object) -> Optimizer:
    """The optimizer in what `configure_optimizers` returns. Raises `UserError` for none or several."""
    found = list(parts_of(configured, Optimizer))
    if len(found) != 1:
        has = f"{len(found)} optimizers" if found else repr(configured) if configured is None else type(configured).__name__
        raise UserError(f"examine needs one optimizer, not {has}: give one torch.optim.Optimizer")
    return found[0]
