"""Identity of classes and functions: ftlit's own by a name and a version number, a package's by its version, a user's by its code.

Comments, docstrings and the place of a module do not count. `fingerprint` hashes the values that `identity` returns.
"""

import io
import logging
import sys
import threading
from abc import ABC
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence, MutableSet, Sequence
from functools import cached_property, lru_cache, singledispatch, singledispatchmethod
from types import CellType, FunctionType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any, TypeVar

import torch

from ftlit.identity.bytecode import code_digest, names_in
from ftlit.installed import exact_version, has_exact_version

Named = TypeVar("Named", bound=Callable[..., Any])

# named only: `fingerprint.software` puts their versions in the key of stored features; those of Python's modules do not matter
VERSIONED_PACKAGES = ("torch", "torchvision", "PIL", "numpy", *sys.stdlib_module_names)
PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device, torch.Size)
PYTHON = f"python {sys.version_info.major}.{sys.version_info.minor}"  # bytecode differs between minor versions
CachedFunction = type(lru_cache(abs))
DISPATCHER = singledispatch(abs).__code__  # type: ignore[attr-defined]  # of every function that `singledispatch` returns
LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Semaphore, threading.Event, threading.local)
RUN_STATE = (*LOCKS, logging.Logger, logging.LoggerAdapter, logging.Handler, io.IOBase)
BOOKKEEPING = (MemberDescriptorType, GetSetDescriptorType, type(vars(ABC)["_abc_impl"]))  # that Python keeps in classes
_stable_names: dict[Any, str] = {}
_uses: dict[Any, Sequence[Callable[..., Any]]] = {}


def versioned(name: str, version: int, *, uses: Sequence[Callable[..., Any]] = ()) -> Callable[[Named], Named]:
    """Register a class or function of ftlit under a name that stays, and a version number to be raised when its output changes.

    Every layer, transform and reader of ftlit has one, because stored features depend on it. The name is unique, and does not change when
    the class is renamed or its module is moved.

    Args:
        name: unique.
        version: from 1.
        uses: other classes and functions with a version on which the output depends. Base classes always count.
    """

    def register(thing: Named) -> Named:
        _stable_names[thing], _uses[thing] = f"{name} {version}", uses
        return thing

    return register


def stable_name(thing: Any) -> str | None:
    """Name and version that `versioned` gave to a class or function; `None` without one. A subclass does not inherit them."""
    return _stable_names.get(thing) if isinstance(thing, type | FunctionType) else None


def identity(thing: Any) -> list[Any]:
    """Values that identify a class or a function, without its instances and its closure.

    Returns:
        For ftlit the stable name and version, also of the parts that it uses. For torch, torchvision, Pillow, numpy and Python the
        qualified name. For other packages with an `exact_version` the qualified name, this version and the code. Else the code that can be
        reached from it, see `_reachable`, and the version of Python.
    """
    stable, module = stable_name(thing), _module(thing)
    package = module.partition(".")[0]
    if stable is not None:
        return ["ftlit", stable, *map(identity, (*_uses.get(thing, ()), *filter(stable_name, _bases(thing))))]
    if package in VERSIONED_PACKAGES:
        return [f"{module}.{_name(thing)}"]
    if has_exact_version(module):
        return [f"{module}.{_name(thing)}", exact_version(package), PYTHON, _own(thing), *map(identity, _bases(thing))]
    return [_name(thing), PYTHON, *_reachable(thing)]


def is_run_state(value: Any) -> bool:
    """Whether a value that code uses cannot change a result: a logger, a lock, an open file, a container that is empty before the run."""
    if isinstance(value, MutableMapping | MutableSequence | MutableSet):
        return len(value) == 0
    return isinstance(value, (*RUN_STATE, *BOOKKEEPING))


def _module(thing: Any) -> str:
    return getattr(thing, "__module__", None) or "builtins"


def _name(thing: Any) -> str:
    return str(getattr(thing, "__qualname__", thing))


def _bases(thing: Any) -> list[type]:
    """Base classes, the nearest first, except those of `VERSIONED_PACKAGES`."""
    return [base for base in getattr(thing, "__mro__", ())[1:] if _module(base).partition(".")[0] not in VERSIONED_PACKAGES]


def _is_followed(thing: Any) -> bool:
    """Whether the code of a class or function counts: it is a user's, or ftlit's without a version."""
    own = isinstance(thing, type | FunctionType) and stable_name(thing) is None
    return own and _module(thing).partition(".")[0] not in VERSIONED_PACKAGES and not has_exact_version(_module(thing))


def _reachable(thing: Any) -> Iterator[list[Any]]:
    """Code and settings of `thing` and of all followed classes and functions that it names, directly or through others, each once."""
    queue, seen = [thing], set()
    for piece in queue:  # the loop extends it
        if id(piece) in seen:
            continue
        seen.add(id(piece))
        around = _around(piece)
        queue += [value for value in around.values() if _is_followed(value)]
        yield [_name(piece), _own(piece), {name: _reference(value) for name, value in around.items() if not is_run_state(value)}]


def _reference(value: Any) -> Any:
    """The representation of a value next to the code that names it."""
    if isinstance(value, ModuleType):
        return f"module {value.__name__}"
    if _is_followed(value):
        return _name(value)
    return identity(value) if isinstance(value, type | FunctionType) else value


def _around(thing: Any) -> dict[str, Any]:
    """Name -> value of everything that a function or class uses besides its own code."""
    if is_single_dispatch(thing):
        return _implementations(thing)
    if isinstance(thing, FunctionType):
        return {**_defaults(thing), **_named_values(thing)}
    bases = {f"base {i}": base for i, base in enumerate(getattr(thing, "__bases__", ()))}
    around = {f"{name}.{used}": value for name, method in _methods(thing).items() for used, value in _around(method).items()}
    values = {f"{name} {i}": part for name, value in _attributes(thing).items() for i, part in enumerate(_behind(value))}
    return {**bases, **around, **{name: value for name, value in values.items() if not isinstance(value, FunctionType)}}


def is_single_dispatch(thing: Any) -> bool:
    """Whether `functools.singledispatch` made a function. Its closure changes with every call, so its implementations count instead."""
    return isinstance(thing, FunctionType) and thing.__code__ is DISPATCHER


def _implementations(function: Any) -> dict[str, Any]:
    """The types and functions that are registered with a single-dispatch function, in an order that registration does not change."""
    pairs = sorted(function.registry.items(), key=lambda pair: (_name(pair[0]), _module(pair[0])))
    types = {f"type {i}": cls for i, (cls, _) in enumerate(pairs)}
    return types | {f"implementation {i}": _behind(registered)[0] for i, (_, registered) in enumerate(pairs)}


def _defaults(function: FunctionType) -> dict[str, Any]:
    positional = {f"default {i}": value for i, value in enumerate(function.__defaults__ or ())}
    return positional | {f"default {name}": value for name, value in (function.__kwdefaults__ or {}).items()}


def contents(cell: CellType) -> list[Any]:
    """The value of a closure's cell; empty where it was never set."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


def _named_values(function: FunctionType) -> dict[str, Any]:
    """Values of a function's closure, the globals that it names, and the attributes of a user's modules that it names."""
    names = sorted(names_in(function.__code__))
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    found = {f"closure {name}": _unwrapped(value) for name, cell in cells for value in contents(cell)}
    found |= {name: _unwrapped(function.__globals__[name]) for name in names if name in function.__globals__}
    modules = [value for value in found.values() if isinstance(value, ModuleType)]
    for module in modules:  # the loop extends it by the modules of a package
        if module.__name__.partition(".")[0] not in VERSIONED_PACKAGES and not has_exact_version(module.__name__):
            own = {f"{module.__name__}.{name}": _unwrapped(vars(module)[name]) for name in names if name in vars(module)}
            modules += [value for value in own.values() if isinstance(value, ModuleType) and value not in modules]
            found |= own
    return found


def _unwrapped(value: Any) -> Any:
    return value.__wrapped__ if isinstance(value, CachedFunction) else value


def _attributes(cls: Any) -> dict[str, Any]:
    """The methods of a class, and its attributes except those that Python sets."""
    own = vars(cls).items() if isinstance(cls, type) else ()
    special = {name for name, _ in own if name.startswith("_") and name.endswith("_")}
    return {name: value for name, value in own if name not in special or (isinstance(value, FunctionType) and "annotat" not in name)}


def _methods(cls: Any) -> dict[str, FunctionType]:
    found = {name: _functions(value) for name, value in _attributes(cls).items()}
    return {f"{name} {i}": function for name, functions in found.items() for i, function in enumerate(functions)}


def _functions(value: Any) -> list[FunctionType]:
    return [part for part in _behind(value) if isinstance(part, FunctionType)]


def _behind(value: Any) -> list[Any]:
    """The functions behind a property and behind a class, static, cached or single-dispatch method; any other attribute itself."""
    parts: list[Any] = [value]
    if isinstance(value, property):
        parts = [part for part in (value.fget, value.fset, value.fdel) if part is not None]
    elif isinstance(value, classmethod | staticmethod):
        parts = [value.__func__]
    elif isinstance(value, cached_property):
        parts = [value.func]
    elif isinstance(value, singledispatchmethod):
        parts = [value.dispatcher]
    return [_unwrapped(part) for part in parts]


def _own(thing: Any) -> str:
    """Digest of the code of a function, or of the methods of a class; empty for compiled code."""
    if isinstance(thing, FunctionType):
        return code_digest(thing.__code__)
    return "\n".join(f"{name} {code_digest(method.__code__)}" for name, method in _methods(thing).items())
