"""A schedule is an ordered list of stages (what trains from when) with an ordered list of learning-rate scales.

The functions below are the options of the Hydra group `schedule`: they take the names of a backbone's layers, lowest first, and
give a `Schedule` whose patterns name parameters of a module that holds the backbone and the head under the names `backbone` and `head`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from math import isfinite
from types import MappingProxyType
from typing import Any

from ftlit.errors import UserError, unknown
from ftlit.finetuning.freeze import BatchNorm
from ftlit.finetuning.freeze_options import Numbers, all_but, frozen_layers, in_backbone
from ftlit.finetuning.stage import Stage
from ftlit.finetuning.until import Until
from ftlit.patterns import covers

LrScale = Sequence[tuple[str, float]]
NOTHING_DECIDED: Mapping[int, int] = MappingProxyType({})


@dataclass(frozen=True)
class Schedule:
    """Stages in order of time, and the factor on the base learning rate for each pattern (the first that covers a parameter wins).

    Args:
        stages: the first begins at epoch 0, each later one after the one before.
        lr_scale: (pattern, factor above 0), covering every parameter. Each pattern becomes one named parameter group.
        frozen: modules that no stage trains because a person wants it so.

    Raises:
        UserError: stages out of order, or a factor not above 0.
    """

    stages: Sequence[Stage]
    lr_scale: LrScale = (("*", 1.0),)
    frozen: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "lr_scale", tuple((pattern, float(factor)) for pattern, factor in self.lr_scale))
        if not self.stages or self.stages[0].until is not None or (self.stages[0].epoch or self.stages[0].step):
            raise UserError(f"the first stage: {self.stages[0].begins if self.stages else 'there is none'}; it must begin at epoch 0")
        for unit in ("epoch", "step"):
            times = [getattr(stage, unit) for stage in self.stages if getattr(stage, unit) is not None]
            if any(b <= a for a, b in pairwise(times)):
                raise UserError(f"the stages begin at {unit}s {times}: each must begin after the one before")
        for pattern, factor in self.lr_scale:
            if not (factor > 0 and isfinite(factor)):
                raise UserError(f"learning-rate scale {factor} of {pattern!r}: give a number above 0; to freeze, leave it out of `train`")

    def stage_at(self, epoch: int, step: int = 0, decided: Mapping[int, int] = NOTHING_DECIDED) -> int:
        """Index of the stage in force (invariant 4: a pure function of where training is and of what metrics have decided).

        Args:
            epoch: epochs completed.
            step: optimizer steps completed.
            decided: index of a stage whose `until` was reached -> the epoch that it begins at.

        >>> Schedule([Stage(["head"]), Stage(["*"], epoch=2)]).stage_at(1)
        0
        """

        def begun(index: int, stage: Stage) -> bool:
            if stage.step is not None:
                return stage.step <= step
            return min(stage.epoch or 0, decided.get(index, stage.epoch or 0)) <= epoch

        return max(i for i, stage in enumerate(self.stages) if begun(i, stage))

    def spans(self, end: int) -> list[range]:
        """The epochs before `end` in which each stage may be in force: from its earliest beginning to the latest of the next one that
        begins at an epoch.
        """
        ends = [next((later.epoch for later in self.stages[i + 1 :] if later.epoch is not None), end) for i in range(len(self.stages))]
        begins = [(stage.epoch or 0) if stage.until is None else 0 for stage in self.stages]
        return [range(begin, min(last, end)) for begin, last in zip(begins, ends, strict=True)]

    def latest_steps(self, steps_per_epoch: int) -> list[int]:
        """The optimizer step at which each stage begins, at the latest."""
        return [(stage.epoch or 0) * steps_per_epoch if stage.step is None else stage.step for stage in self.stages]

    def check_reached(self, max_epochs: int | None, max_steps: int = -1, steps_per_epoch: int | None = None) -> None:
        """Raise `UserError` where training would end before the last stage begins, or where a stage would begin after a later one.

        Args:
            max_epochs: where training ends; `None` or -1 for no such end.
            max_steps: the same in optimizer steps.
            steps_per_epoch: optimizer steps in an epoch; what depends on it is not checked without.
        """
        last = self.stages[-1]
        if max_epochs is not None and last.epoch is not None and 0 <= max_epochs <= last.epoch:
            raise self._never(last, f"max_epochs={max_epochs}")
        if last.step is not None and 0 <= max_steps <= last.step:
            raise self._never(last, f"max_steps={max_steps}")
        if steps_per_epoch is None:
            return
        steps = self.latest_steps(steps_per_epoch)
        for (before, a), (stage, b) in pairwise(zip(self.stages, steps, strict=True)):
            if b <= a:
                raise UserError(
                    f"stage {stage.name!r} ({stage.begins}) does not begin after stage {before.name!r} ({before.begins}): "
                    f"an epoch has {steps_per_epoch} steps here"
                )
        if 0 <= max_steps <= steps[-1] or (max_epochs is not None and 0 <= max_epochs * steps_per_epoch <= steps[-1]):
            raise self._never(last, f"max_epochs={max_epochs} of {steps_per_epoch} steps (max_steps={max_steps})")

    @staticmethod
    def _never(last: Stage, limit: str) -> UserError:
        return UserError(f"the last stage {last.name!r} ({last.begins}) is never reached with {limit}: raise it, or begin earlier")


def layer_scales(
    layers: Sequence[str], scale: float = 1.0, decay: float = 1.0, *, backbone: str = "backbone", head: str = "head"
) -> list[tuple[str, float]]:
    """The head at 1, the top layer at `scale`, and each layer below at `decay` times the one above it.

    Discriminative rates: Howard and Ruder 2018 (ULMFiT), section 3.2; layer-wise decay: Clark et al. 2020 (ELECTRA), appendix A.

    >>> layer_scales(["stem", "layer1"], 0.1, 0.5)
    [('head', 1.0), ('backbone.layer1', 0.1), ('backbone.stem', 0.05)]
    """
    return [(head, 1.0)] + [(f"{backbone}.{layer}", scale * decay**depth) for depth, layer in enumerate(reversed(layers))]


def with_batchnorm(schedule: Schedule, batchnorm: BatchNorm) -> Schedule:
    """The same schedule with this policy in every stage that has left it open."""
    return replace(schedule, stages=[replace(s, batchnorm=batchnorm) if s.batchnorm is None else s for s in schedule.stages])


def with_reinit(schedule: Schedule, layers: Sequence[str], *, backbone: str = "backbone", head: str = "head") -> Schedule:
    """The same schedule where these layers of the backbone begin at random, as the head does: they train in every stage in which the head
    does, at its rate; but for those that are frozen by wish. One whose scales do not name each layer (`explicit`) is left as it is written.
    """
    rates = dict(schedule.lr_scale)
    new = [name for name in (f"{backbone}.{layer}" for layer in layers) if name not in schedule.frozen]
    if not set(new) <= rates.keys() or head not in rates:
        return schedule

    def also(stage: Stage) -> Stage:
        lacking = [name for name in new if head in stage.train and not any(covers(pattern, name) for pattern in stage.train)]
        return replace(stage, train=[*stage.train, *lacking], name=" + ".join([stage.name, *(name.split(".", 1)[1] for name in lacking)]))

    scales = [(pattern, rates[head] if pattern in new else factor) for pattern, factor in schedule.lr_scale]
    return replace(schedule, stages=[also(stage) for stage in schedule.stages], lr_scale=scales)


def trains_head_alone(stage: Stage, head: str = "head") -> bool:
    """Whether nothing but the head trains."""
    return all(pattern == head or pattern.startswith(f"{head}.") for pattern in stage.train)


def without_warm_up(schedule: Schedule, head: str = "head") -> Schedule:
    """The same schedule without the stages at its beginning in which the head alone trains: the next one begins at once.

    Raises:
        UserError: no other stage.
    """
    begin = next((i for i, stage in enumerate(schedule.stages) if not trains_head_alone(stage, head)), None)
    if begin is None:
        raise UserError("this schedule trains nothing but the head: without its warm-up no stage is left")
    first = replace(schedule.stages[begin], epoch=0, step=None, until=None, from_best=False)
    return replace(schedule, stages=[first, *schedule.stages[begin + 1 :]])


def head_only(layers: Sequence[str]) -> Schedule:
    """The backbone stays frozen; only the head trains."""
    return Schedule([Stage(["head"], name="head")], layer_scales(layers))


def all_at_once(
    layers: Sequence[str], *, scale: float = 1.0, decay: float = 1.0, freeze_embeddings: bool = False, freeze_layers: Numbers = ""
) -> Schedule:
    """Everything trains from the first epoch, the backbone at `scale` times the head's rate, less by `decay` a layer downwards; but for
    what is frozen, see `ftlit.finetuning.freeze_options`.
    """
    frozen = frozen_layers(layers, freeze_embeddings, freeze_layers)
    return Schedule([Stage(**all_but(layers, frozen))], layer_scales(layers, scale, decay), in_backbone(frozen))


def head_then_all(
    layers: Sequence[str],
    *,
    epoch: int = 2,
    until: Mapping[str, Any] | None = None,
    scale: float = 0.1,
    decay: float = 0.8,
    freeze_embeddings: bool = False,
    freeze_layers: Numbers = "",
) -> Schedule:
    """The head alone until `epoch`, so that its random start does not tear at the pretrained layers; then everything.

    Args:
        layers: the backbone's layers.
        epoch: when the backbone joins in; with `until`, the latest.
        until: fields of `Until`: the head alone until a metric says so.
        scale: the top layer's rate over the head's.
        decay: a layer's rate over that of the layer above it.
        freeze_embeddings: the layer `embeddings` stays frozen in every stage.
        freeze_layers: the same of layers called `encoder.<number>`, by their numbers; see `ftlit.finetuning.freeze_options`.
    """
    frozen = frozen_layers(layers, freeze_embeddings, freeze_layers)
    stages = [Stage(["head"], name="head"), Stage(epoch=epoch, until=_until(until), **all_but(layers, frozen))]
    return Schedule(stages, layer_scales(layers, scale, decay), in_backbone(frozen))


def last_k(
    layers: Sequence[str], *, k: int = 1, epoch: int = 2, until: Mapping[str, Any] | None = None, scale: float = 0.1, decay: float = 0.8
) -> Schedule:
    """The head alone until `epoch` (see `head_then_all`), then the head and the top `k` layers; the layers below stay frozen."""
    if not 1 <= k <= len(layers):
        raise UserError(f"last_k with k={k}: this backbone has {len(layers)} layers, give 1 to {len(layers)}")
    top = list(layers[-k:])
    name = f"head + {top[0]}" + (f"..{top[-1]}" if k > 1 else "")
    train = ["head", *(f"backbone.{layer}" for layer in top)]
    return Schedule([Stage(["head"], name="head"), Stage(train, epoch, until=_until(until), name=name)], layer_scales(layers, scale, decay))


def top_down(
    layers: Sequence[str],
    *,
    every: int = 1,
    epoch: int = 1,
    until: Mapping[str, Any] | None = None,
    scale: float = 0.1,
    decay: float = 0.8,
    freeze_embeddings: bool = False,
    freeze_layers: Numbers = "",
) -> Schedule:
    """Gradual unfreezing (Howard and Ruder 2018, section 3.3): the head alone until `epoch`, then one more layer every `every` epochs;
    what is frozen (see `head_then_all`) is passed over.

    With `until` (see `head_then_all`) each layer joins in as soon as the metric says so, and at these epochs at the latest.
    """
    frozen = frozen_layers(layers, freeze_embeddings, freeze_layers)
    stages, joining = [Stage(["head"], name="head")], [layer for layer in layers if layer not in frozen]
    for i, lowest in enumerate(reversed(joining)):
        last, train = i + 1 == len(joining), ["head", *in_backbone(joining[len(joining) - i - 1 :])]
        name = all_but(layers, frozen)["name"] if last else f"head + {lowest} and above"
        stages.append(Stage(train, epoch + i * every, until=_until(until), name=name))
    return Schedule(stages, layer_scales(layers, scale, decay), in_backbone(frozen))


def explicit(layers: Sequence[str], *, stages: Sequence[Mapping[str, Any]], lr_scale: Mapping[str, float] | None = None) -> Schedule:
    """Stages and scales as written. A pattern that is a layer's name or a glob over layers' names stands for `backbone.<it>`.

    Args:
        layers: the backbone's layers.
        stages: mappings with the fields of `Stage`, `until` a mapping with the fields of `Until`.
        lr_scale: pattern -> factor; the first that covers a parameter wins. 1 for everything by default.

    Raises:
        UserError: as `Stage` and `Schedule`, or a field that a stage has not.
    """

    def full(pattern: str) -> str:
        names_layer = any(covers(pattern, layer) or pattern.startswith(f"{layer}.") for layer in layers)
        return f"backbone.{pattern}" if names_layer and pattern != "*" else pattern

    def made(given: Mapping[str, Any]) -> Stage:
        stage = _fields(Stage, given)
        train = stage.get("train") or ()
        stage["train"] = [full(pattern) for pattern in ([train] if isinstance(train, str) else train)]
        return Stage(**{**stage, "until": _until(stage.get("until"))})

    scales = [(full(pattern), factor) for pattern, factor in (lr_scale or {"*": 1.0}).items()]
    return Schedule([made(given) for given in stages], scales)


def _until(given: Mapping[str, Any] | None) -> Until | None:
    if given is None:
        return None
    if "metric" not in given:
        raise UserError(f"until {dict(given)}: name the metric, val/accuracy for instance")
    return Until(**_fields(Until, given))


def _fields(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, if `kind` has fields of these names."""
    known = [field.name for field in fields(kind)]
    for name in given:
        if name not in known:
            raise unknown(f"field of {kind.__name__}", name, known)
    return dict(given)
