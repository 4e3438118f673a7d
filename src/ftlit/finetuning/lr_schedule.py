"""Learning-rate schedules over time: one factor for all parameter groups, so that the ratios between their rates never change.

A scheduler of torch controls the rate of a stand-in optimizer that has one group with rate 1. That rate is the factor: the rate of each
group is its base rate times the factor. This also works with schedulers that support one group only, or treat groups differently. The
base rates follow from the learning-rate factors of the layers, see `presets`.
"""

import warnings
from collections.abc import Callable, Sequence
from math import ceil, inf
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
from ftlit.formatting import count
from ftlit.plain_arguments import plain_arguments

AnyScheduler = LRScheduler | ReduceLROnPlateau
Curve = Callable[[Optimizer, int], AnyScheduler]


class Rates(LRScheduler):
    """A scheduler that sets `lr` of every group to the group's base rate times a factor that follows a curve.

    Args:
        optimizer: the rates of its groups at this time are their base rates, stored in each group as `initial_lr`.
        curve: builds a scheduler from the stand-in optimizer and the number of its steps, such as `cosine`.
        steps: optimizer steps of the whole training, at least 1.
        epochs: epochs of the whole training.
        unit: whether the curve advances with each `step` or each `epoch`; Lightning's name is `interval`.
        warmup: fraction of the length, in [0, 1), in which the factor first rises linearly to 1.
        restart: whether the curve and its warm-up start again with each stage (`begin_stage`).
        monitor: the metric that a curve of `ReduceLROnPlateau` monitors.
        stage_factors: one more factor for each stage of `StagedFinetuning`, above 0, while that stage lasts; empty: 1.

    Raises:
        UserError: a warm-up or a factor out of its range, or a curve that is no function.
    """

    @plain_arguments
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
        stage_factors: Sequence[float] = (),
    ) -> None:
        # LRScheduler.__init__ is not called: it takes a first step and counts steps, and the curve's own scheduler does both
        if not callable(curve):
            raise UserError(
                f"curve={curve!r} of Rates: give a function that builds a scheduler, such as ftlit.finetuning.lr_schedule.cosine"
            )
        if not 0 <= warmup < 1:
            raise UserError(f"lr_scheduler.warmup={warmup}: give a fraction of the run, at least 0 and below 1")
        for value in stage_factors:
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < inf:
                raise UserError(f"lr_scheduler.stage_factors={[*stage_factors]}: give a number above 0 for each stage, such as [1, 0.1]")
        self.optimizer, self.unit, self.monitor = optimizer, unit, monitor
        self.stage_factors, self._stage = tuple(stage_factors), 0
        self._curve, self._warmup, self._restart = curve, warmup, restart
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self._total = steps if unit == "step" else epochs
        if unit == "epoch" and 0 < warmup * epochs < 1:
            least = f"at least {ceil(1000 / epochs) / 1000:g}, or " if epochs > 1 else ""  # rounded up: 0.33 of 3 epochs is no epoch
            warnings.warn(
                f"lr_scheduler.warmup={warmup}, a share of {count(epochs, 'epoch')}, is less than one epoch, but this scheduler changes "
                f"the rate once per epoch, so there is no warm-up: give {least}a scheduler that changes it at every step, such "
                "as lr_scheduler=cosine",
                stacklevel=2,
            )
        self._begin(self._total)

    @property
    def factor(self) -> float:
        """The present factor on every base rate."""
        warmup: float = min(1.0, (self._taken + 1) / (self._warmup_length + 1))
        of_stage = self.stage_factors[self._stage] if self.stage_factors else 1.0
        return warmup * float(self._stand_in.param_groups[0]["lr"]) * of_stage

    @property
    def restarts(self) -> bool:
        """Whether the curve starts again with each stage."""
        return self._restart

    @property
    def warmup(self) -> float:
        """The fraction of the length in which the factor first rises; 0 also where that is less than one step or epoch."""
        return self._warmup if self._warmup_length else 0.0

    @property
    def reduce_on_plateau(self) -> bool:
        """Whether a step needs the value of a metric."""
        return isinstance(self._scheduler, ReduceLROnPlateau)

    @property
    def patience(self) -> int | None:
        """The number of units without improvement that a curve that reduces on a plateau lets pass; `None` for other curves."""
        return self._scheduler.patience if isinstance(self._scheduler, ReduceLROnPlateau) else None

    @property
    def config(self) -> dict[str, Any]:
        """The value of `lr_scheduler` for a LightningModule's `configure_optimizers`."""
        plateau = {"monitor": self.monitor, "reduce_on_plateau": True} if self.reduce_on_plateau else {}
        return {"scheduler": self, "interval": self.unit, **plateau}

    def set_stage(self, index: int) -> None:
        """Change from the factor of the stage before to that of stage `index`, if there are `stage_factors`."""
        if self.stage_factors:
            self._stage = index
            self._set()

    def begin_stage(self, steps: int, epochs: int) -> None:
        """Start the curve again, if `restart`, for a stage of this many steps and epochs."""
        if self._restart:
            self._begin(steps if self.unit == "step" else epochs)

    def step(self, metrics: float | None = None) -> None:
        """Advance by one unit; after its end the curve stays constant.

        Args:
            metrics: value of the monitored metric, for a curve that reduces on a plateau.

        Raises:
            UserError: such a curve without a value.
        """
        self._taken += 1
        if self._warmup_length < self._taken < self._length:
            self._stand_in.step()  # no effect; torch requires a step of the optimizer before one of its scheduler
            if isinstance(self._scheduler, ReduceLROnPlateau):
                if metrics is None:
                    raise UserError(f"the plateau schedule needs a value of {self.monitor!r}: call step(value)")
                self._scheduler.step(metrics)
            else:
                self._scheduler.step()
        self._set()

    def get_last_lr(self) -> list[float | Tensor]:
        """Return the rate of each group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the position on the curve."""
        stand_in = {name: value for name, value in self._stand_in.param_groups[0].items() if name != "params"}
        return {
            "total": self._total,
            "length": self._length,
            "taken": self._taken,
            "stage": self._stage,
            "stand_in": stand_in,
            "scheduler": self._scheduler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position on the curve. Raises `UserError` if training had another length."""
        if state_dict["total"] != self._total:
            saved, own = count(state_dict["total"], self.unit), count(self._total, self.unit)
            raise UserError(
                f"this checkpoint is from a run of {saved}, but this run has {own}: give max_epochs, training data and global batch "
                "(batch size times processes) of that run, or start a new run from the weights of the checkpoint"
            )
        self._begin(state_dict["length"])
        self._taken, self._stage = state_dict["taken"], state_dict.get("stage", 0)  # older checkpoints have none: no stage had a factor
        self._scheduler.load_state_dict(state_dict["scheduler"])
        self._stand_in.param_groups[0].update(state_dict["stand_in"])
        self._set()

    def _begin(self, length: int) -> None:
        self._length, self._taken = max(1, length), 0
        self._warmup_length = int(self._warmup * self._length)
        self._stand_in = SGD([torch.zeros(1)], lr=1.0)
        self._scheduler = self._curve(self._stand_in, self._length - self._warmup_length)
        self._set()

    def _set(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor


def constant(optimizer: Optimizer, length: int) -> AnyScheduler:
    """Constant factor 1."""
    return ConstantLR(optimizer, factor=1.0)


def cosine(optimizer: Optimizer, length: int, *, least: float = 0.0) -> AnyScheduler:
    """Half a cosine from 1 down to `least` (Loshchilov and Hutter 2017, section 3, without restarts)."""
    return CosineAnnealingLR(optimizer, T_max=length, eta_min=least)


def linear(optimizer: Optimizer, length: int, *, least: float = 0.0) -> AnyScheduler:
    """Straight line from 1 down to `least`."""
    return LinearLR(optimizer, start_factor=1.0, end_factor=least, total_iters=length)


def one_cycle(optimizer: Optimizer, length: int, *, rise: float = 0.3, div: float = 25.0, final_div: float = 1e4) -> AnyScheduler:
    """One cycle (Smith and Topin 2018): from 1 / `div` up to 1 in the fraction `rise`, then down to 1 / (`div` x `final_div`)."""
    length = max(length, 2)
    rise = max(rise, 1.5 / length)  # torch divides by the steps of the rise minus one
    return OneCycleLR(
        optimizer, max_lr=1.0, total_steps=length, pct_start=rise, div_factor=div, final_div_factor=final_div, cycle_momentum=False
    )


def plateau(
    optimizer: Optimizer, length: int, *, mode: Literal["min", "max"] = "min", factor: float = 0.1, patience: int = 2
) -> AnyScheduler:
    """Multiply by `factor` when the monitored metric has not improved for more than `patience` units. Use `unit="epoch"`."""
    return ReduceLROnPlateau(optimizer, mode=mode, factor=factor, patience=patience)


def step(optimizer: Optimizer, length: int, *, step_size: int = 10, gamma: float = 0.1) -> AnyScheduler:
    """Multiply by `gamma` every `step_size` units. Raises `UserError` for a size below 1."""
    if step_size < 1:
        raise UserError(f"lr_scheduler.curve.step_size={step_size}: give a whole number, 1 or more")
    return StepLR(optimizer, step_size, gamma)


def exponential(optimizer: Optimizer, length: int, *, least: float, most: float) -> AnyScheduler:
    """Exponential growth from `least` to `most` in `length` - 1 steps, for the range test."""
    return LambdaLR(optimizer, lambda step: least * (most / least) ** (step / max(1, length - 1)))


def any_curve(optimizer: Optimizer, length: int, *, scheduler: Callable[[Optimizer], AnyScheduler]) -> AnyScheduler:
    """Use any scheduler of torch that needs no length, such as `partial(StepLR, step_size=10)`."""
    return scheduler(optimizer)
