"""Statistics over the seeds of a setting, and the paired difference of two settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from ftlit.sweeps.setting_jobs import Setting

ESTABLISHED = "†"  # behind a difference
DIGITS = 6  # of a difference: accuracies are float32, and equal differences should be equal


def half_interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean by Student's t; `None` without two different values.

    >>> round(half_interval([1.0, 2.0, 3.0]), 3)  # 4.303 / sqrt(3)
    2.484
    """
    if len(set(values)) < 2:
        return None
    from scipy.stats import t  # here, so that the command line stays fast

    return float(t.ppf(0.975, len(values) - 1) * stdev(values) / sqrt(len(values)))


def interval(values: Sequence[float], *, share: bool) -> tuple[float, float] | None:
    """The 95 % interval of the mean, `half_interval` to both sides; `None` where there is none.

    Args:
        values: one per seed.
        share: whether they are shares, as accuracies are: their interval is clipped to [0, 1].

    >>> interval([0.9, 1.0], share=True)[1]
    1.0
    """
    if (half := half_interval(values)) is None:
        return None
    low, high = mean(values) - half, mean(values) + half
    return (max(0.0, low), min(1.0, high)) if share else (low, high)


@dataclass(frozen=True)
class PairedDifference:
    """The mean over seeds of a setting's metric minus that of another setting with the same seed.

    Args:
        mean: of the differences.
        half: half the width of its 95 % interval; `None` where all differences are equal, or there is only one.
        seeds: number of seeds that both settings have.
    """

    mean: float
    half: float | None
    seeds: int

    @property
    def limits(self) -> tuple[float, float] | None:
        """Both ends of the interval."""
        return None if self.half is None else (self.mean - self.half, self.mean + self.half)

    @property
    def is_established(self) -> bool:
        """Whether the interval does not contain 0."""
        return self.half is not None and abs(self.mean) > self.half

    def __str__(self) -> str:
        interval = "" if self.half is None else f" ± {self.half:.4f}"
        return f"{self.mean:+.4f}{interval}{f' {ESTABLISHED}' if self.is_established else ''}"


def difference(setting: Setting, other: Setting, metric: str) -> PairedDifference | None:
    """The paired difference of two settings; `None` without a seed in common."""
    own, others = setting.by_seed(metric), other.by_seed(metric)
    differences = [round(value - others[seed], DIGITS) for seed, value in own.items() if seed in others]
    if not differences:
        return None
    return PairedDifference(mean(differences), half_interval(differences), len(differences))
