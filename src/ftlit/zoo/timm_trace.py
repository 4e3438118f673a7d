"""Record the module calls of a forward pass, and find sequences in which each module's output is the next one's input.

Whether an output is the next input is read from the tensors themselves: the same object, not modified in between. A sequence that is found
this way is one for any weights.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

CONTAINERS = (nn.Sequential, nn.ModuleList)


@dataclass
class ModuleCall:
    """One call of a module.

    Args:
        name: path of the module in the network.
        module: the module.
        argument: its argument, or `None` if it has more than one tensor.
        argument_version: version counter of the argument before the call.
        result: its output, or `None` if that is not a single tensor.
        result_version: version counter of the output right after the call.
        modifies_argument: whether the call modified its argument in place.
    """

    name: str
    module: nn.Module
    argument: Tensor | None
    argument_version: int
    result: Tensor | None = None
    result_version: int = -1
    modifies_argument: bool = False

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
    """

    model: Any
    images: Tensor
    calls: list[ModuleCall] = field(default_factory=list)
    head_calls: list[ModuleCall] = field(default_factory=list)
    features: Any = None
    logits: Any = None


def trace(model: Any, images: Tensor) -> Trace:
    """Run a timm network once, in its present mode, and record its module calls. No hook stays behind."""
    found, handles = Trace(model, images), []
    calls = found.calls

    def forward_features(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        found.features, calls = type(model).forward_features(model, *args, **kwargs), found.head_calls
        return found.features

    try:
        for name, module in _descendants(model, ""):
            handles += _record_calls(name, module, lambda call: calls.append(call))
        model.forward_features = forward_features
        found.logits = model(images)
    finally:
        vars(model).pop("forward_features", None)
        for handle in handles:
            handle.remove()
    return found


def _descendants(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children, and those of containers in turn."""
    for name, child in module.named_children():
        yield prefix + name, child
        if isinstance(child, CONTAINERS):
            yield from _descendants(child, f"{prefix}{name}.")


def _record_calls(name: str, module: nn.Module, add: Callable[[ModuleCall], None]) -> list[Any]:
    """Register hooks on one module that record each of its calls."""
    open_calls: list[ModuleCall] = []

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        single = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        call = ModuleCall(name, module, args[0] if single else None, args[0]._version if single else -1)
        open_calls.append(call)
        add(call)

    def end(_: nn.Module, args: Any, result: Any) -> None:
        call = open_calls.pop()
        call.modifies_argument = call.argument is not None and call.argument._version != call.argument_version
        if isinstance(result, Tensor):
            call.result, call.result_version = result, result._version

    return [module.register_forward_pre_hook(begin, with_kwargs=True), module.register_forward_hook(end)]


def child_calls(call: ModuleCall, calls: list[ModuleCall]) -> list[ModuleCall]:
    """List the calls of a container's children if they are a sequence from its argument to its output, otherwise none."""
    if not isinstance(call.module, nn.Sequential):
        return []
    names = {f"{call.name}.{name}" for name, _ in call.module.named_children()}
    found = [other for other in calls if other.name in names]
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
