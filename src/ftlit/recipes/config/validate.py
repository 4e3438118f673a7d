"""Check a config against the signatures of the classes and functions that it names, before anything is built."""

import inspect
import re
from collections import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules, resolve_name
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from ftlit.data.dataset import wrong_class_names
from ftlit.data.input_spec import InputSpec
from ftlit.data.tokens import TextSpec
from ftlit.errors import UserError, closest, one_line, shorten, unknown
from ftlit.finetuning.losses import LOSSES
from ftlit.finetuning.presets import SCHEDULES
from ftlit.lit import datamodules
from ftlit.lit.datamodules.image_data import DATA_SOURCES
from ftlit.models.heads import HEADS
from ftlit.recipes.config import check_values
from ftlit.recipes.config.hydra_internals import choices, hydra_config
from ftlit.recipes.config.option_names import lacks_argument, renamed_option
from ftlit.recipes.config.overrides import chosen_part, given, overlay_of
from ftlit.recipes.config.ranges import HARDWARE_SETTINGS
from ftlit.recipes.config.synonyms import synonym
from ftlit.registry import Registry
from ftlit.renamed import new_path
from ftlit.zoo import BACKBONES

# config group -> its built-in parts
REGISTRIES: Mapping[str, Registry[Any]] = {
    "backbone": BACKBONES,
    "data": DATA_SOURCES,
    "head": HEADS,
    "loss": LOSSES,
    "schedule": SCHEDULES,
}

PASSED: Mapping[str, tuple[str, ...]] = {  # config group -> arguments that the recipe gives, and no user
    "data": ("input_spec",),
    "head": ("in_features", "num_classes"),
    "loss": ("counts",),
    "schedule": ("layers",),
}

FLAGS: Mapping[str, tuple[object, ...]] = {  # keys that Hydra reads in a node -> their values
    "_partial_": (False, True),
    "_recursive_": (True, False),
    "_convert_": ("none", "partial", "object", "all"),
}


def bind(cfg: DictConfig) -> None:
    """Check every node of `cfg` that has a `_target_`: its names are arguments of the target, and plain values have the annotated type.
    Then check values as `check_values.check` does.

    Only annotations of numbers, strings, paths, literals, lists and mappings are checked.

    Raises:
        UserError: the full name of the value, what was given, and what is accepted.
    """
    for name, node in _targets(cfg):
        target = _found(name, node["_target_"])
        _check_flags(name, node)
        signature = inspect.signature(target)
        open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        written: Any = OmegaConf.to_container(node)
        for key in (key for key in map(str, node) if not key.startswith("_")):
            if key not in signature.parameters:
                if open_ended:
                    continue
                full_name = f"{name}.{key}"
                known = _left_over(name, key) or renamed_option(full_name) or synonym(full_name, written[key])
                raise known or _refused(name, key, written[key], [p for p in signature.parameters if p not in PASSED.get(name, ())])
            if OmegaConf.is_missing(node, key):
                raise UserError(f"{name}.{key} has no value: give {name}.{key}=...")
            hint = _hints(target).get(key)
            if f"{name}.{key}" in HARDWARE_SETTINGS and hint is not None:
                hint = Literal["auto"] | hint
            _check(_interpolated_name(written[key]) or f"{name}.{key}", node[key], hint)
    check_values.check(cfg)


def _left_over(name: str, key: str) -> UserError | None:
    """The error for a value of the chosen option that the target of the command line does not take; `None` for a given value."""
    if hydra_config() is None or not (target := given(f"{name}._target_")) or given(f"{name}.{key}"):
        return None
    return UserError(f"{target[-1].lstrip('+')} does not take {key!r}, which {name}={choices().get(name)} sets: add '~{name}.{key}'")


def _refused(name: str, key: str, value: object, takes: Sequence[str]) -> UserError:
    """The error for a value that the target of a node does not take, with the overlay that sets it."""
    option = choices().get(name) if hydra_config() is not None else None
    chosen = chosen_part(name, option) if option else f"the chosen {name}"
    lacking = lacks_argument(chosen, key, takes) if name == "backbone" else None
    error = lacking or unknown("option", f"{name}.{key}", [f"{name}.{p}" for p in takes])
    overlay = overlay_of(f"{name}.{key}")
    return UserError(f"{overlay} sets {name}.{key}={value}, but {error}") if overlay else error


def _check_flags(name: str, node: DictConfig) -> None:
    """Check Hydra's own keys in a node."""
    for key, options in FLAGS.items():
        if (given := node.get(key, options[0])) not in options or type(given) is not type(options[0]):
            raise check_values.not_among(f"{name}.{key}", given, options)


def check_labelled(data: Any) -> None:
    """Raise `UserError` for data without labels, from which only pretraining learns, and for class names that are not different texts."""
    if not data.num_classes:
        raise UserError("the images have no labels: give labelled data, or recipe=pretrain pretrain=autoencoder")
    names, owner = list(getattr(data, "class_names", ())), type(data).__name__
    if len(names) != data.num_classes:
        raise UserError(f"class_names of {owner} has {len(names)} names for {data.num_classes} classes: give one name per class")
    if wrong := wrong_class_names(names):
        raise UserError(f"class_names of {owner} has {shorten(wrong)}: give each class a different str")


def check_input(cfg: DictConfig, input_spec: object) -> None:
    """Check that network and data both take images, or both take texts, by the signature of the data.

    Raises:
        UserError: what each takes, and what to give.
    """
    wanted = _hints(_found("data", cfg.data._target_)).get("input_spec")
    if wanted is InputSpec and isinstance(input_spec, TextSpec):
        raise UserError("the backbone takes texts, but the data are images: give data=text_csv data.csv=..., or a backbone for images")
    if wanted is TextSpec and isinstance(input_spec, InputSpec):
        raise UserError("the backbone takes images, but the data are texts: give backbone=bert backbone.name=..., or image data")


def _found(name: str, path: Any) -> Callable[..., Any]:
    if not isinstance(path, str):
        raise UserError(f"{name}._target_={path}: give the import path of a class or function")
    try:
        return resolve_name(path)  # type: ignore[no-any-return]  # Hydra's get_object logs what it raises
    except (ImportError, AttributeError, ValueError) as error:  # no module, no such name in it, an empty part
        raise UserError(f"{name}._target_={path} cannot be imported: {_why(name, path, error)}") from error


def _why(name: str, path: str, error: Exception) -> str:
    """The new path of a class that moved; else the closest built-in part, or name in the user's module; else Python's error."""
    if new := new_path(path):
        return f"it has moved; give {name}._target_={new}"
    if name in REGISTRIES and path.startswith("ftlit."):
        registry = REGISTRIES[name]
        for found in iter_modules(datamodules.__path__, f"{datamodules.__name__}."):
            import_module(found.name)  # data sources register; only this error needs all
        return str(unknown(registry.noun, path, [f"{part.__module__}.{part.__qualname__}" for part in registry.values()]))
    module, _, leaf = path.rpartition(".")
    try:
        return f"{module} has {unknown('name', leaf, [other for other in dir(import_module(module)) if not other.startswith('_')])}"
    except Exception as fault:  # a module can raise anything
        return one_line(fault if module else error)


def _targets(node: Any, name: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Full name and node of each node with a `_target_`; not of those behind an interpolation, nor of Hydra's own."""
    if not isinstance(node, DictConfig):
        return
    if OmegaConf.is_missing(node, "_target_"):
        raise UserError(f"{name}._target_ has no value: give {name}._target_=...")
    if "_target_" in node:
        yield name, node
    for key in node:
        leaf = str(key)
        written = not OmegaConf.is_interpolation(node, leaf) and not OmegaConf.is_missing(node, key)
        if written and (name or leaf != "hydra"):
            yield from _targets(node[key], f"{name}.{leaf}" if name else leaf)


def _interpolated_name(written: object) -> str | None:
    """`trainer.max_epochs` where a value is written `${trainer.max_epochs}`: the user gave that name."""
    found = re.fullmatch(r"\$\{([\w.]+)\}", str(written))
    return found[1] if found else None


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(inspect.getattr_static(target, "__init__") if isinstance(target, type) else target)
    except (NameError, TypeError):  # annotations that only a type checker can read
        return {}


def _check(name: str, value: Any, hint: Any) -> None:
    alternatives = list(get_args(hint)) if get_origin(hint) in (Union, UnionType) else [hint]
    is_node = isinstance(value, DictConfig) and "_target_" in value.keys()  # also where it has no value yet
    if all(get_origin(kind) is abc.Callable for kind in alternatives) and not is_node:
        raise UserError(f"{name}={value}: a class or function is needed; give {name}._target_=... and its arguments")
    types: list[Any] = []  # or values of a Literal
    for alternative in alternatives:
        types += get_args(alternative) if get_origin(alternative) is Literal else [get_origin(alternative) or alternative]
    plain = [kind for kind in types if isinstance(kind, str) or kind in _TESTS]
    # a config holds plain values: they never stand for a class (a tensor, a strategy) among the alternatives
    others = [kind for kind in types if kind not in plain]
    objects = isinstance(value, ListConfig) and all(map(_takes_no_list, others))
    built = isinstance(value, DictConfig | ListConfig) and bool(others) and not objects
    unchecked = not plain or built or any(kind in (Any, object) or _is_enum(kind) for kind in types)
    if not unchecked and not any(_is(value, kind) for kind in plain):
        near = closest(value, [kind for kind in plain if isinstance(kind, str)]) if isinstance(value, str) else None
        meant = f"did you mean {near}? Accepted: " if near else "give "
        raise UserError(f"{name}={value!r}: {meant}{' or '.join(_expected(kind, value) for kind in plain)}")
    for inner in _element_types(alternatives) if isinstance(value, ListConfig) else ():
        for i, part in enumerate(value):
            _check(f"{name}[{i}]", part, inner)


def _element_types(alternatives: Sequence[Any]) -> Iterator[Any]:
    """The annotated types of the elements of a list."""
    return (get_args(kind)[0] for kind in alternatives if get_origin(kind) in (list, Sequence) and len(get_args(kind)) == 1)


def _takes_no_list(kind: Any) -> bool:
    """Whether an annotation is a class, such as a tensor, whose place a list cannot take."""
    lists = (abc.Sequence, abc.Set, abc.Mapping)
    return isinstance(kind, type) and not issubclass(kind, lists) and kind not in (abc.Iterable, abc.Collection)


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


_TESTS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    NoneType: ("null", lambda v: v is None),
    bool: ("true or false", lambda v: isinstance(v, bool)),
    int: ("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    float: ("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    str: ("a string", lambda v: isinstance(v, str)),
    Path: ("a path", lambda v: isinstance(v, str)),
    list: ("a list, [a, b]", lambda v: isinstance(v, ListConfig)),
    tuple: ("a list, [a, b]", lambda v: isinstance(v, ListConfig)),
    Sequence: ("a list, [a, b]", lambda v: isinstance(v, ListConfig)),
    dict: ("a mapping, {a: b}", lambda v: isinstance(v, DictConfig)),
    Mapping: ("a mapping, {a: b}", lambda v: isinstance(v, DictConfig)),
}


def _is(value: Any, kind: Any) -> bool:
    return bool(value == kind) if isinstance(kind, str) else _TESTS[kind][1](value)


def _expected(kind: Any, value: Any) -> str:
    """An accepted type in words; of a list, the value given as one."""
    text = kind if isinstance(kind, str) else _TESTS[kind][0]
    return f"a list, [{value}]" if isinstance(value, str) and text.startswith("a list") else text
