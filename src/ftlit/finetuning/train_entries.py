"""The entries of a stage's `train`: a pattern of layers, and which of their parameters train: all, biases, norms, or LoRA matrices."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from torch import nn

from ftlit import patterns
from ftlit.errors import UserError, shorten, unknown
from ftlit.models.lora import lora_parameters

LayerPart = Literal["all", "bias", "norm", "lora"]
Entry = str | tuple[str, LayerPart]  # a pattern alone: all of its parameters
Given = str | Sequence[str | tuple[str, LayerPart] | Mapping[str, LayerPart]] | Mapping[str, LayerPart]
PARTS: tuple[LayerPart, ...] = get_args(LayerPart)
ADD_LORA = "call ftlit.add_lora(self.NAME), with the name of the backbone, in __init__ of the module"


def entries_of(train: Given) -> tuple[Entry, ...]:
    """The entries of `train` as a user may give it.

    Args:
        train: a pattern, or a list of patterns, of pairs (pattern, part) and of mappings pattern -> part, or one such mapping.

    Raises:
        UserError: an unknown part, or another type.

    >>> entries_of(["head", {"backbone.layer4": "bias"}])
    ('head', ('backbone.layer4', 'bias'))
    """
    several = isinstance(train, Iterable) and not isinstance(train, str | Mapping)
    return tuple(entry for given in (train if several else [train]) for entry in _entries(given))


def _entries(given: object) -> Iterable[Entry]:
    if isinstance(given, str):
        return [given]
    pairs: list[Any] = list(given.items()) if isinstance(given, Mapping) else [given]
    for pair in pairs:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            parts = f"a part of a layer such as {{head: bias}} (a part is {' or '.join(PARTS)})"
            raise UserError(f"`train` of a stage has {pair!r}, which is not the name of a layer: give a name such as head, or {parts}")
        if pair[1] not in PARTS:
            raise unknown("part", pair[1], PARTS, owner=f"{pair[0]!r} in `train`")
    return [pattern if part == "all" else (pattern, part) for pattern, part in pairs]


def pattern_of(entry: Entry) -> str:
    """The pattern of an entry."""
    return entry if isinstance(entry, str) else entry[0]


def part_of(entry: Entry) -> LayerPart:
    """The part of an entry."""
    return "all" if isinstance(entry, str) else entry[1]


def whole_layers(entries: Sequence[Entry]) -> list[str]:
    """The patterns of the entries that train all parameters."""
    return [entry for entry in entries if isinstance(entry, str)]


def with_pattern(entry: Entry, pattern: str) -> Entry:
    """The entry with another pattern."""
    return pattern if isinstance(entry, str) else (pattern, entry[1])


def describe(entry: Entry) -> str:
    """The entry as text: `head`, `backbone (bias)`."""
    return entry if isinstance(entry, str) else f"{entry[0]} ({entry[1]})"


def select(module: nn.Module, entries: Sequence[Entry]) -> set[str]:
    """The names of the parameters that at least one entry covers.

    Raises:
        UserError: entries that cover nothing.
    """
    named = dict(module.named_parameters(remove_duplicate=False))
    modules = {name for name, _ in module.named_modules()}
    for pattern in map(pattern_of, entries):
        if pattern in modules and not any(patterns.covers(pattern, name) for name in named):
            raise UserError(f"`train` has {pattern!r}, a module without parameters: leave it out")
    patterns.check_used(map(pattern_of, entries), list(named))
    chosen: set[str] = set()
    for entry in entries:
        covered = set(patterns.select([pattern_of(entry)], named))
        own = covered if isinstance(entry, str) else covered & _names(module, named, entry[1])
        if not own:
            raise UserError(f"`train` has {describe(entry)}, but {entry[0]} has {_lacking(entry[1], covered)}")
        chosen |= own
    return chosen


def _names(module: nn.Module, named: Mapping[str, nn.Parameter], part: str) -> set[str]:
    """The names of all biases, parameters of norms, or LoRA matrices of a module."""
    if part == "bias":
        return {name for name, parameter in named.items() if name.endswith("bias") and parameter.ndim == 1}
    norms = filter(_is_norm, module.modules())
    found = lora_parameters(module) if part == "lora" else {parameter for norm in norms for parameter in norm.parameters(False)}
    ids = {id(parameter) for parameter in found}
    return {name for name, parameter in named.items() if id(parameter) in ids}


def _is_norm(module: nn.Module) -> bool:
    """By the name of its class: torch's norms have no common base class, and networks have norms of their own."""
    return any("norm" in cls.__name__.lower() for cls in type(module).__mro__)


def _lacking(part: str, covered: Iterable[str]) -> str:
    if part == "lora":
        return f"no LoRA matrices: {ADD_LORA}"
    return f"no {'biases' if part == 'bias' else 'norms'}, only {shorten(sorted(covered), most=3)}: leave out this entry"
