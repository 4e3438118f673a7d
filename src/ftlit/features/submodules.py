"""Any module as a source of features: the outputs of submodules that are given by name."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ftlit.errors import UserError, one_line, unknown
from ftlit.identity.fingerprint import fingerprint
from ftlit.models.pooling import Pooling, TokenPool, pool
from ftlit.models.weights_origin import WeightsOrigin
from ftlit.patterns import outermost_first
from ftlit.zoo.timm_split.timm_trace import preserved_state

OUTPUT = "output"  # the cut after the whole module


@dataclass(eq=False)
class _Call:
    """A call of a module: its tensors, its result, and when it began and ended, counted in calls."""

    module: nn.Module
    tensors: list[Tensor]
    begin: int
    end: int = -1
    result: Any = None


class Submodules(nn.Module):
    """A module that is read at the outputs of some of its submodules, as a `Backbone` is read at its cuts.

    Features have to be a function of the images and of the weights below the cut. So a first pass in evaluation mode checks that each
    submodule is called once, with one tensor, and gives the same tensor when the images are read again. Runs only the innermost module
    around the cuts that takes the images as they are, and this one only up to the last cut.

    Args:
        module: images (N, ...) -> anything.
        names: of submodules; `OUTPUT`: the module itself.
        images: a batch, on the device of the module.

    Raises:
        UserError: no such submodule, or one whose output cannot be stored.
    """

    token_pool: TokenPool = "mean"

    def __init__(self, module: nn.Module, names: Sequence[str], images: Tensor) -> None:
        super().__init__()
        modules = dict(module.named_modules(remove_duplicate=False))
        for name in names:
            if name != OUTPUT and name not in modules:
                raise unknown("module", name, outermost_first(modules), owner=type(module).__name__)
        self.cuts = tuple(names)
        paths = ["" if name == OUTPUT and name not in modules else name for name in names]
        self._targets = {name: modules[path] for name, path in zip(names, paths, strict=True)}
        self.entry, calls = _entry(module, _common(paths), images[:2])
        given = [part.__dict__.get("origin") for part in (self.entry, module)]
        origins = [origin for origin in given if isinstance(origin, WeightsOrigin)]
        self.origin = origins[0] if origins else WeightsOrigin("custom", type(self.entry).__name__)
        own = {name: _checked(name, target, calls, len(images[:2])) for name, target in self._targets.items()}
        self._shapes = {name: (tuple(call.result.shape[1:]), 0) for name, call in own.items()}
        self._above = {name: _begin_after(call, calls) for name, call in own.items()}
        self._calls = {name: (call, calls) for name, call in own.items()}
        with preserved_state(self.entry):
            once, again = (self.outputs(images[:2], names) for _ in range(2))
        for name in names:
            if not torch.allclose(once[name], again[name], rtol=1e-3, equal_nan=True):
                raise UserError(
                    f"{name!r} gives different features for the same images in evaluation mode, so they cannot be stored: remove random "
                    "layers that ignore eval(), such as functional dropout"
                )

    def outputs(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The output of each submodule, from one pass up to the last of them."""
        found: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, _: Any, result: Tensor) -> None:
            found[name] = result if len(found) + 1 == len(names) else result.clone()  # later modules may work in place
            if len(found) == len(names) and module is not self.entry:
                raise _Complete

        hooks = [self._targets[name].register_forward_hook(partial(keep, name)) for name in names]
        try:
            self.entry(images)
        except _Complete:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def way_to(self, name: str) -> list[nn.Module]:
        """The outermost modules that the images pass before a submodule, and this one at the end."""
        call, calls = self._calls[name]
        found: list[_Call] = []
        for other in calls:
            if other.end < call.begin and not (found and other.end < found[-1].end):
                found.append(other)
        return [*(other.module for other in found), call.module]

    def parameters_below(self, name: str) -> list[nn.Parameter]:
        """The parameters on which the features of a submodule may depend."""
        with _without(self.entry, self._above[name]):
            return list(self.entry.parameters())

    def digests(self) -> dict[str, str]:
        """Cut -> fingerprint of the module without the parts that are first called after it."""
        found = {}
        for name in self.cuts:
            with _without(self.entry, self._above[name]):
                path = next(path for path, part in self.entry.named_modules() if part is self._targets[name])
                found[name] = fingerprint("submodules", path, self.entry)
        return found

    def on_meta(self, size: Sequence[int]) -> Mapping[str, tuple[tuple[int, ...], int]]:
        """Cut -> shape of the features of one image, as in the first pass; the operations are not counted."""
        return self._shapes

    def pool(self, features: Tensor, pooling: Pooling = "average") -> Tensor:
        """Pool features to vectors (N, C); see `ftlit.models.pooling.pool`."""
        return pool(features, self.token_pool, pooling)


class _Complete(Exception):
    """No error: ends a pass in which everything is found."""


def _common(paths: Sequence[str]) -> list[str]:
    """The modules that contain all of these, the outermost (an empty name) first."""
    split = [path.split(".") if path else [] for path in paths]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return [".".join(shared[:depth]) for depth in range(len(shared) + 1)]


def _entry(module: nn.Module, paths: Sequence[str], images: Tensor) -> tuple[nn.Module, list[_Call]]:
    """The innermost module on the way to the cuts that takes the images as they are, and the calls when it runs."""
    failed = ""
    for path in paths:
        around = module.get_submodule(path)
        try:
            calls = _run(around, images)
        except NotImplementedError:  # a LightningModule without `forward`
            continue
        except Exception as error:  # the code of a user fails in any way; a `forward` may take more than images
            failed = (
                f"{path or type(module).__name__} fails on a batch of images of shape {tuple(images.shape[1:])} alone ({one_line(error)}): "
                "give a module, or the name of a submodule, that takes nothing but images"
            )
            continue
        inner = {module.get_submodule(below) for below in paths}
        taking = [call.module for call in calls if call.module in inner and len(call.tensors) == 1 and call.tensors[0] is images]
        return taking[-1], [call for call in calls if call.begin >= next(c.begin for c in calls if c.module is taking[-1])]
    if failed:
        raise UserError(failed)
    raise UserError(f"{type(module).__name__} has no forward: give a submodule that takes the images, such as module.encoder")


def _run(module: nn.Module, images: Tensor) -> list[_Call]:
    """Run a module, and record the calls in it in the order in which they begin."""
    calls: list[_Call] = []
    open_calls: list[_Call] = []
    time = iter(range(1 << 62))

    def begin(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = _Call(called, [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)], next(time))
        calls.append(call)
        open_calls.append(call)

    def end(called: nn.Module, args: Any, result: Any) -> None:
        call = open_calls.pop()
        call.end, call.result = next(time), result

    hooks: list[Any] = []
    try:
        for part in module.modules():
            hooks += [part.register_forward_pre_hook(begin, with_kwargs=True), part.register_forward_hook(end)]
        with preserved_state(module):
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _checked(name: str, target: nn.Module, calls: Sequence[_Call], images: int) -> _Call:
    """The only call of a submodule. Raises `UserError` where its output is no feature of each image."""
    own = [call for call in calls if call.module is target]
    if len(own) != 1:
        why = "is not called, so there is no output to store"
        if own:
            why = f"is called {len(own)} times per batch and has {len(own)} outputs, but only one can be stored"
        raise UserError(f"{name!r} {why}: name a module that is called once")
    if len(own[0].tensors) != 1:
        raise UserError(
            f"{name!r} takes {len(own[0].tensors)} tensors, but stored features can replace only one: name the module around {name!r}, or "
            "another one that takes one tensor"
        )
    result = own[0].result
    if not isinstance(result, Tensor):
        raise UserError(
            f"{name!r} returns a {type(result).__name__}, but only tensors can be stored: name a module that returns one tensor"
        )
    if not result.ndim or len(result) != images:
        raise UserError(
            f"{name!r} returns a tensor of shape {tuple(result.shape)} for {images} images: name a module that returns a row for each image"
        )
    return own[0]


def _begin_after(call: _Call, calls: Sequence[_Call]) -> set[nn.Module]:
    """The modules that are called only after a call has ended."""
    before = {other.module for other in calls if other.begin < call.end}
    return {other.module for other in calls} - before


@contextmanager
def _without(module: nn.Module, parts: set[nn.Module]) -> Iterator[None]:
    """Context in which a module lacks these parts, and a LightningModule what it knows of its trainer."""
    places = [(parent, name, child) for parent in module.modules() for name, child in parent._modules.items() if child in parts]
    lightning = next((cls for cls in type(module).__mro__ if cls.__name__ == "LightningModule"), nn.Module)
    known = vars(lightning()).keys() - vars(nn.Module()).keys()
    hidden = {name: value for name, value in vars(module).items() if name in known or name.startswith("_hparams")}
    try:
        for parent, name, _ in places:
            parent._modules[name] = None
        for name in hidden:
            del vars(module)[name]
        yield
    finally:
        vars(module).update(hidden)
        for parent, name, child in places:
            parent._modules[name] = child
