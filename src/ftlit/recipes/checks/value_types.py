"""Compare values of a config with annotated types, and word what is accepted."""

import re
from collections import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from omegaconf import DictConfig, ListConfig

from ftlit.errors import UserError, closest, in_quotes

MANY_VALUES = 10  # that are not written one by one
USUAL_PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")  # shown of the many that `trainer.precision` takes


def check_type(name: str, value: Any, hint: Any) -> None:
    """Raise `UserError` if the value of an option is not of the annotated type."""
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
        quoted = in_quotes(value) if {int, float} & set(plain) else ""
        several = several_values(name, value) if int in plain or (float in plain and isinstance(value, ListConfig)) else ""
        accepted = _alternatives([_expected(kind, value) for kind in plain if kind is not int or float not in plain])
        raise UserError(f"{name}={value!r}: {meant}{accepted}{quoted}{several}")
    for inner in _element_types(alternatives) if isinstance(value, ListConfig) else ():
        for i, part in enumerate(value):
            check_type(f"{name}[{i}]", part, inner)


def several_values(name: str, value: Any) -> str:
    """The end of an error for a range, or a list of numbers, that should be a number: how a sweep over its numbers is given.

    >>> several_values("seed", "1..3"), several_values("seed", "first")
    ('; for a sweep over these values, give -m seed=1,2,3', '')
    """
    if isinstance(value, ListConfig):
        are_numbers = len(value) > 1 and all(_is(part, float) for part in value)
        return f"; for a sweep over these values, give -m {name}={','.join(map(str, value))}" if are_numbers else ""
    found = re.fullmatch(r"(\d{1,6})(?:\.\.\.?|-|:)(\d{1,6})", str(value))
    numbers = range(int(found[1]), int(found[2]) + 1) if found else range(0)
    short = f"range({numbers[0]},{numbers[-1] + 1})" if len(numbers) > MANY_VALUES else ",".join(map(str, numbers))
    return f"; for a sweep over these values, give -m {name}={short}" if numbers else ""


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
    list: ("a list", lambda v: isinstance(v, ListConfig)),
    tuple: ("a list", lambda v: isinstance(v, ListConfig)),
    Sequence: ("a list", lambda v: isinstance(v, ListConfig)),
    dict: ("a mapping, {a: b}", lambda v: isinstance(v, DictConfig)),
    Mapping: ("a mapping, {a: b}", lambda v: isinstance(v, DictConfig)),
}


def _is(value: Any, kind: Any) -> bool:
    return bool(value == kind) if isinstance(kind, str) else _TESTS[kind][1](value)


def _alternatives(words: list[str]) -> str:
    """The accepted values; of many, as those of `trainer.precision`, the usual ones."""
    usual = [word for word in USUAL_PRECISIONS if word in words]
    return f"{' or '.join(usual)} (and {len(words) - len(usual)} more)" if len(usual) > 1 else " or ".join(words)


def _expected(kind: Any, value: Any) -> str:
    """An accepted type in words; of a list, the value given as one."""
    text = kind if isinstance(kind, str) else _TESTS[kind][0]
    is_plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return f"a list, such as [{value}]" if is_plain and text == "a list" else text
