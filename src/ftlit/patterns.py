"""Match parameters by name patterns. The first match wins, every name is covered, every pattern is used.

A pattern names a parameter (`head.weight`), a module above it (`backbone.layer4`), or is a glob over either
(`*.bias`, `backbone.layer[34]`, `*`; a star crosses dots).
"""

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

from ftlit.errors import UserError, shorten

T = TypeVar("T")


def covers(pattern: str, name: str) -> bool:
    """Whether `pattern` covers the parameter called `name`.

    >>> covers("backbone.layer4", "backbone.layer4.0.conv1.weight"), covers("*.bias", "head.bias")
    (True, True)
    >>> covers("backbone.layer1", "backbone.layer10.weight")
    False
    """
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def names_of(given: str | Iterable[str]) -> tuple[str, ...]:
    """The patterns or names that were given; one text is one of them.

    >>> names_of("attn"), names_of(["attn", "mlp"])
    (('attn',), ('attn', 'mlp'))
    """
    return (given,) if isinstance(given, str) else tuple(given)


def select(patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    """The names that at least one pattern covers, in their own order.

    Raises `UserError` for the patterns that cover nothing, which are typing errors.
    """
    names = list(names)
    check_used(patterns, names)
    return [name for name in names if any(covers(pattern, name) for pattern in patterns)]


def first_match(rules: Sequence[tuple[str, T]], names: Iterable[str]) -> dict[str, tuple[str, T]]:
    """For each name the first rule (pattern, value) that covers it.

    Raises `UserError` for names that no rule covers and patterns that cover nothing, in one message, and for a rule that is the first for
    no name, because the rules before it cover all that it covers.
    """
    names = list(names)
    patterns = [pattern for pattern, _ in rules]
    found = {name: next((i for i, pattern in enumerate(patterns) if covers(pattern, name)), None) for name in names}
    uncovered = [name for name, place in found.items() if place is None]
    idle_patterns = [pattern for pattern in dict.fromkeys(patterns) if not any(covers(pattern, name) for name in names)]
    if uncovered:
        noun, modules = "parameter" if len(uncovered) == 2 else "parameters", not_covered(patterns, names)
        where = f"{len(modules)} modules ({', '.join(modules[:3])}, ...)" if len(modules) > 3 else shorten(modules)
        others = f" and {len(uncovered) - 1} other {noun}, in {where}" if uncovered[1:] else ""
        missing = f"no pattern matches {uncovered[0]!r}{others}: add a pattern at the end, such as '*' for all other parameters"
        raise UserError("; ".join([*(str(idle(pattern, names)) for pattern in idle_patterns), missing]))
    check_used(idle_patterns, names)
    places = {name: place for name, place in found.items() if place is not None}
    used = set(places.values())
    for i, (pattern, _) in enumerate(rules):
        if i not in used:  # by position: a pattern that is given twice is unused the second time
            if pattern in (earlier := [other for other, _ in rules[:i]]):
                raise UserError(f"pattern {pattern!r} is given twice: remove one of the two")
            covered = [name for name in names if covers(pattern, name)]
            before = [repr(earlier[place]) for place in sorted({places[name] for name in covered})]
            raise UserError(
                f"pattern {pattern!r} has no effect, because the patterns before it ({shorten(before)}) match all of its parameters: "
                f"move {pattern!r} before {before[0]}"
            )
    return {name: rules[place] for name, place in places.items()}


def check_used(patterns: Iterable[str], names: Sequence[str]) -> None:
    """Raise `UserError` for the patterns that cover none of `names`, all in one message."""
    if wrong := [idle(pattern, names) for pattern in dict.fromkeys(patterns) if not any(covers(pattern, name) for name in names)]:
        raise wrong[0] if not wrong[1:] else UserError("; ".join(map(str, wrong)))


def not_covered(patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    """The outermost modules, or single parameters, of which no pattern covers a parameter.

    >>> not_covered(["net.layer4", "net.fc"], ["net.conv1.weight", "net.layer3.0.weight", "net.layer4.0.weight", "net.fc.bias"])
    ['net.conv1', 'net.layer3']
    """
    names = list(names)
    return outermost([name for name in names if not any(covers(pattern, name) for pattern in patterns)], names)


def outermost(chosen: Collection[str], names: Iterable[str]) -> list[str]:
    """The outermost modules, or single parameters, that hold the parameters `chosen`, and no other one of `names`.

    >>> outermost(["conv1.weight", "bn1.weight", "bn1.bias"], ["conv1.weight", "bn1.weight", "bn1.bias", "fc.weight"])
    ['conv1', 'bn1']
    """
    others = {prefix for name in set(names).difference(chosen) for prefix in prefixes(name)}
    return list(dict.fromkeys(next(prefix for prefix in prefixes(name) if prefix not in others) for name in chosen if name not in others))


def idle(pattern: str, names: Sequence[str]) -> UserError:
    """The error for a pattern that covers none of `names`, with the closest match."""
    modules = dict.fromkeys(part for name in names for part in prefixes(name))
    suffixes = {known.rsplit(".", 1)[-1]: known for known in reversed(modules)}
    near = get_close_matches(pattern, modules, n=1, cutoff=0.6)
    leaf = pattern.rsplit(".", 1)[-1]
    last = [suffixes[leaf]] if leaf in suffixes else [suffixes[k] for k in get_close_matches(leaf, suffixes, n=1, cutoff=0.6)]
    meant = next(iter(last if last and "." not in pattern else near or last), None)
    tops = dict.fromkeys(known for known in modules if known.count(".") <= 1)
    hint = f"did you mean {meant!r}? The names are" if meant else "the names are"
    return UserError(f"pattern {pattern!r} matches no parameter: {hint} {shorten(tops)}")


def outermost_first(names: Iterable[str]) -> list[str]:
    """Names of modules, those with the fewest modules around them first; without the empty name of the module itself.

    >>> outermost_first(["", "encoder", "encoder.0", "encoder.0.conv", "fc"])
    ['encoder', 'fc', 'encoder.0', 'encoder.0.conv']
    """
    return sorted(filter(None, names), key=lambda name: name.count("."))


def prefixes(name: str) -> list[str]:
    """The modules that contain a parameter, the outermost first, and the parameter itself.

    >>> prefixes("encoder.3.weight")
    ['encoder', 'encoder.3', 'encoder.3.weight']
    """
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
