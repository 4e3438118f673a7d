"""The schedule: an ordered list of stages (what trains from when) and an ordered list of learning-rate factors."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, inf
from types import MappingProxyType
from typing import Any, NamedTuple

from ftlit.errors import UserError, shorten
from ftlit.finetuning.freeze import BatchNorm
from ftlit.finetuning.param_groups import check_factors
from ftlit.finetuning.stage import Stage, Until, doubts
from ftlit.finetuning.train_entries import pattern_of, whole_layers
from ftlit.formatting import count
from ftlit.models.lora import Lora
from ftlit.patterns import names_of

LrFactors = Sequence[tuple[str, float]]  # (pattern, factor): the first pattern that covers a parameter wins
NO_TRANSITIONS: Mapping[int, int] = MappingProxyType({})


@dataclass(frozen=True)
class Schedule:
    """Stages in the order of time, and learning-rate factors.

    Args:
        stages: the first begins at epoch 0, each later one after the one before.
        lr_scale: learning-rate factors (pattern, factor above 0) on the optimizer's rate. Together they cover every parameter; the first
            pattern that covers a parameter wins. Each pattern becomes one named parameter group.
        frozen: modules that the user froze (`freeze_layers`, `freeze_embeddings`): no stage trains them.
        lora: the low-rank matrices that its stages train, for those who build the module; `None`: none.

    Raises:
        UserError: stages out of order, or a factor not above 0.
    """

    stages: Sequence[Stage]
    lr_scale: LrFactors = (("*", 1.0),)
    frozen: str | Sequence[str] = ()
    lora: Lora | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(check_stages(self.stages)))
        object.__setattr__(self, "frozen", names_of(self.frozen))
        object.__setattr__(self, "lr_scale", tuple(check_factors(self.lr_scale, positive=True)))
        if not self.stages:
            raise UserError("the schedule has no stages: give at least one, which begins at epoch 0")
        if self.stages[0].until is not None or (self.stages[0].epoch or self.stages[0].step):
            raise UserError(
                f"the first stage must begin at epoch 0 instead of {self.stages[0].begins}: leave out its epoch, step and `until`"
            )
        for i, stage in enumerate(self.stages[1:], 1):
            if stage.epoch == 0:
                raise UserError(
                    f"stage {i} ({stage.name!r}) begins at epoch 0, as stage 0 does: give it an epoch, a step or `until`, such as epoch=1"
                )
        for unit in ("epoch", "step"):
            times = [getattr(stage, unit) for stage in self.stages if getattr(stage, unit) is not None]
            if any(b <= a for a, b in pairwise(times)):
                raise UserError(f"stages begin at {unit}s {times}: let each stage begin at a later {unit} than the stage before it")

    def stage_at(self, epoch: int, step: int = 0, decided: Mapping[int, int] = NO_TRANSITIONS) -> int:
        """Return the index of the current stage: a pure function of epoch, step and logged transitions.

        Args:
            epoch: completed epochs.
            step: completed optimizer steps.
            decided: index of a stage whose `until` was reached -> the epoch at which it begins.

        >>> Schedule([Stage(["head"]), Stage(["*"], epoch=2)]).stage_at(1)
        0
        """

        def begun(index: int, stage: Stage) -> bool:
            if stage.step is not None:
                return stage.step <= step
            return any(begin is not None and begin <= epoch for begin in (stage.epoch, decided.get(index)))

        return max(i for i, stage in enumerate(self.stages) if begun(i, stage))

    def spans(self, end: int) -> list[range]:
        """Return for each stage the epochs before `end` in which it may run.

        They reach from its earliest beginning to the latest beginning of the next stage that begins at an epoch.
        """
        ends = [next((later.epoch for later in self.stages[i + 1 :] if later.epoch is not None), end) for i in range(len(self.stages))]
        begins = [(stage.epoch or 0) if stage.until is None else 0 for stage in self.stages]
        return [range(begin, min(last, end)) for begin, last in zip(begins, ends, strict=True)]

    def latest_steps(self, steps_per_epoch: int) -> list[int | None]:
        """Return the latest optimizer step at which each stage begins; `None` where only a metric begins it."""
        return [stage.step if stage.epoch is None else stage.epoch * steps_per_epoch for stage in self.stages]

    def earliest_epochs(self) -> list[int]:
        """Return the first epoch at which each stage can begin: with `until`, after one epoch of the stage before.

        Of a stage that begins at a step, this is the epoch of the stage before.
        """
        epochs = [0]
        for stage in self.stages[1:]:
            soonest = epochs[-1] + (stage.until is not None)
            epochs.append(soonest if stage.epoch is None else min(soonest, stage.epoch) if stage.until else stage.epoch)
        return epochs

    def condition_warnings(self, begin: str, max_epochs: int | None = None, validations: float = 1.0) -> Iterator[str]:
        """Yield a line for each `until` that is likely a mistake, which names all stages that have it.

        Args:
            begin: what to type for a later beginning.
            max_epochs: epochs of the whole training; `None`: not known, or without a limit.
            validations: in an epoch; below 1 where some epochs have none.
        """
        conditions = list(self._conditions(validations))
        for until in dict.fromkeys(condition.until for condition in conditions):
            own = [condition for condition in conditions if condition.until == until]
            yield from doubts(until, _named(own))
            if late := [one for one in own if _begins_before(one.stage, one.soonest)]:
                begins, these = ("begin", "them") if late[1:] else ("begins", "the stage")
                needed = max(one.advised for one in late) + 1  # epochs of training, so that the last of them begins
                longer = "" if max_epochs is None or needed <= max_epochs else f", and give max_epochs={needed} or more"
                yield (
                    f"{_named(late)} {begins} at {_epochs(one.stage.epoch for one in late)} at the latest, before {until.metric} can go "
                    f"{count(until.patience or 0, 'validation')} without improvement: let {these} begin at "
                    f"{_epochs(one.advised for one in late)} or later ({begin}){longer}"
                )
            if never := [one for one in own if one.stage.epoch is None and one.soonest >= (max_epochs or inf)]:
                yield (
                    f"{_named(never)} can begin at {_epochs(one.soonest for one in never)} at the earliest ({until}), but training has "
                    f"{count(max_epochs or 0, 'epoch')}: give max_epochs={never[-1].soonest + 1} or more, or a latest epoch ({begin})"
                )

    def _conditions(self, validations: float) -> Iterator["_Condition"]:
        """The stages with `until`, and the epochs before which it cannot hold: a first validation, and those of the patience."""
        before, moved = 0, 0  # epochs at which the stage before can begin: as it is given, and if it is moved as the warning says
        for stage in self.stages[1:]:
            if stage.until is None:
                before = moved = before if stage.epoch is None else stage.epoch
                continue
            waits = 0 if stage.until.threshold is not None else stage.until.patience or 0
            length = ceil((1 + waits) / validations)
            soonest, advised = before + length, moved + length + 1
            yield _Condition(stage, stage.until, soonest, advised)
            before = soonest if stage.epoch is None else min(stage.epoch, soonest)
            moved = advised - 1 if _begins_before(stage, soonest) else before

    def check_reached(self, max_epochs: int | None, max_steps: int = -1, steps_per_epoch: int | None = None) -> None:
        """Raise `UserError` if training would end before the last stage begins, or a stage would begin after a later one.

        Args:
            max_epochs: number of epochs; `None` or -1 for no limit.
            max_steps: number of optimizer steps; -1 for no limit.
            steps_per_epoch: optimizer steps in an epoch; `None` skips the checks that depend on it.
        """
        last, earliest = self.stages[-1], self.earliest_epochs()[-1]
        if max_epochs is not None and last.step is None and 0 <= max_epochs <= earliest:
            raise self._never(last, f"max_epochs={max_epochs}", earliest + 1, max_epochs)
        if last.step is not None and 0 <= max_steps <= last.step:
            raise self._never(last, f"max_steps={max_steps}", last.step + 1)
        if steps_per_epoch is None:
            return
        bounded = [(stage, step) for stage, step in zip(self.stages, self.latest_steps(steps_per_epoch), strict=True) if step is not None]
        for (before, a), (stage, b) in pairwise(bounded):
            if b <= a:
                later = f"epoch {a // steps_per_epoch + 1}" if stage.step is None else f"step {a + 1}"
                raise UserError(
                    f"stage {stage.name!r} begins at step {b}, which is not after stage {before.name!r} at step {a} "
                    f"({count(steps_per_epoch, 'step')} per epoch): let stage {stage.name!r} begin at {later}"
                )
        begin = earliest * steps_per_epoch if last.step is None else last.step
        for limit, end, unit in (("max_steps", max_steps, 1), ("max_epochs", -1 if max_epochs is None else max_epochs, steps_per_epoch)):
            if 0 <= end * unit <= begin:
                raise self._never(last, f"{limit}={end} ({count(steps_per_epoch, 'step')} per epoch)", begin // unit + 1)

    def _never(self, last: Stage, limit: str, least: int, epochs: float = inf) -> UserError:
        """The error for a last stage that does not begin in this number of epochs: each stage before it needs one."""
        fewer = f"use fewer stages (now {len(self.stages)}; in Python, layers=[...] of ftlit.schedules joins layers)"
        ways = fewer if len(self.stages) > max(epochs, 2) else f"let the stage begin earlier (now: {last.begins})"
        return UserError(
            f"the last stage {last.name!r} would never begin, because {limit} ends the run before: give {limit.partition('=')[0]}={least} "
            f"or more, or {ways}"
        )


class _Condition(NamedTuple):
    """The condition of a stage, the epoch at which it can hold at the earliest, and a latest epoch that leaves it time to hold."""

    stage: Stage
    until: Until
    soonest: int
    advised: int


def _begins_before(stage: Stage, soonest: int) -> bool:
    """Whether a stage begins anyway before its patience can end. A threshold may be reached at any validation."""
    return stage.until is not None and stage.until.threshold is None and stage.epoch is not None and stage.epoch <= soonest


def _named(conditions: Sequence[_Condition]) -> str:
    return f"stage{'s' if conditions[1:] else ''} {shorten((repr(one.stage.name) for one in conditions), most=4)}"


def _epochs(epochs: Iterable[int | None]) -> str:
    given = list(epochs)
    return f"epoch{'s' if given[1:] else ''} {shorten(given, most=4)}"


def with_batchnorm(schedule: Schedule, batchnorm: BatchNorm) -> Schedule:
    """Set the batch norm policy of every stage that has none."""
    return replace(schedule, stages=[replace(s, batchnorm=batchnorm) if s.batchnorm is None else s for s in schedule.stages])


def trains_head_alone(stage: Stage, head: str = "head") -> bool:
    """Whether only the head trains."""
    return all(pattern == head or pattern.startswith(f"{head}.") for pattern in map(pattern_of, stage.entries))


def trains_whole_layers(stage: Stage, head: str = "head") -> bool:
    """Whether layers besides the head train whole, not only their biases, norms or LoRA matrices."""
    return any(pattern != head and not pattern.startswith(f"{head}.") for pattern in whole_layers(stage.entries))


def without_warm_up(schedule: Schedule, head: str = "head") -> Schedule:
    """Remove the stages at the beginning in which only the head trains; the next one then begins at epoch 0.

    Raises:
        UserError: there is no other stage.
    """
    begin = next((i for i, stage in enumerate(schedule.stages) if not trains_head_alone(stage, head)), None)
    if begin is None:
        raise UserError(
            "without_warm_up removes the stages that train only the head, and this schedule has no others: "
            "add a stage that trains the backbone"
        )
    first = replace(schedule.stages[begin], epoch=0, step=None, until=None, from_best=False)
    return replace(schedule, stages=[first, *schedule.stages[begin + 1 :]])


def check_stages(stages: object) -> list[Stage]:
    """Return the stages, of an iterator too, which can be read only once. Raise `UserError` for anything but stages."""
    given: list[Any] = list(stages) if isinstance(stages, Iterable) and not isinstance(stages, str | Mapping) else [stages]
    if given == [stages]:
        wrong = "one Stage" if isinstance(stages, Stage) else repr(stages)
        raise UserError(f'a Schedule is a list of stages, not {wrong}: give Schedule([Stage(["head"]), Stage(["*"], epoch=2)])')
    for place, stage in enumerate(given):
        if not isinstance(stage, Stage):
            options = stage if isinstance(stage, Mapping) else {"train": [stage if isinstance(stage, str) else "head"]}
            call = ", ".join(f"{name}={option!r}" for name, option in options.items())
            raise UserError(f"stages[{place}] of the Schedule is {stage!r}, not a Stage: give Stage({call})")
    return given
