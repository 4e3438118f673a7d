"""When a metric ends a stage: values taken once, by the first process for all, and the weights at the best of them."""

from collections.abc import Mapping
from math import isnan
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ftlit.errors import unknown
from ftlit.finetuning.schedule import Schedule
from ftlit.finetuning.stage import Until


class StageTrigger:
    """What metrics have decided about the stages of a schedule, and what the next decision rests on.

    Args:
        schedule: whose stages may wait for a metric.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.decided: dict[int, int] = {}  # index of a stage -> the epoch that it begins at
        self._values: list[float] = []  # since the stage in force began
        self._best: float | None = None
        self._weights: dict[str, Tensor] = {}  # at the best value, where the next stage begins from there

    def waits_for(self, index: int) -> Until | None:
        """What the stage after `index` waits for; `None` where it waits for nothing or has been decided."""
        following = self.schedule.stages[index + 1 : index + 2]
        return following[0].until if following and index + 1 not in self.decided else None

    def look(self, trainer: Trainer, module: LightningModule, index: int) -> None:
        """Take the metric's value into account, in the stage `index`. A collective: every process calls it.

        Raises:
            UserError: nothing logs the metric.
        """
        until = self.waits_for(index)
        if until is None:
            return
        if until.metric not in trainer.callback_metrics:
            raise unknown(f"logged metric for stage {self.schedule.stages[index + 1].name!r}:", until.metric, trainer.callback_metrics)
        value = float(trainer.strategy.broadcast(float(trainer.callback_metrics[until.metric])))
        value = float(f"{value:.7g}")  # as exact as float32 is: 0.9 must not fall short of a threshold of 0.9
        self._values.append(value)
        beats = self._best is None or (value > self._best if until.mode == "max" else value < self._best)
        if self.schedule.stages[index + 1].from_best and beats and not isnan(value):
            self._best, self._weights = value, _moving(module)
        if until.reached(self._values):
            self.decided[index + 1] = trainer.current_epoch + 1

    def begin(self, index: int, module: LightningModule) -> None:
        """Forget the stage before `index`; bring its best weights back where `index` begins from them."""
        if self.schedule.stages[index].from_best:
            _restore(module, self._weights)
        self._values, self._best, self._weights = [], None, {}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: plain values and tensors."""
        return {"decided": dict(self.decided), "values": list(self._values), "best": self._best, "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the decisions of a checkpoint over."""
        self.decided, self._values = dict(state["decided"]), list(state["values"])
        self._best, self._weights = state["best"], dict(state["weights"])


def _moving(module: nn.Module) -> dict[str, Tensor]:
    """Copies of what a stage changes: the parameters that train, and the buffers."""
    moving = {name: p for name, p in module.named_parameters() if p.requires_grad} | dict(module.named_buffers())
    return {name: tensor.detach().cpu().clone() for name, tensor in moving.items()}


@torch.no_grad()
def _restore(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
