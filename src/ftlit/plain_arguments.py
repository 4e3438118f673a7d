"""Check the types of arguments from Python by their annotations, and their names: a wrong one is an error in one line with its name."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin

from ftlit.errors import UserError, in_quotes, unknown

Passed = ParamSpec("Passed")
Returned = TypeVar("Returned")
Called = TypeVar("Called", bound=Callable[..., Any])
Kind = tuple[str, Callable[[Any], bool]]  # what is accepted, in words; whether a value is that

KINDS: dict[Any, Kind] = {
    NoneType: ("None", lambda value: value is None),
    None: ("None", lambda value: value is None),
    bool: ("True or False", lambda value: isinstance(value, bool) or (type(value).__module__ == "numpy" and value.dtype == bool)),
    int: ("a whole number", lambda value: isinstance(value, Integral) and not isinstance(value, bool)),
    float: ("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool)),
    str: ("a text", lambda value: isinstance(value, str)),
    Path: ("a path", lambda value: isinstance(value, str | PathLike)),
    PathLike: ("a path", lambda value: isinstance(value, str | PathLike)),
}
LISTS = (list, Sequence, Collection, Iterable)


def plain_arguments(function: Callable[Passed, Returned]) -> Callable[Passed, Returned]:
    """Let a function check its arguments whose annotation has only numbers, texts, paths, true or false, lists, `None` and classes.

    The function then raises `UserError` for a value of another type. Elements of lists are not checked.

    >>> @plain_arguments
    ... def halve(number: float | None, names: Sequence[str] = ()) -> None: ...
    >>> halve("0.5")
    Traceback (most recent call last):
    ftlit.errors.UserError: number='0.5': give a number or None ('0.5' is a text: give 0.5 without quotes)
    """
    parameters = signature(function).parameters
    kinds = {name: _kinds_of(parameter) for name, parameter in parameters.items()}

    @wraps(function)
    def checking(*args: Passed.args, **options: Passed.kwargs) -> Returned:
        for name, value in [*zip(parameters, args, strict=False), *options.items()]:
            _check(name, value, kinds.get(name, ()))
        return function(*args, **options)

    return checking


def known_arguments(**elsewhere: str) -> Callable[[Called], Called]:
    """Let a function or a class raise `UserError` for an argument that it does not have.

    Args:
        elsewhere: name of an argument that users may expect -> what to do in its place. Other names: the closest one is named.

    >>> @known_arguments(lr="give it to the optimizer")
    ... def train(epochs: int) -> None: ...
    >>> train(lr=0.1)
    Traceback (most recent call last):
    ftlit.errors.UserError: train has no argument 'lr': give it to the optimizer
    """

    def decorate(called: Called) -> Called:
        function: Any = called.__init__ if isinstance(called, type) else called  # type: ignore[misc]
        names, owner = list(signature(called).parameters), called.__name__

        @wraps(function)
        def checking(*args: Any, **options: Any) -> Any:
            if wrong := next((name for name in options if name not in names), None):
                if wrong in elsewhere:
                    raise UserError(f"{owner} has no argument {wrong!r}: {elsewhere[wrong]}")
                raise unknown("argument", wrong, names, owner=owner)
            return function(*args, **options)

        if isinstance(called, type):
            called.__init__ = checking  # type: ignore[misc]
            return called
        return checking  # type: ignore[return-value]

    return decorate


def _kinds_of(parameter: Parameter) -> Sequence[Kind]:
    """The kinds of an argument; none where its annotation has one that is not checked."""
    hint = parameter.annotation
    found = [_kind_of(one) for one in (get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,))]
    variadic = parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return () if variadic or None in found else [kind for kind in found if kind]


def _kind_of(hint: Any) -> Kind | None:
    origin = get_origin(hint) or hint
    if origin in LISTS:
        of_texts = any(str in (element, *get_args(element)) for element in get_args(hint))
        return "a list", lambda value: isinstance(value, Iterable) and (of_texts or not isinstance(value, str))
    if origin in KINDS:
        return KINDS[origin]
    plain = isinstance(hint, type) and hint not in (Any, object, Parameter.empty) and hint.__module__ not in ("builtins", "collections.abc")
    return (
        (f"an object {_example_of(hint) or f'of the class {hint.__name__}'}", lambda value: isinstance(value, hint))
        if plain and not _is_protocol(hint)
        else None
    )


def _example_of(hint: type) -> str:
    """What makes an object of a class of plain values, by its first field; empty for other classes and for one without a default there."""
    first = next(iter(fields(hint)), None) if is_dataclass(hint) else None
    return "" if first is None or first.default is MISSING else f"such as {hint.__name__}({first.name}={first.default!r})"


def _is_protocol(hint: type) -> bool:
    return bool(getattr(hint, "_is_protocol", False))


def _check(name: str, value: object, kinds: Sequence[Kind]) -> None:
    if not kinds or any(test(value) for _, test in kinds):
        return
    accepted = list(dict.fromkeys(words for words, _ in kinds))
    given = f"{name}={value!r}" if isinstance(value, str | int | float | None) else f"{name} has the type {type(value).__name__}"
    if isinstance(value, type):
        given = f"{name} is the class {value.__name__} itself"
    quoted = in_quotes(value) if any("number" in words for words in accepted) else ""
    raise UserError(f"{given}: give {' or '.join(accepted)}{quoted}")
