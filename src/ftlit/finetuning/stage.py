"""The stage: which parameters train, from when, and the metric that may start it earlier (`Until`)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Literal

from ftlit.errors import UserError, in_quotes, invalid
from ftlit.finetuning.freeze import BatchNorm, check_batchnorm
from ftlit.finetuning.lr_schedule import Rates
from ftlit.finetuning.param_groups import RATES_ELSEWHERE
from ftlit.finetuning.train_entries import Entry, Given, describe, entries_of
from ftlit.formatting import count
from ftlit.plain_arguments import known_arguments

Mode = Literal["max", "min"]
MODES: dict[str, Mode] = {
    "loss": "min",
    "error": "min",
    "accuracy": "max",
    "f1": "max",
    "auroc": "max",
    "precision": "max",
    "recall": "max",
}


def mode_of(metric: str) -> Mode | None:
    """Whether the least or the greatest value of a metric is best, by the last part of its name; `None` for a name that is not known.

    >>> [mode_of(name) for name in ("val_loss", "val/f1", "loss/score")]
    ['min', 'max', None]
    """
    name = metric.rpartition("/")[2].lower()
    return next((mode for known, mode in MODES.items() if known in name), None)


def doubts(until: "Until", stages: str) -> Iterator[str]:
    """Yield a line for each value of a condition that does not suit the name of its metric; `stages` says whose condition it is."""
    usual, name = mode_of(until.metric), until.metric
    if usual not in (until.mode, None):
        rise, better = ("rise", "lower") if until.mode == "max" else ("fall", "higher")
        yield f"{stages}: mode={until.mode!r} lets {name} {rise}, but {better} values of it are better: leave mode out of `until`"
    elif usual == "max" and until.threshold is not None and until.threshold > 1:
        fraction = until.threshold / 100 if until.threshold <= 100 else 1
        yield f"{stages}: {name} can reach {until.threshold:g} only if it is logged in percent; else give threshold={fraction:g} in `until`"


@dataclass(frozen=True)
class Until:
    """A condition on a metric that starts a stage: it reaches a threshold, or stops improving.

    Args:
        metric: name of a logged metric, `val/accuracy` for instance.
        mode: whether the metric is to increase (`max`) or decrease (`min`). `None`: `min` for a loss or an error, by its name, else `max`.
        threshold: the condition holds when the metric has this value or a better one.
        patience: the condition holds after this number of validations in a row without improvement.
        min_delta: smallest change that counts as an improvement, 0 or more.

    Raises:
        UserError: neither threshold nor patience, or a value out of its range.
    """

    metric: str
    mode: Mode | None = None
    threshold: float | None = None
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.mode is None:
            object.__setattr__(self, "mode", mode_of(str(self.metric)) or "max")
        if self.mode not in ("max", "min"):
            raise invalid("mode", self.mode, ("max", "min"))
        if self.threshold is None and self.patience is None:
            raise UserError(
                f"`until` has metric={self.metric!r} only: add a threshold, a patience (number of validations without improvement), or both"
            )
        if self.patience is not None and (not isinstance(self.patience, int) or self.patience < 1):
            raise UserError(f"patience={self.patience!r} in `until`: give a whole number, 1 or more{in_quotes(self.patience)}")
        if not isinstance(self.threshold, int | float | None):
            raise UserError(f"threshold={self.threshold!r} in `until`: give a number{in_quotes(self.threshold)}")
        if not isinstance(self.min_delta, int | float) or not self.min_delta >= 0:
            raise UserError(f"min_delta={self.min_delta!r} in `until`: give a number, 0 or more{in_quotes(self.min_delta)}")

    def reached(self, values: Sequence[float]) -> bool:
        """Whether the condition holds for the metric's values since the stage before began, oldest first. NaN is never an improvement.

        >>> Until("val/loss", mode="min", patience=2).reached([3.0, 2.0, 2.5, 2.0])
        True
        """
        return bool(values) and (self._good_enough(values[-1]) or self._stalled(values))

    def waited(self, values: Sequence[float]) -> int:
        """The number of values at the end without an improvement; see `reached`.

        >>> Until("val/loss", patience=3).waited([3.0, 2.0, 2.5, 2.0])
        2
        """
        best, waited = None, 0
        for value in values:
            best, waited = (value, 0) if self.better(value, best) else (best, waited + 1)
        return waited

    def better(self, value: float, best: float | None) -> bool:
        """Whether `value` is better than `best` by more than `min_delta`; any number is better than `None`."""
        gain = value - (-inf if best is None else best) if self.mode == "max" else (inf if best is None else best) - value
        return gain > self.min_delta

    def __str__(self) -> str:
        sign = ">=" if self.mode == "max" else "<="
        parts = [f"{self.metric} {sign} {self.threshold:g}"] if self.threshold is not None else []
        better = "higher" if self.mode == "max" else "lower"
        least = f" (min_delta {self.min_delta:g})" if self.min_delta else ""
        parts += [f"{self.metric} ({better} is better) stalls {count(self.patience, 'time')}{least}"] if self.patience is not None else []
        return " or ".join(parts)

    def _good_enough(self, value: float) -> bool:
        if self.threshold is None:
            return False
        return value >= self.threshold if self.mode == "max" else value <= self.threshold

    def _stalled(self, values: Sequence[float]) -> bool:
        return self.patience is not None and self.waited(values) >= self.patience


@known_arguments(lr=RATES_ELSEWHERE)
@dataclass(frozen=True)
class Stage:
    """A span of training in which exactly the parameters that `train` covers train; all others are frozen.

    A stage begins at an epoch, at an optimizer step, or at the first epoch after `until` is reached, and then at `epoch` at the latest.
    With `until` and no `epoch`, only the metric begins it: it may never begin.

    Args:
        train: patterns (see `ftlit.patterns`), at least one. A mapping of a pattern to `bias`, `norm` or `lora` trains only the biases, the
            norms or the LoRA matrices (see `ftlit.add_lora`) that it covers: `["head", {"backbone": "bias"}]`.
        epoch: the first epoch of this stage, counted from 0; with `until`, the latest. Default: 0, or with `until` no latest epoch.
        step: the first optimizer step of this stage, counted from 0.
        until: the condition that ends the stage before.
        name: its name in the plan and the progress bar; the patterns by default.
        batchnorm: `auto`, `live`, `frozen` or `frozen_stats` for every batch norm, or a mapping from patterns to these; see
            `ftlit.finetuning.freeze`. `None`: not decided, counts as `auto`.
        from_best: whether to begin with the weights of the stage before that had the best value of the metric of `until`.

    Raises:
        UserError: no pattern, a beginning that is not a whole number from 0, or arguments that contradict each other.
    """

    train: Given
    epoch: int | None = None
    step: int | None = None
    until: Until | None = None
    name: str = ""
    batchnorm: BatchNorm | None = None
    from_best: bool = False

    def __post_init__(self) -> None:
        train = entries_of(self.train)
        object.__setattr__(self, "train", train)
        object.__setattr__(self, "name", self.name or " + ".join(map(describe, train)))
        if self.epoch is None and self.step is None and self.until is None:
            object.__setattr__(self, "epoch", 0)
        if not train:
            raise UserError(
                f"stage {self.name or self.epoch!r} trains nothing: give `train` at least one pattern, such as '*' for all parameters"
            )
        for unit, value in (("epoch", self.epoch), ("step", self.step)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise UserError(f"stage {self.name!r} has {unit}={value!r}: give a whole number, 0 or more{in_quotes(value)}")
        if self.step is not None and (self.epoch is not None or self.until is not None):
            also = " and ".join(name for name in ("epoch", "until") if getattr(self, name) is not None)
            raise UserError(f"stage {self.name!r} has step={self.step} and also {also}: leave out step, or leave out {also}")
        if not isinstance(self.until, Until | None):
            raise UserError(
                f"stage {self.name!r} has until={self.until!r}, which is no condition: give "
                "until={metric: val/accuracy, threshold: 0.9}, or until={metric: val/loss, mode: min, patience: 2}"
            )
        if self.from_best and self.until is None:
            raise UserError(
                f"stage {self.name!r}: from_best needs `until`, whose metric selects the best weights: "
                "add until={metric: val/accuracy, threshold: 0.9}, or leave out from_best"
            )
        if self.batchnorm is not None:
            check_batchnorm(self.batchnorm)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """`train` in its normal form: patterns, and pairs (pattern, part)."""
        return entries_of(self.train)

    @property
    def policy(self) -> BatchNorm:
        """The batch norm policy: `batchnorm`, or `auto` if that is `None`."""
        return self.batchnorm or "auto"

    @property
    def begins(self) -> str:
        """A text for the plan: when the stage begins."""
        if self.until is not None:
            return f"if {self.until}" if self.epoch is None else f"when {self.until}, at epoch {self.epoch} at the latest"
        return f"epoch {self.epoch}" if self.step is None else f"step {self.step}"


def begins_reduced(stages: Sequence[Stage], rates: Rates, validations: float, restart: str) -> Iterator[str]:
    """Warn of stages that a stalling metric begins after the same metric has reduced the learning rates (`plateau`).

    Args:
        stages: of the schedule.
        rates: the scheduler.
        validations: in an epoch.
        restart: what to type so that each stage begins with the full rates.
    """
    if rates.patience is None or rates.restarts:
        return
    for stage in stages:
        until = stage.until
        if until and until.metric == rates.monitor and until.patience and ceil(until.patience / validations) > rates.patience:
            stalls = f"{until.metric} stalls {count(until.patience, 'time')}"
            yield (
                f"stage {stage.name!r} begins when {stalls}, but by then the plateau curve has lowered all learning rates, because it "
                f"monitors {until.metric} too: give {restart}, so that each stage begins with the full rates"
            )
            return
