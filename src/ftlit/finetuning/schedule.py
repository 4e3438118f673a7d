"""A schedule: an ordered list of stages (what trains from when) and an ordered list of learning-rate factors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite
from types import MappingProxyType

from ftlit.errors import UserError
from ftlit.finetuning.freeze import BatchNorm
from ftlit.finetuning.stage import Stage
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
