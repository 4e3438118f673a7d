"""Freeze parameters and modules: no gradient, and evaluation mode, so that statistics and dropout do not change either (invariant 3).

A batch norm in a part that trains has one of three policies:

- `live`: normalises with the statistics of the batch and updates the running statistics; weight and bias train.
- `frozen_stats`: normalises with the running statistics, which do not change; weight and bias train.
- `frozen`: nothing changes.

`auto` is `frozen_stats` in the pretrained layers of a `Backbone` and in any module whose attribute `origin` says that it is pretrained (a
`WeightsOrigin`), and `live` everywhere else: statistics of many images are better than
those of a few steps (benchmarks/batchnorm.py). A module that a `train` method of the user keeps in evaluation mode stays in it: `auto` is
`frozen_stats` there.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Literal, get_args
from weakref import WeakKeyDictionary, WeakSet

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ftlit.errors import UserError, shorten, unknown
from ftlit.finetuning.train_entries import Given, entries_of, select
from ftlit.models.backbone import Backbone, Layers
from ftlit.models.weights_origin import WeightsOrigin
from ftlit.patterns import covers, idle, outermost
from ftlit.plain_arguments import plain_arguments

Policy = Literal["live", "frozen", "frozen_stats"]
Choice = Policy | Literal["auto"]
BatchNorm = Choice | Mapping[str, Choice]
POLICIES: tuple[Choice, ...] = ("auto", *get_args(Policy))
_FROZEN_BEFORE: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()  # parameters that were frozen before `set_trainable`
_KEPT_IN_EVAL: WeakSet[nn.Module] = WeakSet()  # modules that `.train()` left in evaluation mode before `set_trainable`
_TRAINED: WeakSet[nn.Module] = WeakSet()  # modules that a fit of this process has trained


def check_batchnorm(batchnorm: BatchNorm) -> None:
    """Raise `UserError` if `batchnorm` contains an unknown policy."""
    if not isinstance(batchnorm, str | Mapping):
        raise UserError(f"batchnorm={batchnorm} is not valid: give one of {', '.join(POLICIES)}, or a mapping from layer names to these")
    for policy in [batchnorm] if isinstance(batchnorm, str) else batchnorm.values():
        if policy not in POLICIES:
            raise unknown("batchnorm policy", policy, POLICIES)


@plain_arguments
def set_trainable(module: nn.Module, train: Given, batchnorm: BatchNorm = "auto") -> bool:
    """Train exactly the parameters that `train` covers; freeze all others. `module` is changed in place.

    A frozen parameter has `requires_grad=False` and no gradient (otherwise an optimizer would still move it by momentum and weight decay).
    Modes are set accordingly, see `modes_of`. A parameter with two names trains if either is covered.

    `module.train()` undoes the modes: in a training loop of your own call this after it, in each epoch. (`StagedFinetuning` does so.)

    Args:
        module: any module.
        train: patterns (see `ftlit.patterns`), or mappings of a pattern to `all`, `bias`, `norm` or `lora`.
        batchnorm: a policy for every batch norm, or pattern -> policy (the first that covers a batch norm wins, `auto` if none does).

    Returns:
        Whether any parameter was frozen or unfrozen.

    Raises:
        UserError: a pattern that covers nothing, or an unknown policy or part.
    """
    named = list(module.named_parameters(remove_duplicate=False))
    chosen = trained(module, train, batchnorm)
    training = {id(parameter) for name, parameter in named if name in chosen}
    if module not in _FROZEN_BEFORE:
        _KEPT_IN_EVAL.update(_kept_in_eval(module))
    for part in module.modules():
        _FROZEN_BEFORE.setdefault(part, _frozen_in(part))
    changed = False
    for _, parameter in named:
        changed |= parameter.requires_grad != (id(parameter) in training)
        parameter.requires_grad_(id(parameter) in training)
        if not parameter.requires_grad:
            parameter.grad = None
    set_modes(modes_of(module, batchnorm))
    return changed


def unfrozen_warnings(module: nn.Module, trained_in: Iterable[tuple[str, Collection[str]]]) -> Iterator[str]:
    """Warn of the first stage that trains what other code had frozen before `set_trainable` was called for the first time.

    Args:
        module: any module.
        trained_in: name of each stage, and the names of the parameters that train in it.
    """
    parts = dict(module.named_modules())
    own = {name: _FROZEN_BEFORE[part] if part in _FROZEN_BEFORE else _frozen_in(part) for name, part in parts.items()}
    frozen = [f"{name}.{parameter}".lstrip(".") for name, parameters in own.items() for parameter in parameters]
    for stage, chosen in trained_in:
        if wrong := outermost([name for name in frozen if name in chosen], dict(module.named_parameters())):
            yield (
                f"stage {stage!r} trains {shorten(wrong, most=4)}, although other code has set requires_grad=False there: to keep it "
                "frozen, write stages whose `train` leaves it out (with names of the other modules in place of '*')"
            )
            return


def _frozen_in(part: nn.Module) -> list[str]:
    return [name for name, parameter in part.named_parameters(recurse=False) if not parameter.requires_grad]


def _kept_in_eval(module: nn.Module) -> set[nn.Module]:
    """The modules that stay in evaluation mode when `.train()` is called, because a class of the user has a `train` method of its own."""
    parts = list(module.modules())
    if module in _FROZEN_BEFORE:  # from now on stages keep modules in this mode too
        return {part for part in parts if part in _KEPT_IN_EVAL}
    if all(type(part).train is nn.Module.train for part in parts):
        return set()
    modes = {part: part.training for part in parts}
    module.train()
    kept = {part for part in parts if not part.training}
    set_modes(modes)
    return kept


def trained(module: nn.Module, train: Given, batchnorm: BatchNorm = "auto") -> set[str]:
    """Return the names of the parameters that `set_trainable` would train, without changing anything; raises the same errors."""
    named = list(module.named_parameters(remove_duplicate=False))
    chosen = select(module, entries_of(train))
    policies = batchnorm_policies(module, batchnorm)
    kept = {id(p) for norm, policy in policies.items() if policy == "frozen" for p in norm.parameters(recurse=False)}
    training = {id(p) for name, p in named if name in chosen and (p.is_floating_point() or p.is_complex())} - kept
    return {name for name, parameter in named if id(parameter) in training}


def batchnorm_policies(module: nn.Module, batchnorm: BatchNorm) -> dict[nn.Module, Policy]:
    """Return the policy of every batch norm of `module`, in order, with `auto` resolved. Raises as `batchnorm_choices`."""
    pretrained = _pretrained(module) | _kept_in_eval(module)
    policies: dict[nn.Module, Policy] = {}
    for norm, choice in batchnorm_choices(module, batchnorm).items():
        default: Policy = "frozen_stats" if norm in pretrained else "live"
        policies[norm] = default if choice == "auto" else choice
    return policies


def batchnorm_choices(module: nn.Module, batchnorm: BatchNorm) -> dict[nn.Module, Choice]:
    """Return the choice that `batchnorm` makes for every batch norm of `module`, in order.

    Raises:
        UserError: a pattern that covers no module, or an unknown policy.
    """
    check_batchnorm(batchnorm)
    rules: Mapping[str, Choice] = {"*": batchnorm} if isinstance(batchnorm, str) else batchnorm
    names = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
    for pattern in rules:
        if pattern != "*" and not any(covers(pattern, name) for name in names):
            raise idle(pattern, names)
    norms = {norm: name for name, norm in module.named_modules() if isinstance(norm, _BatchNorm)}
    return {
        norm: next((choice for pattern, choice in rules.items() if pattern == "*" or covers(pattern, name)), "auto")
        for norm, name in norms.items()
    }


def _pretrained(module: nn.Module) -> set[nn.Module]:
    """Collect all modules inside the pretrained layers of each backbone in `module`, and in other modules with pretrained `origin`."""
    backbones = [part for part in module.modules() if isinstance(part, Backbone)]
    layers = [layer for backbone in backbones for name, layer in backbone.items() if name not in backbone.random_layers]
    layers += [part for part in module.modules() if not isinstance(part, Backbone) and says_pretrained(part)]
    return {part for layer in layers for part in layer.modules()}


def says_pretrained(module: nn.Module) -> bool:
    """Whether the attribute `origin` of a module says that its weights are not random."""
    origin = vars(module).get("origin")
    return isinstance(origin, WeightsOrigin) and origin.pretrained


def remember_trained(module: nn.Module) -> None:
    """Remember which modules within this one have trained: those of whose parameters one is not frozen."""
    _TRAINED.update(part for part in module.modules() if any(parameter.requires_grad for parameter in part.parameters(recurse=False)))


def has_trained(module: nn.Module) -> bool:
    """Whether `remember_trained` saw this module train."""
    return module in _TRAINED


def set_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Set the mode of each module, in place and idempotent. Cheap if nothing has changed, as it runs before every step."""
    for module, training in modes.items():
        if module.training is not training:
            module.training = training


def hold_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Keep frozen modules, and all modules in them, in evaluation mode when `.train()` is called on them or on a module around them."""
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
    """Return the mode of each module: training (`True`) if a parameter inside it trains, otherwise evaluation.

    The mode of a batch norm depends on its policy. What a `train` method of the user keeps in evaluation mode stays in it. A module without
    parameters (dropout, drop-path, pooling) has the mode of the module around it. A layer of a backbone without parameters trains if a
    layer below it does: a frozen prefix gives the same features each time.
    """
    trains: dict[nn.Module, bool | None] = {}
    _find(module, trains)
    modes: dict[nn.Module, bool] = {}
    _fill(module, trains, modes, parent_trains=True)
    for layers in (child for child in module.modules() if isinstance(child, Layers)):
        _fill_layers(layers, trains, modes)
    policies = batchnorm_policies(module, batchnorm)
    kept = {part: False for part in _kept_in_eval(module) if part not in policies}
    return modes | kept | {norm: False for norm, policy in policies.items() if policy != "live"}


def _find(module: nn.Module, trains: dict[nn.Module, bool | None]) -> bool | None:
    """Determine whether a parameter of each module trains; `None` for a module without parameters."""
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
