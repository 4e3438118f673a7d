"""Errors of the user, one line each: what was given, what is accepted, the closest match."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from math import isfinite

SYNONYMS = {"mean": "average", "avg": "average"}  # of which another name is nearer by its letters


class UserError(ValueError):
    """Input that cannot be used. Its text is one line; the command line prints it and exits with status 2."""


def unknown(what: str, given: object, options: Iterable[object]) -> UserError:
    """The error for a name that is not among `options`, with the closest match first.

    >>> print(unknown("layer", "layr4", ["stem", "layer4"]))
    no layer 'layr4': did you mean 'layer4'? There are: stem, layer4
    >>> print(unknown("layer", 7, ["stem", "layer4"]))
    no layer 7: give one of stem, layer4
    >>> print(unknown("argument", "width", []))
    no argument 'width': there are no arguments, so leave it out
    """
    names = [str(option) for option in options]
    if not names:
        return UserError(f"no {what} {given!r}: there are no {what}s, so leave it out")
    meant = closest(given, names)
    there = f"did you mean {meant!r}? There are:" if meant else "give one of"
    return UserError(f"no {what} {given!r}: {there} {shorten(names)}")


def closest(given: object, names: Sequence[str]) -> str | None:
    """The name that is most like the given one; `None` where none is."""
    if (other := SYNONYMS.get(str(given))) in names:
        return other
    near = get_close_matches(str(given), names, n=1, cutoff=0.5)
    plain = {_plain(name): name for name in names}
    return plain.get(_plain(str(given))) or (near[0] if near else None)


def _plain(name: str) -> str:
    """A name without the differences between `ResNet-50` and `resnet50`."""
    return name.casefold().replace("-", "").replace("_", "")


def in_quotes(value: object) -> str:
    """The end of an error for a value that should be a number: says so where it is one, written as a text.

    >>> in_quotes("32"), in_quotes("many"), in_quotes(32)
    (" ('32' is a text: give 32 without quotes)", '', '')
    """
    try:
        number = isinstance(value, str) and isfinite(float(value))
    except ValueError:
        return ""
    return f" ({value!r} is a text: give {value} without quotes)" if number else ""


def shorten(items: Iterable[object], most: int = 12) -> str:
    """The first `most` items, comma separated, and the number of all items if there are more.

    >>> shorten("abcd", most=2)
    'a, b, ... (4 in all)'
    """
    texts = [str(item) for item in items]
    rest = f", ... ({len(texts)} in all)" if len(texts) > most else ""
    return ", ".join(texts[:most]) + rest


def one_line(error: BaseException) -> str:
    """The text of an error on one line; the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
