"""What decides a result, as a short text: equal where weights, parameters, code and pictures are equal, other where one of them differs.

Bulk is hashed by XXH3 (128 bits): against accidents, not against an attacker.
"""

import copyreg
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ReferenceType

import numpy as np
import torch
from torch import Tensor, fx, nn
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
    than torch, torchvision, Pillow, numpy and Python itself the whole source file counts, and the version of its package; of those
    `software` tells the version. What such code calls in other files of its own does not count. Of a hook the function counts and the
    plain values and tensors that it was given, not the object that it is a method of; of a data set not its pictures, nor where it lies.

    Raises:
        UserError: something that holds what cannot be looked into, an open file for instance.
    """
    return _digest(things, ())


def prefixes(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Cut -> fingerprint of the layers up to it, each computed from the one before."""
    before, found = "", {}
    for name, layer in layers.items():
        before = found[name] = fingerprint(before, layer)
    return found


def software() -> str:
    """The versions of what computes features, beside our own source."""
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
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    values = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy()  # one value has any stride
    hasher = xxh3_128(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    hasher.update(values.data)
    return hasher.hexdigest()


def _digest(things: Iterable[Any], within: tuple[int, ...]) -> str:
    """32 hexadecimal digits for things; `within` are the ids of what they are inside of, the innermost last."""
    hasher = xxh3_128()
    for thing in things:
        try:
            _feed(thing, hasher.update, within)
        except RecursionError as error:
            raise _opaque(thing, "it is nested too deep") from error
    return hasher.hexdigest()


def _feed(thing: Any, update: Feed, within: tuple[int, ...]) -> None:
    """Hash a thing."""
    if id(thing) in within:
        update(f"<{len(within) - within.index(id(thing))} up>".encode())
        return
    within = (*within, id(thing))
    if isinstance(thing, set | frozenset):
        update(f"<set:{sorted(_digest([item], within) for item in thing)}>".encode())
        return
    head, parts = _taken_apart(thing)
    update(f"<{head}:{len(parts)}>".encode())
    for part in parts:
        _feed(part, update, within)


def _taken_apart(thing: Any) -> tuple[str, list[Any]]:
    """What a thing is, as text, and the things that it is made of."""
    if isinstance(thing, Enum):
        return f"{_named(type(thing))}.{thing.name}", [thing.value]
    if isinstance(thing, PLAIN) and type(thing) in PLAIN:
        return f"{type(thing).__name__} {thing!r}", []
    if isinstance(thing, PurePath):
        return f"path {str(thing)!r}", []
    if isinstance(thing, Tensor):
        try:
            return f"tensor {of_tensor(thing)}", []
        except RuntimeError as error:  # without values, or sparse
            raise _opaque(thing, error) from error
    if isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
        return f"array {of_array(thing)}", []
    if isinstance(thing, nn.Module):
        return _named(type(thing)), _of_module(thing)
    if isinstance(thing, Dataset):  # its pictures have digests of their own
        own = {name: value for name, value in vars(thing).items() if name != "root" and _says_how(value)}
        return _named(type(thing)), [own, getattr(thing, "transforms", None)]
    if type(thing) in (list, tuple):
        return type(thing).__name__, list(thing)
    if isinstance(thing, Mapping):
        return "mapping", [part for pair in thing.items() for part in pair]
    if isinstance(thing, type):
        return _named(thing), []
    if isinstance(thing, ModuleType):
        return f"module {thing.__name__} {_source(thing.__name__)}", []
    if isinstance(thing, BuiltinFunctionType):
        return _named(thing), [] if isinstance(thing.__self__, ModuleType) else [thing.__self__]
    if isinstance(thing, FunctionType):
        return _named(thing), [_code(thing.__code__), *_around(thing)]
    if isinstance(thing, MethodType):
        return "method", [thing.__func__, thing.__self__]
    if isinstance(thing, ReferenceType):
        return "reference", [thing()]
    if isinstance(thing, fx.Graph):  # its nodes refer to one another in more ways than can be followed
        return "graph", [thing.python_code("self").src]
    return _named(type(thing)), _of_object(thing)


def _of_module(module: nn.Module) -> list[Any]:
    """Attributes, hooks, weights, buffers and children: what the output may depend on."""
    own = {name: value for name, value in vars(module).items() if name not in NOT_THE_MODULES_OWN}
    # who hooks in, with what values, not the object they belong to: an observer's counts do not change an output
    hooks = [_hook(hook) for hooks in (module._forward_pre_hooks, module._forward_hooks) for hook in hooks.values()]
    return [own, hooks, dict(module._parameters), dict(module._buffers), dict(module._modules)]


def _hook(hook: Any) -> list[Any]:
    function, given = (hook.func, [*hook.args, *hook.keywords.values()]) if isinstance(hook, partial) else (hook, [])
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType):
        return [_named(function if hasattr(function, "__qualname__") else type(function))]
    around = [value for cell in function.__closure__ or () for value in _held(cell)]
    values = [value for value in (*given, *around, *(function.__defaults__ or ())) if type(value) in PLAIN or isinstance(value, Tensor)]
    return [_named(function), _code(function.__code__), values]


def _says_how(value: Any) -> bool:
    """Whether an attribute of a data set may say how its pictures are loaded, rather than which there are."""
    return type(value) in (bool, int, float, str) or isinstance(value, Enum) or callable(value)


def _of_object(thing: Any) -> list[Any]:
    """What pickle would keep of it."""
    own = copyreg.dispatch_table.get(type(thing))
    try:
        reduced: Any = own(thing) if own else thing.__reduce_ex__(4)
    except Exception as error:  # what pickle cannot keep raises anything: TypeError, ValueError, RuntimeError, ...
        raise _opaque(thing, error) from error
    return [reduced] if isinstance(reduced, str) else [list(part) if hasattr(part, "__next__") else part for part in reduced[:5]]


def _opaque(thing: Any, why: object) -> UserError:
    text = " ".join(str(why).split())
    return UserError(f"features cannot be kept: {type(thing).__name__} cannot be told from another one ({text}); take cache=none")


def _around(function: FunctionType) -> list[Any]:
    """What a function uses besides its own code: defaults, what it closes over, and the plain values among the globals that it names."""
    names = [name for name in function.__code__.co_names if type(function.__globals__.get(name, function)) in PLAIN]
    values = {name: function.__globals__[name] for name in names}
    return [function.__defaults__, function.__kwdefaults__, [*map(_held, function.__closure__ or ())], values]


def _held(cell: CellType) -> list[Any]:
    """What a function has from around it; nothing where that was never set."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


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
    return " ".join([name, _version(module.partition(".")[0]), _source(module) or _methods(thing), *(_named(base) for base in bases)])


def _methods(thing: Any) -> str:
    """A digest of what stands in for the source of a class that has no file: the code of its own methods and properties."""
    found = {name: getattr(value, "__func__", getattr(value, "fget", value)) for name, value in getattr(thing, "__dict__", {}).items()}
    return fingerprint({name: _code(value.__code__) for name, value in found.items() if isinstance(value, FunctionType)})


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
