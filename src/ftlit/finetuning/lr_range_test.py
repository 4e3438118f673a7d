"""The learning-rate range test: raise the rate step by step, look at the loss, and take the rate at which it falls fastest."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, log
from pathlib import Path

import torch
from torch import Tensor

from ftlit.errors import UserError

WIDTH = 0.3 * log(10)  # of the smoothing: in 0.3 decades of the rate a loss counts for 1 / e
TWICE = 2.0  # a smoothed loss of so many times the best has begun to climb
WORSE = 4.0  # a smoothed loss of so many times the best ends the test, as in Lightning and fastai


@dataclass(frozen=True)
class RangeTest:
    """From which rate to which, in how many steps, and what trains meanwhile (Smith 2017, section 3.3; here the rate grows
    exponentially). A rate is the optimizer's, before the scale of a group.

    Args:
        least: the first rate, above 0.
        most: the last rate, above `least`.
        steps: optimizer steps from the first to the last, at least 10.
        stage: index of the stage of the schedule whose parameters train; negative: counted from the last.

    Raises:
        UserError: a value out of its range.
    """

    least: float = 1e-6
    most: float = 10.0
    steps: int = 100
    stage: int = -1

    def __post_init__(self) -> None:
        if not (0 < self.least < self.most and isfinite(self.most)):
            raise UserError(f"lr_find.least={self.least:g} lr_find.most={self.most:g}: give rates above 0, the second above the first")
        if self.steps < 10:
            raise UserError(f"lr_find.steps={self.steps}: give a whole number, 10 or more")


@dataclass(frozen=True)
class Suggestion:
    """Three answers of a range test.

    Args:
        steep: the rate at which the smoothed loss falls fastest over the logarithm of the rate; `None` where it is least at the first.
        tenth: a tenth of the rate at which it is least.
        climbs: a tenth of the last rate at which it is at most `TWICE` its least, for a head that is solved: it has nowhere to fall.
        last: the last rate.
    """

    steep: float | None
    tenth: float
    climbs: float
    last: float

    def open_ended(self, *, solved: bool) -> bool:
        """Whether what decides is met at the last rate alone, so that higher ones may do."""
        return (self.climbs if solved else self.tenth) == self.last / 10


def smooth(rates: Sequence[float], losses: Sequence[float]) -> Tensor:
    """Weighted means of the losses, weights exp(-|ln r_i - ln r_j| / WIDTH): without the lag of a running average, and however many
    steps there are to a decade. float64 (N,).

    The last value rests on losses before it only, as a running average with bias correction does.
    """
    logs_N = torch.tensor(rates, dtype=torch.float64).log()
    weights_NN = torch.exp(-(logs_N[:, None] - logs_N).abs() / WIDTH)
    return (weights_NN @ torch.tensor(losses, dtype=torch.float64)) / weights_NN.sum(dim=1)


def diverged(rates: Sequence[float], losses: Sequence[float]) -> bool:
    """Whether the smoothed loss is now more than `WORSE` times its best."""
    smoothed_N = smooth(rates, losses)
    return bool(smoothed_N[-1] > WORSE * smoothed_N.min())


def suggest(rates: Sequence[float], losses: Sequence[float]) -> Suggestion:
    """Where the smoothed loss falls fastest before its minimum, a tenth of the rate there, and a tenth of that from which on it climbs.

    Times any rate or loss, and but for the last plus any loss (above 0), it stays where it is.

    Args:
        rates: rising.
        losses: finite, one at each rate.
    """
    smoothed_N = smooth(rates, losses)
    least = int(smoothed_N.argmin())
    climbs = rates[int((smoothed_N <= TWICE * smoothed_N.min()).nonzero().max())] / 10
    if least == 0:
        return Suggestion(None, rates[0] / 10, climbs, rates[-1])
    logs_N = torch.tensor(rates, dtype=torch.float64).log()
    slopes = torch.gradient(smoothed_N[: least + 1], spacing=(logs_N[: least + 1],))[0]
    return Suggestion(rates[int(slopes.argmin())], rates[least] / 10, climbs, rates[-1])


def write_csv(path: Path, rates: Sequence[float], losses: Sequence[float]) -> None:
    """A row a step: rate, loss, smoothed."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("rate", "loss", "smoothed"))
        writer.writerows(zip(rates, losses, smooth(rates, losses).tolist(), strict=True))


def draw(path: Path, rates: Sequence[float], losses: Sequence[float], suggestion: Suggestion, *, solved: bool) -> None:
    """A picture of the losses over the rates, with the answers marked that count for a head that is solved or not, as PNG."""
    from matplotlib.figure import Figure  # here: the range test's settings are read by every run. No pyplot: no screen is needed

    smoothed = smooth(rates, losses).tolist()
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="optimizer.lr", ylabel="training loss")
    axes.plot(rates, losses, color="0.75", linewidth=1, label="loss of a step")
    axes.plot(rates, smoothed, color="C0", linewidth=2, label="smoothed")
    if (steep := suggestion.steep) and not solved:
        axes.plot(steep, smoothed[rates.index(steep)], "o", color="C3", markersize=9, label=f"falls fastest: {steep:.1e}")
    tenth, of = (suggestion.climbs, "where it has doubled") if solved else (suggestion.tenth, "the minimum's")
    axes.axvline(tenth, color="C2", linestyle="--", label=f"a tenth of {of}: {tenth:.1e}")
    until = sum(rate <= 10 * tenth for rate in rates)
    axes.set_ylim(0, 1.15 * max(losses[:until]))  # what comes after may rise out of all bounds
    axes.legend()
    figure.savefig(path, dpi=120)
