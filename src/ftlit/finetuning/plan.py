"""The plan of a run: what trains when, in which parameter group, at which rate, as numbers and as text."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ftlit.errors import UserError, shorten, unknown
from ftlit.finetuning.freeze import batchnorm_policies
from ftlit.finetuning.stage import Stage
from ftlit.formatting import count
from ftlit.models.backbone import Backbone
from ftlit.patterns import covers, outermost_first, prefixes

T = TypeVar("T")
MAX_NAMES = 4  # of modules without a row, in the text of a plan


@dataclass(frozen=True)
class LayerRow:
    """The row of a layer; `training` and `batchnorm` have one entry for each stage.

    Args:
        layer: name of the layer: a module, or a parameter that is in no module with a row.
        size: number of values in its parameters.
        first: index of the first stage in which it trains; `None`: never.
        training: number of values that train.
        groups: names of the parameter groups of its parameters.
        rates: base rates of these groups.
        batchnorm: policies of its batch norms, `frozen` if the layer is; empty if it has none.
        trained: number of values that train in some stage.
        factors: of each stage, on all rates (`stage_factors` of `ftlit.Rates`); empty: 1.
    """

    layer: str
    size: int
    first: int | None
    training: tuple[int, ...]
    groups: tuple[str, ...]
    rates: tuple[float, ...]
    batchnorm: tuple[str, ...]
    trained: int
    factors: tuple[float, ...] = ()

    @property
    def modes(self) -> tuple[str, ...]:
        """For each stage `train`, `eval`, or `part` if a part of the layer trains."""
        return tuple("eval" if not number else "train" if number == self.size else "part" for number in self.training)

    @property
    def stages_text(self) -> str:
        """The stages in which the layer trains, with the number of parameters where only a part does: `0-2`, `1 (64 parameters), 2`;
        `never`, or `-` for a layer without parameters.
        """
        if not self.size:
            return "-"
        runs = [(number, stages) for number, stages in _runs(self.training) if number]
        return (
            ", ".join(stages if number == self.size else f"{stages} ({count(number, 'parameter')})" for number, stages in runs) or "never"
        )

    @property
    def rates_text(self) -> str:
        """The rates with which the stages that train the layer begin, by stage where they change: `1.0e-03 in 0, 1.0e-04 in 1-2`; `-` if
        none trains it.
        """
        factors = self.factors or (1.0,) * len(self.training)
        own = zip(self.training, factors, strict=True)
        by_stage = [" ".join(f"{rate * factor:.1e}" for rate in self.rates) if number else None for number, factor in own]
        if len(set(by_stage) - {None}) > 1:
            return ", ".join(f"{rates} in {stages}" for rates, stages in _runs(by_stage) if rates)
        return next((rates for rates in by_stage if rates is not None), "-")

    @property
    def batchnorm_text(self) -> str:
        """The policy of its batch norms in the stages that train it, by stage where it changes; `frozen` if none does."""
        if not self.batchnorm:
            return "-"
        while_trained = [policy if mode != "eval" else None for policy, mode in zip(self.batchnorm, self.modes, strict=True)]
        policies = set(while_trained) - {None}
        if len(policies) > 1:
            return ", ".join(f"{policy} in {stages}" for policy, stages in _runs(while_trained) if policy)
        return next(iter(policies), None) or " + ".join(dict.fromkeys(self.batchnorm))

    def describe(self) -> str:
        """The row as a line of text."""
        norm = f"; batch norm {self.batchnorm_text}" if self.batchnorm else ""
        stages = "never trains" if self.stages_text == "never" else f"trains in stage {self.stages_text}"
        return f"{self.layer}: {count(self.size, 'parameter')}; {stages}; learning rate {self.rates_text}{norm}"


@dataclass(frozen=True)
class Plan:
    """A schedule applied to a module, as text and numbers.

    Args:
        stages: one line for each stage.
        rows: one for each layer.
        reduced: for each stage the bytes of gradients that a step exchanges between processes (`ddp`).
        warnings: likely mistakes that are not errors, one line each.
        steps: optimizer steps of the whole training, if known.
        optimizer: name of its class.
        weight_decays: of the parameter groups, each once, smallest first; empty if the optimizer has none.
        without_row: the outermost modules with parameters that no row covers.
    """

    stages: tuple[str, ...]
    rows: tuple[LayerRow, ...]
    reduced: tuple[int, ...]
    warnings: tuple[str, ...]
    steps: int | None = None
    optimizer: str = ""
    weight_decays: tuple[float, ...] = ()
    without_row: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.describe()

    def describe(self) -> str:
        """Stages, layers (top first), modules without a row, and warnings, a line each."""
        stages = [f"stage {number}, {line}" for number, line in enumerate(self.stages)]
        lines = [*stages, *(row.describe() for row in reversed(self.rows))]
        if self.without_row:
            lines.append(f"in none of these lines: {shorten(self.without_row, most=MAX_NAMES)}")
        return "\n".join([*lines, *self.warning_lines])

    @property
    def warning_lines(self) -> list[str]:
        """The warnings as `describe` prints them."""
        return [f"warning: {text}" for text in self.warnings]


def check_stage_factors(factors: Sequence[float], stages: int) -> None:
    """Raise `UserError` unless there is one factor for each of these stages, or none at all."""
    if len(factors) not in (0, stages):
        raise UserError(
            f"lr_scheduler.stage_factors=[{shorten(factors)}] has {count(len(factors), 'number')}, but the schedule has "
            f"{count(stages, 'stage')}: give one number for each stage"
        )


def row_of(
    module: nn.Module,
    layer: str,
    stages: Sequence[Stage],
    chosen: Sequence[set[str]],
    groups: Mapping[str, Sequence[tuple[str, float]]],
    factors: Sequence[float] = (),
) -> LayerRow:
    """The row of a layer, from the names of the parameters that train in each stage, the group and rate of each parameter, and the factor
    of each stage.
    """
    own = {name: p.numel() for name, p in module.named_parameters() if covers(layer, name)}
    training = tuple(sum(own[name] for name in own.keys() & names) for names in chosen)
    own_groups = dict.fromkeys(pair for name in own for pair in groups[name])
    parts = () if layer in own else module.get_submodule(layer).modules()  # a layer may be a single parameter
    norms = [norm for norm in parts if isinstance(norm, _BatchNorm)]
    return LayerRow(
        layer,
        sum(own.values()),
        next((i for i, number in enumerate(training) if number), None),
        training,
        tuple(name for name, _ in own_groups),
        tuple(dict.fromkeys(rate for _, rate in own_groups)),
        tuple(policy_of(module, stage, names, norms) for stage, names in zip(stages, chosen, strict=True)) if norms else (),
        sum(own[name] for name in own.keys() & set().union(*chosen)),
        tuple(factors),
    )


def policy_of(module: nn.Module, stage: Stage, chosen: set[str], norms: Sequence[nn.Module]) -> str:
    """The policy of these batch norms in a stage: `live`, `frozen_stats`, `frozen`, or several of them."""
    policies = batchnorm_policies(module, stage.policy)
    parameters = dict(module.named_parameters())
    training = {id(parameters[name]) for name in chosen}
    # one without weight and bias has the mode of the module around it, so only its policy counts
    frozen = [any(True for _ in norm.parameters()) and not any(id(p) in training for p in norm.parameters()) for norm in norms]
    return " + ".join(dict.fromkeys("frozen" if is_frozen else policies[norm] for norm, is_frozen in zip(norms, frozen, strict=True)))


def default_layers(module: nn.Module, patterns: Iterable[str] = ()) -> list[str]:
    """The layers of a module in its plan, as they are registered; see `examine`. Where a pattern names a module within a layer, the modules
    and parameters beside it are rows too, so that a missing one is seen.
    """
    # a pattern such as `*.bias` names no module
    globs = [pattern for pattern in dict.fromkeys(patterns) if not pattern.startswith("*")]
    named = {name for name, _ in module.named_parameters() if name in globs}
    for name, _ in module.named_modules():  # a module comes before those within it; `encoder.*` names the outermost ones
        for pattern in globs:
            if name == pattern or (fnmatchcase(name, pattern) and not any(fnmatchcase(above, pattern) for above in prefixes(name)[:-1])):
                named.add(name)
    above = {prefix for name in named for prefix in prefixes(name)[:-1]}
    return [row for layer in _largest_apart(module) for row in _rows_in(module, layer, above)]


def _rows_in(module: nn.Module, name: str, above: Collection[str]) -> list[str]:
    """The module or parameter, or, where others in it are named, its own parameters and its children with parameters."""
    if name not in above:
        return [name]
    return [row for inner in _parts(module.get_submodule(name)) for row in _rows_in(module, f"{name}.{inner}", above)]


def _parts(module: nn.Module) -> list[str]:
    """The names of the parameters of a module, and of its children with parameters."""
    own = [name for name, _ in module.named_parameters(recurse=False)]
    return own + [name for name, child in module.named_children() if any(True for _ in child.parameters())]


def _largest_apart(module: nn.Module) -> list[str]:
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in module.named_children()}
    found = [name for name, _ in module.named_parameters(recurse=False)]
    for name, child in module.named_children():
        below = _parts(child)
        if isinstance(child, Backbone):
            below = list(child.layers_with_parameters)
        elif 2 * sizes[name] <= sum(sizes.values()) or len(set(below).difference(dict(child.named_parameters()))) < 2:
            below = []
        found += [f"{name}.{inner}" for inner in below] if below else [name] if sizes[name] else []
    return found


def lowest_first(module: nn.Module, layers: Sequence[str]) -> Sequence[str]:
    """The layers, from the end where they are listed top first: against the order in which the module registers them.

    Raises `UserError` for a layer that is no module in `module`.
    """
    places = {name: place for place, (name, _) in enumerate(module.named_modules())}
    if wrong := next((layer for layer in layers if layer not in places), None):
        raise unknown("module", wrong, outermost_first(places), owner=type(module).__name__)
    given = [places[layer] for layer in layers]
    return layers[::-1] if given == sorted(given, reverse=True) else layers


def _runs(values: Sequence[T]) -> Iterable[tuple[T, str]]:
    """Each value with the stages that have it one after another: `("train", "1-3")`."""
    for value, same in groupby(enumerate(values), key=lambda pair: pair[1]):
        places = [i for i, _ in same]
        yield value, f"{places[0]}" + (f"-{places[-1]}" if len(places) > 1 else "")
