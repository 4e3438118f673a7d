"""Values of the command line that are taken as they stand: paths, columns and separators. Hydra's grammar would refuse many of them."""

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ftlit.errors import UserError
from ftlit.formatting import printable

LITERAL = re.compile(
    r"""(?P<name>\+{0,2}(?:
        backbone\.(?:weights|name)
        |init_from
        |paths\.\w+
        |data\.(?:\w+_)?(?:csv|column|separator|pattern|from)
        |hydra\.(?:run|sweep)\.(?:dir|subdir)
        |(?:\w+\.)+(?:\w+_)?(?:root|folder|dir|dirpath|path|file|filename)
    ))=(?P<value>.*)""",
    re.VERBOSE | re.DOTALL,
)
QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
KEYWORDS = re.compile(r"null|\?\?\?|", re.IGNORECASE)  # no value, a missing value, an empty text
TYPED = re.compile(r"[+-]?[\d_]*\.?[\d_]*(e[+-]?[\d_]+)?|[+-]?(inf|nan)|true|false|null", re.IGNORECASE)  # what Hydra reads as no text
FUNCTION = re.compile(r"(?:choice|range|interval|glob|sort|shuffle|tag)\(.*\)", re.DOTALL)  # of Hydra, for sweeps
NAMES = ("backbone.name", "backbone.weights")  # a name or a path


def quote_literals(words: Sequence[str], *, sweep: bool) -> list[str]:
    """Put quotes around the values of parameters that are paths or other plain texts.

    `${...}` inside stays an interpolation, a quoted value and `null` stay as they are. In a sweep, commas separate values, unless they are
    part of the name of something that exists.

    Args:
        words: of the command line.
        sweep: whether they are of a sweep.

    Raises:
        UserError: a value that is no text in UTF-8, which no config file can hold.

    >>> print(*quote_literals(["data.root=photos (1)", "backbone.weights='a,b.pth'", "cache.folder=null"], sweep=False))
    data.root='photos (1)' backbone.weights='a,b.pth' cache.folder=null
    >>> print(*quote_literals(["data.root=a (1),b"], sweep=True))
    data.root='a (1)',b
    """
    return [_quote_word(found["name"], found["value"], sweep) if (found := LITERAL.fullmatch(word)) else word for word in words]


def quote(value: str) -> str:
    r"""A value as Hydra's grammar reads it.

    >>> print(quote("runs/a-1"), quote("it's, a=b"), quote("2024"))
    runs/a-1 'it\'s, a=b' '2024'
    """
    if re.fullmatch(r"[\w./-]+", value, re.ASCII) and not TYPED.fullmatch(value):
        return value
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{escaped}'"


def text_of(value: Any) -> str:
    """A value as Hydra's grammar reads it, a number of NumPy as one of Python. Raises `UserError` for one that a config file cannot hold.

    >>> print(text_of(None), text_of(True), text_of(1e-3), text_of("a, b"), text_of([1, "x"]), text_of({"lr": 0.1}))
    null true 0.001 'a, b' [1,x] {lr:0.1}
    """
    value = value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | PathLike):
        return quote(str(value)) if str(value) else "''"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_escaped(str(name))}:{text_of(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(text_of, value)) + "]"
    raise UserError(
        f"options: {value!r} has the type {type(value).__name__}: give a text, a number, True, False, None, or a list or dict of these"
    )


def _escaped(name: str) -> str:
    """A key of a mapping: Hydra reads none with quotes around it."""
    return re.sub(r"[\\()\[\]{}:=, \t]", r"\\\g<0>", name)


def _quote_word(name: str, value: str, sweep: bool) -> str:
    _check_utf8(name, value)
    own = name.lstrip("+")
    is_list = "," in value.strip(",") and not own.startswith("hydra.") and not _exists(value)
    hydras = sweep and FUNCTION.fullmatch(value)
    if hydras or (not sweep and is_list and own in NAMES) or (re.fullmatch(r"\[.*\]", value) and is_list):
        return f"{name}={value}"  # Hydra reads it, or says what to give
    return f"{name}={','.join(map(_quote_value, _split(value) if sweep and is_list else [value]))}"


def _split(value: str) -> list[str]:
    """The values between commas; within the name of something that exists, and within quotes, a comma separates nothing."""
    paths = _joined(value.split(","))
    if all(map(_exists, paths)):
        return paths
    return _joined([found[0] for found in re.finditer(rf"(?:{QUOTED.pattern}|[^,])+", value, re.DOTALL)])


def as_typed(word: str) -> str:
    """A word of a job, where Hydra writes true and false as Python does.

    >>> as_typed("report=False"), as_typed("name='False'")
    ('report=false', "name='False'")
    """
    return re.sub(r"=(True|False)$", lambda found: found[0].lower(), word)


def _joined(parts: list[str]) -> list[str]:
    """Join neighbours that are the name of something that exists with the commas between them, the longest such name first."""
    values: list[str] = []
    while parts:
        most = next((n for n in range(len(parts), 1, -1) if _exists(",".join(parts[:n]))), 1)
        values.append(",".join(parts[:most]))
        parts = parts[most:]
    return values


def _quote_value(value: str) -> str:
    return value if QUOTED.fullmatch(value) or KEYWORDS.fullmatch(value) else quote(value)


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # a name that is too long, a null byte, an unknown user
        return False


def _check_utf8(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        text = f"{name}={printable(value)} is not valid UTF-8, which config files need: rename this path, or give a symbolic link to it"
        raise UserError(text) from error
