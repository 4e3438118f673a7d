"""Record the module calls of a forward pass, and find sequences in which each module's output is the next one's input.

Whether an output is the next input is read from the tensors themselves: the same object, not modified in between. A sequence that is found
this way is one for any weights. A module may take more than that: its other arguments have to be equal for any images of one size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import Parameter, signature
from itertools import pairwise, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

CONTAINERS = (nn.Sequential, nn.ModuleList)


@dataclass(eq=False)
class ModuleCall:
    """One call of a module.

    Args:
        name: path of the module in the network.
        module: the module.
        argument: its first argument, or `None` if that is not a tensor, or if the others depend on the images.
        argument_version: version counter of the argument before the call.
        result: its output, or `None` if that is not a single tensor.
        result_version: version counter of the output right after the call.
        modifies_argument: whether the call modified its argument in place.
        others: its other arguments by name, without those that equal the default.
    """

    name: str
    module: nn.Module
    argument: Tensor | None
    argument_version: int
    result: Tensor | None = None
    result_version: int = -1
    modifies_argument: bool = False
    others: dict[str, Any] = field(default_factory=dict)

    def takes(self, features: Tensor | None, version: int) -> bool:
        """Whether the argument of the call is `features` at this version."""
        return features is not None and self.argument is features and self.argument_version == version

    def follows(self, other: "ModuleCall") -> bool:
        """Whether the argument of the call is the output of `other`."""
        return self.takes(other.result, other.result_version)


@dataclass
class Trace:
    """The record of a forward pass.

    Args:
        model: the network.
        images: its input.
        calls: calls of the network's modules in the order in which they began, up to the end of `forward_features`.
        head_calls: the calls after that.
        features: output of `forward_features`, or `None` if that is not a single tensor.
        logits: output of the network.
        by_block: whether calls inside the stages of a network are recorded too.
    """

    model: Any
    images: Tensor
    calls: list[ModuleCall] = field(default_factory=list)
    head_calls: list[ModuleCall] = field(default_factory=list)
    features: Any = None
    logits: Any = None
    by_block: bool = False


def trace(model: Any, images: Tensor, *, by_block: bool = False) -> Trace:
    """Run a timm network in its present mode, and record its module calls. No hook stays behind.

    It runs once, and once more on other images if a module takes more than features.
    """
    found = _trace_once(model, images, by_block=by_block)
    if any(call.others for call in found.calls):
        others = torch.cat([images, images[:1]]).flip(2)  # other images, and another number of them
        again = _trace_once(model, others, by_block=by_block)
        for call, other in zip_longest(found.calls, again.calls[: len(found.calls)]):
            if call.others and not (other and equal(call.others, other.others)):
                call.argument = None
    return found


def equal(one: Any, other: Any) -> bool:
    """Whether two arguments of a module are equal: tensors by their values, other objects by identity."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(value, other[name]) for name, value in one.items())
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one is other or (isinstance(one, bool | int | float | str) and one == other)


def _trace_once(model: Any, images: Tensor, *, by_block: bool) -> Trace:
    found, handles = Trace(model, images, by_block=by_block), []
    calls = found.calls

    def forward_features(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        found.features, calls = type(model).forward_features(model, *args, **kwargs), found.head_calls
        return found.features

    try:
        for name, module in _descendants(model, "", by_block=by_block):
            handles += record_calls(name, module, lambda call: calls.append(call))
        model.forward_features = forward_features
        found.logits = model(images)
    finally:
        vars(model).pop("forward_features", None)
        for handle in handles:
            handle.remove()
    return found


def _descendants(module: nn.Module, prefix: str, *, by_block: bool) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children, and in turn those of containers; by block those of modules that hold a container, too: of stages."""
    for name, child in module.named_children():
        yield prefix + name, child
        is_stage = by_block and any(isinstance(inner, CONTAINERS) for inner in child.children())
        if is_stage or isinstance(child, CONTAINERS):
            yield from _descendants(child, f"{prefix}{name}.", by_block=by_block)


def record_calls(name: str, module: nn.Module, add: Callable[[ModuleCall], None]) -> list[Any]:
    """Register hooks on one module that record each of its calls."""
    open_calls: list[ModuleCall] = []

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        argument, others = split_arguments(module, args, kwargs)
        call = ModuleCall(name, module, argument, -1 if argument is None else argument._version, others=others)
        open_calls.append(call)
        add(call)

    def end(_: nn.Module, args: Any, result: Any) -> None:
        call = open_calls.pop()
        call.modifies_argument = call.argument is not None and call.argument._version != call.argument_version
        if isinstance(result, Tensor):
            call.result, call.result_version = result, result._version

    return [module.register_forward_pre_hook(begin, with_kwargs=True), module.register_forward_hook(end)]


def split_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor | None, dict[str, Any]]:
    """The first argument of a call if it is a tensor, and the others by name, without those that equal the default."""
    if not args or not isinstance(args[0], Tensor):
        return None, {}
    if len(args) == 1 and not kwargs:
        return args[0], {}
    parameters = signature(module.forward).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    if not kinds.isdisjoint((Parameter.VAR_POSITIONAL, Parameter.POSITIONAL_ONLY)):
        return None, {}
    named = dict(zip(list(parameters)[1:], args[1:], strict=False)) | kwargs
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return args[0], {name: value for name, value in named.items() if not equal(value, defaults.get(name, Parameter.empty))}


def child_calls(call: ModuleCall, traced: Trace) -> list[ModuleCall]:
    """List the calls of the children of a container or a stage if they are a sequence from its argument to its output, otherwise none."""
    if not (traced.by_block or isinstance(call.module, nn.Sequential)):
        return []
    names = {f"{call.name}.{name}" for name, _ in call.module.named_children()}
    found = [other for other in traced.calls if other.name in names]
    connected = [found[:1], *([after] for before, after in pairwise(found) if after.follows(before))]
    complete = found and len(connected) == len(found) and found[0].takes(call.argument, call.argument_version)
    return found if complete and found[-1].result is call.result else []


def call_sequences(calls: list[ModuleCall]) -> list[list[ModuleCall]]:
    """Group the outermost calls into sequences in which each call follows the one before it."""
    names = {call.name for call in calls}
    sequences: list[list[ModuleCall]] = []
    for call in calls:
        parents = {call.name[:i] for i, letter in enumerate(call.name) if letter == "."}
        if parents & names:
            continue
        if not sequences or not call.follows(sequences[-1][-1]):
            sequences.append([])
        sequences[-1].append(call)
    return sequences


@contextmanager
def preserved_state(model: nn.Module) -> Iterator[None]:
    """Context in evaluation mode and without gradients; restores the network's attributes and torch's random state at the end."""
    before = {module: dict(vars(module)) for module in model.modules()}
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, attributes in before.items():
            vars(module).clear()
            vars(module).update(attributes)
