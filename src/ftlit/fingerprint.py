"""What decides a result, as a short text: equal where weights, parameters, code and pictures are equal, other where one of them differs.

Bulk is hashed by XXH3 (128 bits): against accidents, not against an attacker.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from xxhash import xxh3_128

from ftlit.errors import UserError

Feed = Callable[[bytes], None]
VERSIONED = ("torch", "torchvision", "PIL", "numpy", *sys.stdlib_module_names)  # told by their versions; all other code by its source
PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device, torch.Size)
# what a module without anything has, what no output depends on, and what `trainable.hold_modes` puts in
NOT_THE_MODULES_OWN = {*vars(nn.Module()), "train", "_compiled_call_impl"}


def fingerprint(*things: Any) -> str:
    """32 hexadecimal digits for `things`: numbers, texts, tensors, arrays, modules, transforms, functions, and objects made of these.

    Of a module its class, its plain attributes, weights and buffers count, not its mode and not what trains. Of code from elsewhere
    than torch, torchvision, Pillow and numpy the whole source file counts; of those the version.

    Raises:
        UserError: something that holds what cannot be looked into, an open file for instance.
    """
    hasher = xxh3_128()
    for thing in things:
        _feed(thing, hasher.update, ())
    return hasher.hexdigest()


def prefixes(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Cut -> fingerprint of the layers up to it, each computed from the one before."""
    before, found = "", {}
    for name, layer in layers.items():
        before = found[name] = fingerprint(before, layer)
    return found


def software() -> str:
    """The versions of what computes codes, beside our own source."""
    return ", ".join(f"{name} {_version(name)}" for name in ("torch", "torchvision", "pillow"))


def of_bytes(content: bytes | memoryview) -> str:
    """32 hexadecimal digits for bytes."""
    return xxh3_128(content).hexdigest()


def of_array(array: "np.ndarray[Any, Any]") -> str:
    """The same for an array: values, shape and dtype."""
    hasher = xxh3_128(f"{array.dtype.str}{array.shape}".encode())
    hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


def of_tensor(tensor: Tensor) -> str:
    """The same for a tensor on any device; its memory format does not matter."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    hasher = xxh3_128(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    hasher.update(values.data)
    return hasher.hexdigest()


def _feed(thing: Any, update: Feed, within: tuple[int, ...]) -> None:
    """Hash a thing; `within` are the ids of what it is inside of, the innermost last."""
    if id(thing) in within:
        update(f"<{len(within) - within.index(id(thing))} up>".encode())
        return
    head, parts = _taken_apart(thing)
    update(f"<{head}:{len(parts)}>".encode())
    for part in parts:
        _feed(part, update, (*within, id(thing)))


def _taken_apart(thing: Any) -> tuple[str, list[Any]]:
    """What a thing is, as text, and the things that it is made of."""
    if isinstance(thing, Enum):
        return _named(type(thing)) + "." + thing.name, []
    if isinstance(thing, PLAIN) and type(thing) in PLAIN:
        return f"{type(thing).__name__} {thing!r}", []
    if isinstance(thing, PurePath):
        return f"path {thing}", []
    if isinstance(thing, Tensor):
        return f"tensor {of_tensor(thing)}", []
    if isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
        return f"array {of_array(thing)}", []
    if isinstance(thing, nn.Module):
        return _named(type(thing)), _of_module(thing)
    if isinstance(thing, Dataset):  # its pictures have digests of their own
        return _named(type(thing)), [getattr(thing, "transforms", None)]
    if type(thing) in (list, tuple):
        return type(thing).__name__, list(thing)
    if isinstance(thing, set | frozenset):
        return "set", sorted(fingerprint(item) for item in thing)
    if isinstance(thing, Mapping):
        return "mapping", [part for pair in thing.items() for part in pair]
    if isinstance(thing, type | BuiltinFunctionType):
        return _named(thing), []
    if isinstance(thing, FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or ()]
        return _named(thing), [_code(thing.__code__), thing.__defaults__, thing.__kwdefaults__, cells]
    if isinstance(thing, MethodType):
        return "method", [thing.__func__, thing.__self__]
    return _named(type(thing)), _of_object(thing)


def _of_module(module: nn.Module) -> list[Any]:
    """Attributes, hooks, weights, buffers and children: what the output may depend on."""
    own = {name: value for name, value in vars(module).items() if name not in NOT_THE_MODULES_OWN}
    # who hooks in, not what they hold: an observer's counts do not change an output
    hooks = [_hook(hook) for hooks in (module._forward_pre_hooks, module._forward_hooks) for hook in hooks.values()]
    return [own, hooks, dict(module._parameters), dict(module._buffers), dict(module._modules)]


def _hook(hook: Any) -> str:
    function = hook.func if isinstance(hook, partial) else hook
    return _named(getattr(function, "__func__", function if hasattr(function, "__qualname__") else type(function)))


def _of_object(thing: Any) -> list[Any]:
    """What pickle would keep of it."""
    try:
        reduced = thing.__reduce_ex__(4)
    except TypeError as error:
        raise UserError(
            f"codes cannot be kept: {type(thing).__name__} cannot be told from another one ({error}); take cache=none"
        ) from error
    return [reduced] if isinstance(reduced, str) else [list(part) if hasattr(part, "__next__") else part for part in reduced[:5]]


def _code(code: CodeType) -> list[Any]:
    """A function's own code: a lambda's name does not tell it from the next."""
    return [code.co_code, code.co_names, [_code(part) if isinstance(part, CodeType) else part for part in code.co_consts]]


def _named(thing: Any) -> str:
    """Module and name of a class or function, with the version or the source that it comes from."""
    module = getattr(thing, "__module__", None) or "builtins"
    name = f"{module}.{getattr(thing, '__qualname__', thing)}"
    if module.partition(".")[0] in VERSIONED:
        return name
    bases = [base for base in getattr(thing, "__mro__", ())[1:] if base.__module__.partition(".")[0] not in VERSIONED]
    return " ".join([name, _source(module), *(_named(base) for base in bases)])


@cache
def _source(module: str) -> str:
    """A digest of the source file of a module; the empty text where there is none, as in a notebook."""
    try:
        file = inspect.getsourcefile(sys.modules[module])
    except (KeyError, TypeError):
        return ""
    return of_bytes(Path(file).read_bytes()) if file and Path(file).is_file() else ""


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"
