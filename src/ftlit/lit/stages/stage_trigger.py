"""StageTrigger: decide from a logged metric that a stage is over, in one process for all, and keep the weights of its best value."""

import re
import warnings
from collections.abc import Collection, Mapping
from difflib import SequenceMatcher
from math import isnan
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ftlit.errors import UserError, unknown
from ftlit.finetuning.schedule import Schedule
from ftlit.finetuning.stage import Stage, Until
from ftlit.formatting import count

FLOAT32_DIGITS = 7  # a logged 0.9 is 0.89999998 as float32, and must reach a threshold of 0.9
ALIKE = 0.85  # share of equal letters: val/score and val/scoer have 0.89; val/f1 and val/f2 0.83, val/auroc and val/accuracy 0.76


class StageTrigger:
    """Decides that a stage is over, from the values that its successor's `until` asks for.

    Args:
        schedule: stages, some of which may begin when a metric is good enough or no longer improves.

    Attributes:
        decided: index of a stage -> the epoch that it begins at, as a metric decided.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.decided: dict[int, int] = {}
        self._values: list[float] = []  # of the metric, since the current stage began
        self._best: float | None = None
        self._weights: dict[str, Tensor] = {}  # at the best value, where the next stage begins from them

    def condition(self, index: int) -> Until | None:
        """The condition that ends stage `index`; `None` if it has none or is already decided."""
        following = self._following(index)
        return following.until if following and index + 1 not in self.decided else None

    def check_names(self, logged: Collection[str]) -> None:
        """Check the metrics of all conditions before training. A metric that resembles none of `logged` may be logged later, by training
        steps for instance, so it is no error yet.

        Args:
            logged: names of metrics, of the validations at least.

        Raises:
            UserError: a metric that is not logged and resembles one that is.
        """
        for stage in self.schedule.stages:
            if stage.until is not None and is_misspelt(stage.until.metric, logged):
                raise _not_logged(stage, stage.until, logged)

    def update(self, trainer: Trainer, module: LightningModule, index: int) -> None:
        """Take the metric's value into account and decide whether stage `index` ends with this epoch.

        A collective operation: every process calls it, and the first one's value counts. A no-op where `condition` is `None`.

        Raises:
            UserError: the metric is not logged.
        """
        until, following = self.condition(index), self._following(index)
        if until is None or following is None:
            return
        if until.metric not in trainer.callback_metrics:
            raise _not_logged(following, until, trainer.callback_metrics)
        value = rounded(trainer.strategy.broadcast(float(trainer.callback_metrics[until.metric])))
        self._values.append(value)
        if following.from_best and is_best(until, value, self._best):
            self._best, self._weights = value, changing_tensors(module)
        if until.reached(self._values):
            self.decided[index + 1] = trainer.current_epoch + 1

    def begin(self, index: int, module: LightningModule) -> None:
        """Forget the values of the stage before `index`. If that stage begins from the best weights, restore them in `module`."""
        if self.schedule.stages[index].from_best:
            copy_into(module, self._weights)
        self._values, self._best, self._weights = [], None, {}

    def warn_of_unlogged(self, index: int, logged: Collection[str]) -> None:
        """Warn of stages after the next one of stage `index` whose metric is not among those `logged` in the first epochs; the next one's
        is an error of `update`.
        """
        for stage in self.schedule.stages[index + 2 :]:
            if stage.until is not None and stage.until.metric not in logged:
                warnings.warn(
                    f"{_not_logged(stage, stage.until, logged)}; if nothing logs it later, training ends with this error", stacklevel=2
                )

    def warn_at_end(self, index: int) -> None:
        """Warn of stages that have not begun when training ends in stage `index`, with the values that were to begin them."""
        for place, stage in enumerate(self.schedule.stages):
            if 0 < place <= index and stage.epoch is None and stage.until is not None and place not in self.decided:
                warnings.warn(f"stage {stage.name!r} was left out, because its condition ({stage.until}) was not met", stacklevel=2)
        if following := self._following(index):
            reason = f": {self._reason(following.until, met=index + 1 in self.decided)}" if following.until else ""
            stage = self.schedule.stages[index]
            warnings.warn(f"training ended in stage {stage.name!r}, before stage {following.name!r} began{reason}", stacklevel=2)

    def _reason(self, until: Until, *, met: bool) -> str:
        """Why the condition of the next stage did not begin it: how far its metric was from it, or that it was met too late."""
        numbers = [value for value in self._values if not isnan(value)]
        if not self._values:
            return f"no validation has logged {until.metric} in this stage"
        best = f"best value {max(numbers) if until.mode == 'max' else min(numbers):g}" if numbers else "no value is a number"
        if met:
            return f"the condition to begin it ({until}) was met only in the last epoch, {best}: train for at least one more epoch"
        waited = count(until.waited(self._values), "validation")
        needed = "" if until.patience is None else f"; training ended after {waited} in a row without improvement"
        return f"the condition to begin it ({until}) was not met in {count(len(self._values), 'validation')}, {best}{needed}"

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: plain values and tensors."""
        return {"decided": dict(self.decided), "values": list(self._values), "best": self._best, "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.decided, self._values = dict(state["decided"]), list(state["values"])
        self._best, self._weights = state["best"], dict(state["weights"])

    def _following(self, index: int) -> Stage | None:
        return next(iter(self.schedule.stages[index + 1 :]), None)


def _not_logged(stage: Stage, until: Until, logged: Collection[str]) -> UserError:
    return UserError(f"{unknown('logged metric', until.metric, logged)} (for `until` of stage {stage.name!r})")


def is_misspelt(metric: str, logged: Collection[str]) -> bool:
    """Whether a metric is not logged, but one is whose name has the same first word, such as `val`, and begins with this name or is nearly
    the same. A name that continues one that is logged is another metric.

    >>> [is_misspelt(name, ["val/accuracy"]) for name in ("val/acuracy", "val/acc", "VAL/Accuracy")]
    [True, True, True]
    >>> [is_misspelt(name, ["val/accuracy"]) for name in ("val/accuracy", "val/auroc", "train/accuracy", "val/accuracy_top5")]
    [False, False, False, False]
    """
    return metric not in logged and any(_alike(metric.casefold(), name.casefold()) for name in logged)


def _alike(given: str, name: str) -> bool:
    first, first_of_name = (re.split(r"[^a-z0-9]", text)[0] for text in (given, name))
    if first != first_of_name or (given != name and given.startswith(name)):
        return False
    return name.startswith(given) or SequenceMatcher(None, given, name).ratio() >= ALIKE


def rounded(value: float) -> float:
    """A logged value to the precision of float32.

    >>> rounded(0.8999999761581421)
    0.9
    """
    return float(f"{value:.{FLOAT32_DIGITS}g}")


def is_best(until: Until, value: float, best: float | None) -> bool:
    """Whether a value is better than all before, by however little. NaN never is."""
    if isnan(value):
        return False
    return best is None or (value > best if until.mode == "max" else value < best)


def changing_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies, on the CPU, of what the current stage changes: the parameters that train, and all buffers."""
    changing = {name: p for name, p in module.named_parameters() if p.requires_grad} | dict(module.named_buffers())
    return {name: tensor.detach().cpu().clone() for name, tensor in changing.items()}


@torch.no_grad()
def copy_into(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the parameters and buffers of these names, in place."""
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
