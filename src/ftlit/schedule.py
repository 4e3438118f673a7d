"""A schedule is an ordered list of stages (what trains from when) with an ordered list of learning-rate scales.

The functions below are the options of the Hydra group `schedule`: they take the names of a backbone's layers, lowest first, and
give a `Schedule` whose patterns name parameters of a module that holds the backbone and the head under the names `backbone` and `head`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

from ftlit.errors import UserError, unknown
from ftlit.patterns import first_match, select

LrScale = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Stage:
    """From `epoch` on, exactly the parameters that `train` covers train; all others are frozen.

    Args:
        train: patterns (see `ftlit.patterns`), at least one.
        epoch: the first epoch of this stage, counted from 0.
        name: what the plan and the progress bar call it; the patterns by default.

    Raises:
        UserError: no pattern, or an epoch that is no whole number from 0.
    """

    train: Sequence[str]
    epoch: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        train = (self.train,) if isinstance(self.train, str) else tuple(self.train)
        if not train:
            raise UserError(f"stage {self.name or self.epoch!r} trains nothing: give at least one pattern, '*' for everything")
        if not isinstance(self.epoch, int) or self.epoch < 0:
            raise UserError(f"stage {self.name!r} begins at epoch {self.epoch!r}: give a whole number from 0")
        object.__setattr__(self, "train", train)
        object.__setattr__(self, "name", self.name or " + ".join(train))


@dataclass(frozen=True)
class Schedule:
    """Stages in order of time, and the factor on the base learning rate for each pattern (the first that covers a parameter wins).

    Args:
        stages: the first begins at epoch 0, each later one after the one before.
        lr_scale: (pattern, factor above 0), covering every parameter. Each pattern becomes one named parameter group.

    Raises:
        UserError: stages out of order, or a factor not above 0.
    """

    stages: Sequence[Stage]
    lr_scale: LrScale = (("*", 1.0),)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "lr_scale", tuple((pattern, float(factor)) for pattern, factor in self.lr_scale))
        epochs = [stage.epoch for stage in self.stages]
        if not epochs or epochs[0] != 0 or any(b <= a for a, b in pairwise(epochs)):
            raise UserError(f"the stages begin at epochs {epochs}: the first must begin at 0 and each later one after the one before")
        for pattern, factor in self.lr_scale:
            if not factor > 0:
                raise UserError(f"learning-rate scale {factor} of {pattern!r}: give a number above 0; to freeze, leave it out of `train`")

    def stage_at(self, epoch: int) -> int:
        """Index of the stage that is in force in `epoch` (law 4: a pure function).

        >>> Schedule([Stage(["head"]), Stage(["*"], epoch=2)]).stage_at(1)
        0
        """
        return max(i for i, stage in enumerate(self.stages) if stage.epoch <= epoch)

    def check_reached(self, max_epochs: int | None) -> None:
        """Raise `UserError` where training would end before the last stage begins. `None` and -1 mean no end."""
        last = self.stages[-1]
        if max_epochs is not None and 0 <= max_epochs <= last.epoch:
            raise UserError(
                f"stage {last.name!r} begins at epoch {last.epoch}, which max_epochs={max_epochs} never reaches: raise it, or begin earlier"
            )


def layer_scales(
    layers: Sequence[str], scale: float = 1.0, decay: float = 1.0, *, backbone: str = "backbone", head: str = "head"
) -> list[tuple[str, float]]:
    """The head at 1, the top layer at `scale`, and each layer below at `decay` times the one above it.

    Discriminative rates: Howard and Ruder 2018 (ULMFiT), section 3.2; layer-wise decay: Clark et al. 2020 (ELECTRA), appendix A.

    >>> layer_scales(["stem", "layer1"], 0.1, 0.5)
    [('head', 1.0), ('backbone.layer1', 0.1), ('backbone.stem', 0.05)]
    """
    return [(head, 1.0)] + [(f"{backbone}.{layer}", scale * decay**depth) for depth, layer in enumerate(reversed(layers))]


def head_only(layers: Sequence[str]) -> Schedule:
    """The backbone stays frozen; only the head trains."""
    return Schedule([Stage(["head"], name="head")], layer_scales(layers))


def all_at_once(layers: Sequence[str], *, scale: float = 1.0, decay: float = 1.0) -> Schedule:
    """Everything trains from the first epoch, the backbone at `scale` times the head's rate, less by `decay` a layer downwards."""
    return Schedule([Stage(["*"], name="all")], layer_scales(layers, scale, decay))


def head_then_all(layers: Sequence[str], *, epoch: int = 2, scale: float = 0.1, decay: float = 0.8) -> Schedule:
    """The head alone until `epoch`, so that its random start does not tear at the pretrained layers; then everything."""
    return Schedule([Stage(["head"], name="head"), Stage(["*"], epoch=epoch, name="all")], layer_scales(layers, scale, decay))


def last_k(layers: Sequence[str], *, k: int = 1, epoch: int = 2, scale: float = 0.1, decay: float = 0.8) -> Schedule:
    """The head alone until `epoch`, then the head and the top `k` layers; the layers below stay frozen."""
    if not 1 <= k <= len(layers):
        raise UserError(f"last_k with k={k}: this backbone has {len(layers)} layers, give 1 to {len(layers)}")
    top = list(layers[-k:])
    name = f"head + {top[0]}" + (f"..{top[-1]}" if k > 1 else "")
    stages = [Stage(["head"], name="head"), Stage(["head", *(f"backbone.{layer}" for layer in top)], epoch=epoch, name=name)]
    return Schedule(stages, layer_scales(layers, scale, decay))


def top_down(layers: Sequence[str], *, every: int = 1, epoch: int = 1, scale: float = 0.1, decay: float = 0.8) -> Schedule:
    """Gradual unfreezing (Howard and Ruder 2018, section 3.3): the head alone until `epoch`, then one more layer every `every` epochs."""
    stages = [Stage(["head"], name="head")]
    for i, lowest in enumerate(reversed(layers)):
        train = ["head", *(f"backbone.{layer}" for layer in layers[len(layers) - i - 1 :])]
        stages.append(Stage(train, epoch=epoch + i * every, name=f"head + {lowest} and above" if i + 1 < len(layers) else "all"))
    return Schedule(stages, layer_scales(layers, scale, decay))


def explicit(layers: Sequence[str], *, stages: Sequence[Mapping[str, Any]], lr_scale: Mapping[str, float] | None = None) -> Schedule:
    """Stages and scales as written. A pattern that is a layer's name or a glob over layers' names stands for `backbone.<it>`.

    Args:
        layers: the backbone's layers.
        stages: mappings with the fields of `Stage`.
        lr_scale: pattern -> factor; the first that covers a parameter wins. 1 for everything by default.

    Raises:
        UserError: as `Stage` and `Schedule`, or a field that a stage has not.
    """

    def full(pattern: str) -> str:
        names_layer = any(pattern == layer or pattern.startswith(f"{layer}.") or fnmatchcase(layer, pattern) for layer in layers)
        return f"backbone.{pattern}" if names_layer and pattern != "*" else pattern

    def made(fields: Mapping[str, Any]) -> Stage:
        for field in fields:
            if field not in (known := ("train", "epoch", "name")):
                raise unknown("field of a stage", field, known)
        train = fields.get("train") or ()
        patterns = [full(pattern) for pattern in ([train] if isinstance(train, str) else train)]
        return Stage(patterns, fields.get("epoch", 0), fields.get("name", ""))

    scales = [(full(pattern), factor) for pattern, factor in (lr_scale or {"*": 1.0}).items()]
    return Schedule([made(fields) for fields in stages], scales)


def plan(schedule: Schedule, sizes: Mapping[str, int], rates: Mapping[str, float]) -> list[str]:
    """The schedule in words, a line a stage: from when, what, how many parameters, at what rates.

    Args:
        schedule: what to put in words.
        sizes: parameter name -> number of values, of the whole module.
        rates: parameter group name -> its base learning rate.
    """
    matched = first_match(schedule.lr_scale, sizes)
    lines = []
    for stage in schedule.stages:
        chosen = select(stage.train, sizes)
        used = {matched[name][0] for name in chosen}
        groups = [pattern for pattern, _ in schedule.lr_scale if pattern in used]
        count = sum(sizes[name] for name in chosen)
        lines.append(f"epoch {stage.epoch:<3} {stage.name}: {count:,} of {sum(sizes.values()):,} parameters train, {_rates(groups, rates)}")
    return lines


def _rates(groups: Iterable[str], rates: Mapping[str, float]) -> str:
    """Groups of one rate together: `head 1e-02, backbone.layer4 .. backbone.stem 1e-03`."""
    by_rate: dict[float, list[str]] = {}
    for group in groups:
        by_rate.setdefault(rates[group], []).append(group)
    return ", ".join(f"{names[0]}{f' .. {names[-1]}' if len(names) > 1 else ''} at {rate:.1e}" for rate, names in by_rate.items())
