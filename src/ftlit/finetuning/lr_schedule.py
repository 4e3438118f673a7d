"""Learning rates of all groups from one factor, so that the ratios between the groups hold at every step.

A scheduler of torch drives the rate of a stand-in optimizer that has one group of rate 1. That rate is the factor: each group's rate
is its own base rate times the factor. Schedulers that refuse several groups, or treat each by itself, cannot do harm here.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from ftlit.errors import UserError

AnyScheduler = LRScheduler | ReduceLROnPlateau
Curve = Callable[[Optimizer, int], AnyScheduler]


class Rates(LRScheduler):
    """Sets `lr` of every group of an optimizer to the group's base rate times a factor that follows a curve.

    Args:
        optimizer: its groups' rates at this time are their base rates, kept in each group as `initial_lr`.
        curve: recipe for a scheduler, called with the stand-in optimizer and the number of its steps, such as `cosine`.
        steps: optimizer steps of the whole training, at least 1.
        epochs: the same in epochs.
        unit: whether the curve moves on with each `step` or with each `epoch`; Lightning calls it `interval`.
        warmup: this part of the curve, in [0, 1), is put before it as a straight line up to 1.
        restart: the curve and its warm-up begin anew at each stage (`begin_stage`).
        monitor: the metric that a curve of `ReduceLROnPlateau` looks at.

    Raises:
        UserError: a warm-up out of its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        curve: Curve,
        *,
        steps: int,
        epochs: int,
        unit: Literal["step", "epoch"] = "step",
        warmup: float = 0.0,
        restart: bool = False,
        monitor: str = "val/loss",
    ) -> None:
        # LRScheduler's own __init__ is left out: it takes a first step and counts steps, both of which the curve does for itself
        if not 0 <= warmup < 1:
            raise UserError(f"lr_scheduler.warmup={warmup}: give the part of the run that it takes, from 0 to less than 1")
        self.optimizer, self.unit, self.monitor = optimizer, unit, monitor
        self._curve, self._warmup, self._restart = curve, warmup, restart
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self._total = steps if unit == "step" else epochs
        self._begin(self._total)

    @property
    def factor(self) -> float:
        """What every base rate is multiplied by."""
        rising: float = min(1.0, (self._taken + 1) / (self._rising + 1))
        return rising * float(self._stand_in.param_groups[0]["lr"])

    @property
    def restarts(self) -> bool:
        """Whether `begin_stage` begins anew."""
        return self._restart

    @property
    def reduce_on_plateau(self) -> bool:
        """Whether a step wants the value of a metric."""
        return isinstance(self._scheduler, ReduceLROnPlateau)

    @property
    def config(self) -> dict[str, Any]:
        """What a LightningModule's `configure_optimizers` returns as `lr_scheduler`."""
        plateau = {"monitor": self.monitor, "reduce_on_plateau": True} if self.reduce_on_plateau else {}
        return {"scheduler": self, "interval": self.unit, **plateau}

    def begin_stage(self, steps: int, epochs: int) -> None:
        """Begin anew, for a stage of so many steps and epochs, if the curve restarts."""
        if self._restart:
            self._begin(steps if self.unit == "step" else epochs)

    def step(self, metrics: float | None = None) -> None:
        """Move on by one unit. `metrics`: value of the metric, for a curve that reduces on a plateau. At its end the curve stays."""
        self._taken += 1
        if self._rising < self._taken < self._length:
            self._stand_in.step()  # nothing moves; torch wants a step of the optimizer before one of its scheduler
            if isinstance(self._scheduler, ReduceLROnPlateau):
                if metrics is None:
                    raise UserError(f"a curve that reduces on a plateau needs the value of {self.monitor!r} at each step")
                self._scheduler.step(metrics)
            else:
                self._scheduler.step()
        self._set()

    def get_last_lr(self) -> list[float | Tensor]:
        """The rate of each group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Where on the curve it is."""
        stand_in = {name: value for name, value in self._stand_in.param_groups[0].items() if name != "params"}
        return {
            "total": self._total,
            "length": self._length,
            "taken": self._taken,
            "stand_in": stand_in,
            "scheduler": self._scheduler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to where on the curve `state_dict` is. Raises `UserError` where training had another length."""
        if state_dict["total"] != self._total:
            raise UserError(
                f"this checkpoint's training is {state_dict['total']} {self.unit}s long, here it is {self._total}: give the same length, "
                "or begin a new run from its weights"
            )
        self._begin(state_dict["length"])
        self._taken = state_dict["taken"]
        self._scheduler.load_state_dict(state_dict["scheduler"])
        self._stand_in.param_groups[0].update(state_dict["stand_in"])
        self._set()

    def _begin(self, length: int) -> None:
        self._length, self._taken = max(1, length), 0
        self._rising = int(self._warmup * self._length)
        self._stand_in = SGD([torch.zeros(1)], lr=1.0)
        self._scheduler = self._curve(self._stand_in, self._length - self._rising)
        self._set()

    def _set(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor


def constant(optimizer: Optimizer, length: int) -> AnyScheduler:
    """1 all the way."""
    return ConstantLR(optimizer, factor=1.0)


def cosine(optimizer: Optimizer, length: int, *, least: float = 0.0) -> AnyScheduler:
    """Half a cosine from 1 down to `least` (Loshchilov and Hutter 2017, section 3, without restarts)."""
    return CosineAnnealingLR(optimizer, T_max=length, eta_min=least)


def linear(optimizer: Optimizer, length: int, *, least: float = 0.0) -> AnyScheduler:
    """A straight line from 1 down to `least`."""
    return LinearLR(optimizer, start_factor=1.0, end_factor=least, total_iters=length)


def one_cycle(optimizer: Optimizer, length: int, *, rise: float = 0.3, div: float = 25.0, final_div: float = 1e4) -> AnyScheduler:
    """From 1 / `div` up to 1 in the first `rise` of the way, then down to 1 / (`div` x `final_div`) (Smith and Topin 2018)."""
    length = max(length, 2)
    rise = max(rise, 1.5 / length)  # torch divides by the steps of the rise, less one
    return OneCycleLR(
        optimizer, max_lr=1.0, total_steps=length, pct_start=rise, div_factor=div, final_div_factor=final_div, cycle_momentum=False
    )


def plateau(
    optimizer: Optimizer, length: int, *, mode: Literal["min", "max"] = "min", factor: float = 0.1, patience: int = 2
) -> AnyScheduler:
    """Times `factor` whenever the monitored metric has not got better for more than `patience` units. Moves on with each epoch."""
    return ReduceLROnPlateau(optimizer, mode=mode, factor=factor, patience=patience)


def step(optimizer: Optimizer, length: int, *, step_size: int = 10, gamma: float = 0.1) -> AnyScheduler:
    """Times `gamma` every `step_size` units. Raises `UserError` for a size below 1."""
    if step_size < 1:
        raise UserError(f"lr_scheduler.curve.step_size={step_size}: give a whole number from 1")
    return StepLR(optimizer, step_size, gamma)


def exponential(optimizer: Optimizer, length: int, *, least: float, most: float) -> AnyScheduler:
    """From `least` to `most`, times the same at each of the `length` - 1 steps: the range test's."""
    return LambdaLR(optimizer, lambda step: least * (most / least) ** (step / max(1, length - 1)))


def any_curve(optimizer: Optimizer, length: int, *, scheduler: Callable[[Optimizer], AnyScheduler]) -> AnyScheduler:
    """Any scheduler of torch that needs no length: `partial(StepLR, step_size=10)`."""
    return scheduler(optimizer)
