"""What a forward pass runs, in order, and where one module's result is, unchanged, the next one's argument.

That is read from the tensors themselves: the same object, written to by nobody in between. So a chain that is found here is one
whatever the weights are.
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
        name: the module's path in the network.
        module: what was called.
        given: its argument, or `None` where it takes more than one tensor.
        written: how often the argument had been written to before.
        result: what it gave, or `None` where that is no single tensor.
        rewritten: how often the result had been written to by then.
        writes: whether the call wrote to its argument.
    """

    name: str
    module: nn.Module
    given: Tensor | None
    written: int
    result: Tensor | None = None
    rewritten: int = -1
    writes: bool = False

    def takes(self, features: Tensor | None, written: int) -> bool:
        """Whether the call's argument is `features`, as they were when they had been written to so often."""
        return features is not None and self.given is features and self.written == written

    def follows(self, other: "ModuleCall") -> bool:
        """Whether the call's argument is what `other` gave."""
        return self.takes(other.result, other.rewritten)


@dataclass
class Trace:
    """A forward pass.

    Args:
        model: the network.
        images: what it was given.
        calls: of the network's parts, in the order they began, up to the end of `forward_features`.
        later: of those after it.
        features: what `forward_features` gave, or `None` where that is no single tensor.
        logits: what the network gave.
    """

    model: Any
    images: Tensor
    calls: list[ModuleCall] = field(default_factory=list)
    later: list[ModuleCall] = field(default_factory=list)
    features: Any = None
    logits: Any = None


def trace(model: Any, images: Tensor) -> Trace:
    """Run a timm network once, as it is, and note what it called. It is left without hooks."""
    found, handles = Trace(model, images), []
    calls = found.calls

    def forward_features(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        found.features, calls = type(model).forward_features(model, *args, **kwargs), found.later
        return found.features

    try:
        for name, module in _parts(model, ""):
            handles += _note(name, module, lambda call: calls.append(call))
        model.forward_features = forward_features
        found.logits = model(images)
    finally:
        vars(model).pop("forward_features", None)
        for handle in handles:
            handle.remove()
    return found


def _parts(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The children, and those of containers in turn."""
    for name, child in module.named_children():
        yield prefix + name, child
        if isinstance(child, CONTAINERS):
            yield from _parts(child, f"{prefix}{name}.")


def _note(name: str, module: nn.Module, add: Callable[[ModuleCall], None]) -> list[Any]:
    """Hooks on one module that note each of its calls."""
    open_calls: list[ModuleCall] = []

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        call = ModuleCall(name, module, args[0] if alone else None, args[0]._version if alone else -1)
        open_calls.append(call)
        add(call)

    def end(_: nn.Module, args: Any, result: Any) -> None:
        call = open_calls.pop()
        call.writes = call.given is not None and call.given._version != call.written
        if isinstance(result, Tensor):
            call.result, call.rewritten = result, result._version

    return [module.register_forward_pre_hook(begin, with_kwargs=True), module.register_forward_hook(end)]


def inner(call: ModuleCall, calls: list[ModuleCall]) -> list[ModuleCall]:
    """The calls of a container's children, where they are all that it does: a chain from its argument to its result. Else none."""
    if not isinstance(call.module, nn.Sequential):
        return []
    names = {f"{call.name}.{name}" for name, _ in call.module.named_children()}
    found = [other for other in calls if other.name in names]
    chained = [found[:1], *([after] for before, after in pairwise(found) if after.follows(before))]
    whole = found and len(chained) == len(found) and found[0].takes(call.given, call.written) and found[-1].result is call.result
    return found if whole else []


def call_sequences(calls: list[ModuleCall]) -> list[list[ModuleCall]]:
    """The calls outside of each other, in runs in which each follows the one before it."""
    names = {call.name for call in calls}
    runs: list[list[ModuleCall]] = []
    for call in calls:
        parents = {call.name[:i] for i, letter in enumerate(call.name) if letter == "."}
        if parents & names:
            continue
        if not runs or not call.follows(runs[-1][-1]):
            runs.append([])
        runs[-1].append(call)
    return runs


@contextmanager
def preserved_state(model: nn.Module) -> Iterator[None]:
    """Inside, the network is in evaluation mode and without gradients; afterwards it and torch's random state are as they were."""
    before = {module: dict(vars(module)) for module in model.modules()}
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, attributes in before.items():
            vars(module).clear()
            vars(module).update(attributes)
