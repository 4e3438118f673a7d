"""When a metric says that a stage is over."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

from ftlit.errors import UserError, unknown


@dataclass(frozen=True)
class Until:
    """The stage before goes on until a metric is good enough, or until it stops getting better.

    Args:
        metric: a logged metric, `val/accuracy` for instance.
        mode: whether more (`max`) or less (`min`) of it is better.
        threshold: good enough is this much or better.
        patience: it has stopped getting better after so many judgements in a row that beat the best by no more than `min_delta`.
        min_delta: what counts as better, 0 or more.

    Raises:
        UserError: neither threshold nor patience, or a value out of its range.
    """

    metric: str
    mode: Literal["max", "min"] = "max"
    threshold: float | None = None
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise unknown("mode", self.mode, ("max", "min"))
        if self.threshold is None and self.patience is None:
            raise UserError(f"until {self.metric!r}: give a threshold, a patience (a number of validations without progress) or both")
        if self.patience is not None and (not isinstance(self.patience, int) or self.patience < 1):
            raise UserError(f"until {self.metric!r}: patience={self.patience!r}: give a whole number from 1")
        if not self.min_delta >= 0:
            raise UserError(f"until {self.metric!r}: min_delta={self.min_delta!r}: give 0 or more")

    def reached(self, values: Sequence[float]) -> bool:
        """Whether the metric's values since the stage before began, oldest first, are enough. NaN is never better.

        >>> Until("val/loss", mode="min", patience=2).reached([3.0, 2.0, 2.5, 2.0])
        True
        """
        return bool(values) and (self._good_enough(values[-1]) or self._stalled(values))

    def better(self, value: float, best: float | None) -> bool:
        """Whether `value` beats `best` by more than `min_delta`; any number beats `None`."""
        gain = value - (-inf if best is None else best) if self.mode == "max" else (inf if best is None else best) - value
        return gain > self.min_delta

    def __str__(self) -> str:
        sign = ">=" if self.mode == "max" else "<="
        parts = [f"{self.metric} {sign} {self.threshold:g}"] if self.threshold is not None else []
        parts += [f"{self.metric} stalls {self.patience} times"] if self.patience is not None else []
        return " or ".join(parts)

    def _good_enough(self, value: float) -> bool:
        if self.threshold is None:
            return False
        return value >= self.threshold if self.mode == "max" else value <= self.threshold

    def _stalled(self, values: Sequence[float]) -> bool:
        if self.patience is None:
            return False
        best, waited = None, 0
        for value in values:
            best, waited = (value, 0) if self.better(value, best) else (best, waited + 1)
        return waited >= self.patience
