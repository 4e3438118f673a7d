"""Fingerprints: short texts that are equal where weights, parameters, code and data are equal, and differ where one of them differs.

The hash is XXH3 (128 bits), which protects against accidents, not against an attacker. `code_identity` describes how code counts.
"""

import copyreg
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import partial, singledispatch
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ReferenceType

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils.data import Dataset
from xxhash import xxh3_128

from ftlit.errors import UserError
from ftlit.identity.code_identity import PLAIN, CachedFunction, contents, identity, is_single_dispatch
from ftlit.installed import package_version

Feed = Callable[[bytes], None]
Decomposition = tuple[str, list[Any]]  # a thing as text, and the things that it is made of
# attributes of an empty module, those that no output depends on, and the one that `ftlit.finetuning.freeze.hold_modes` sets
IGNORED_ATTRIBUTES = {*vars(nn.Module()), "train", "_compiled_call_impl"}
FIRST_BASES = (Enum, nn.Module, Dataset)  # where a class has several bases, the first of these decides what counts


def fingerprint(*things: Any) -> str:
    """32 hexadecimal digits for `things`: numbers, texts, tensors, arrays, modules, transforms, functions, and objects made of these.

    Of a module its class, its plain attributes, weights and buffers count, not its mode and `requires_grad`. Classes and functions of
    ftlit count by name and version number, those of torch, torchvision, Pillow, numpy and Python by name (`software` gives the versions),
    those of other packages by name, version and code, and a user's by code and constants, with those that they reach by name. Of a
    single-dispatch function all registered implementations count. Of a hook the function counts and the plain values and tensors that it
    was given, not the object that it is a method of; of a data set not its images, nor where it lies.

    Raises:
        UserError: an object whose content cannot be read, an open file for instance.
    """
    return _digest(things, ())


def prefixes(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Cut -> fingerprint of the layers up to it, each computed from the one before."""
    before, found = "", {}
    for name, layer in layers.items():
        before = found[name] = fingerprint(before, layer)
    return found


def software() -> str:
    """The versions of the packages that compute features."""
    return ", ".join(f"{name} {package_version(name)}" for name in ("torch", "torchvision", "pillow", "numpy"))


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
    """32 hexadecimal digits for things; `within` are the ids of the objects that contain them, the innermost last."""
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
    head, parts = _decomposed(thing)
    update(f"<{head}:{len(parts)}>".encode())
    for part in parts:
        _feed(part, update, within)


def _decomposed(thing: Any) -> Decomposition:
    if type(thing) in PLAIN:
        return f"{type(thing).__name__} {thing!r}", []
    if type(thing) in (list, tuple):
        return type(thing).__name__, list(thing)
    kind = next((base for base in FIRST_BASES if isinstance(thing, base)), type(thing))
    return _parts.dispatch(kind)(thing)


@singledispatch
def _parts(thing: Any) -> Decomposition:
    """Of any other object: its class, and the values that pickle keeps."""
    own = copyreg.dispatch_table.get(type(thing))
    try:
        reduced: Any = own(thing) if own else thing.__reduce_ex__(4)
    except Exception as error:  # what pickle cannot keep raises anything: TypeError, ValueError, RuntimeError, ...
        raise _opaque(thing, error) from error
    parts = [reduced] if isinstance(reduced, str) else [list(part) if hasattr(part, "__next__") else part for part in reduced[:5]]
    return "object", [type(thing), *parts]


@_parts.register
def _of_enum(thing: Enum) -> Decomposition:
    return f"enum {thing.name}", [type(thing), thing.value]


@_parts.register
def _of_path(thing: PurePath) -> Decomposition:
    return f"path {str(thing)!r}", []


@_parts.register
def _of_tensor(thing: Tensor) -> Decomposition:
    try:
        return f"tensor {of_tensor(thing)}", []
    except RuntimeError as error:  # without values, or sparse
        raise _opaque(thing, error) from error


@_parts.register(np.ndarray)
def _of_array(thing: "np.ndarray[Any, Any]") -> Decomposition:
    return _parts.dispatch(object)(thing) if thing.dtype.hasobject else (f"array {of_array(thing)}", [])


@_parts.register
def _of_module(module: nn.Module) -> Decomposition:
    own = {name: value for name, value in vars(module).items() if name not in IGNORED_ATTRIBUTES}
    # functions and their values, not the objects that they are methods of: the counts of an observer change no output
    hooks = [_hook(hook) for hooks in (module._forward_pre_hooks, module._forward_hooks) for hook in hooks.values()]
    return "module", [type(module), own, hooks, dict(module._parameters), dict(module._buffers), dict(module._modules)]


@_parts.register(Dataset)
def _of_dataset(thing: "Dataset[Any]") -> Decomposition:
    own = {name: value for name, value in vars(thing).items() if name != "root" and _decides_loading(value)}
    return "data set", [type(thing), own, getattr(thing, "transforms", None)]  # its images have digests of their own


@_parts.register(Mapping)
def _of_mapping(thing: Mapping[Any, Any]) -> Decomposition:
    own = [] if type(thing) is dict else [type(thing), getattr(thing, "__dict__", None), getattr(thing, "default_factory", None)]
    return "mapping", [*own, *(part for pair in thing.items() for part in pair)]


@_parts.register
def _of_class(thing: type) -> Decomposition:
    return "class", identity(thing)


@_parts.register
def _of_function(thing: FunctionType) -> Decomposition:
    around = [] if is_single_dispatch(thing) else [contents(cell) for cell in thing.__closure__ or ()]
    return "function", [identity(thing), thing.__defaults__, thing.__kwdefaults__, around]


@_parts.register
def _of_builtin(thing: BuiltinFunctionType) -> Decomposition:
    return "builtin", [identity(thing), *([] if isinstance(thing.__self__, ModuleType) else [thing.__self__])]


@_parts.register
def _of_method(thing: MethodType) -> Decomposition:
    return "method", [thing.__func__, thing.__self__]


@_parts.register(CachedFunction)
def _of_cached_function(thing: Any) -> Decomposition:
    return "cached", [thing.__wrapped__]


@_parts.register
def _of_python_module(thing: ModuleType) -> Decomposition:
    return f"module {thing.__name__} {package_version(thing.__name__.partition('.')[0])}", []


@_parts.register(ReferenceType)
def _of_reference(thing: "ReferenceType[Any]") -> Decomposition:
    return "reference", [thing()]


@_parts.register
def _of_graph(thing: fx.Graph) -> Decomposition:
    return "graph", [thing.python_code("self").src]  # its nodes refer to one another in more ways than can be followed


def _hook(hook: Any) -> list[Any]:
    function, given = (hook.func, [*hook.args, *hook.keywords.values()]) if isinstance(hook, partial) else (hook, [])
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType):
        return identity(function if hasattr(function, "__qualname__") else type(function))
    around = [value for cell in function.__closure__ or () for value in contents(cell)]
    values = [value for value in (*given, *around, *(function.__defaults__ or ())) if type(value) in PLAIN or isinstance(value, Tensor)]
    return [identity(function), values]


def _decides_loading(value: Any) -> bool:
    """Whether an attribute of a data set may decide how images are loaded, rather than which images there are."""
    return type(value) in (bool, int, float, str) or isinstance(value, Enum) or callable(value)


def _opaque(thing: Any, why: object) -> UserError:
    text = " ".join(str(why).split())
    return UserError(
        f"features cannot be cached, because the content of an object of type {type(thing).__name__} "
        f"cannot be hashed ({text}): give cache=none"
    )
