"""The learning-rate range test: raise the rate step by step, record the loss, suggest the rate at which it falls fastest."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log
from pathlib import Path

import torch
from torch import Tensor

from ftlit.errors import UserError
from ftlit.files import write_figure, write_rows

SMOOTHING_WIDTH = 0.3 * log(10)  # in ln(rate): the weight of a loss falls to 1 / e in 0.3 decades
RISING_RATIO = 2.0  # the loss rises where its smoothed value is this many times its minimum
DIVERGENCE_RATIO = 4.0  # a smoothed loss of this many times its minimum ends the test, as in Lightning and fastai


@dataclass(frozen=True)
class RangeTest:
    """Settings of a range test (Smith 2017, section 3.3; here the rate grows exponentially).

    Rates are those of the optimizer, before the learning-rate factor of a group.

    Args:
        least: the first rate, above 0.
        most: the last rate, above `least`.
        steps: optimizer steps from the first to the last, at least 10.
        stage: index of the stage of the schedule whose parameters train; negative values count from the last.

    Raises:
        UserError: a value out of its range.
    """

    least: float = 1e-6
    most: float = 10.0
    steps: int = 100
    stage: int = -1

    def __post_init__(self) -> None:
        if not (0 < self.least < self.most and isfinite(self.most)):
            raise UserError(
                f"lr_find.least={self.least:g} and lr_find.most={self.most:g}: give finite numbers with 0 < lr_find.least < lr_find.most"
            )
        if self.steps < 10:
            raise UserError(f"lr_find.steps={self.steps}: give a whole number, 10 or more")


@dataclass(frozen=True)
class Suggestion:
    """The results of a range test.

    Args:
        steep: the rate at which the smoothed loss falls fastest over ln(rate); `None` if its minimum is at the first rate.
        tenth: a tenth of the rate at which it is minimal.
        climbs: a tenth of the last rate at which it is at most `RISING_RATIO` times its minimum. This one counts for a fitted linear probe,
            whose loss cannot fall.
        last: the last rate.
    """

    steep: float | None
    tenth: float
    climbs: float
    last: float

    def open_ended(self, *, probe_head: bool) -> bool:
        """Whether the suggestion is at the last rate, so that higher rates may be better.

        Args:
            probe_head: whether the head is a fitted linear probe.
        """
        return (self.climbs if probe_head else self.tenth) == self.last / 10


def smooth(rates: Sequence[float], losses: Sequence[float], *, centred: bool = False) -> Tensor:
    """Compute weighted means of each loss and those before it, with weights exp(-(ln r_i - ln r_j) / SMOOTHING_WIDTH).

    This is a running average with bias correction, for any number of steps per decade: a loss that explodes has no effect on the values
    before it. A curve of the logarithm of the rate appears `SMOOTHING_WIDTH` later.

    Args:
        rates: increasing.
        losses: one for each rate.
        centred: whether the means take later losses too, with weights exp(-|ln r_i - ln r_j| / SMOOTHING_WIDTH). Then there is no lag.

    Returns:
        The smoothed losses, float64 (N,).
    """
    logs_N = torch.tensor(rates, dtype=torch.float64).log()
    weights_NN = torch.exp(-(logs_N[:, None] - logs_N).abs() / SMOOTHING_WIDTH)
    weights_NN = weights_NN if centred else weights_NN.tril()
    return (weights_NN @ torch.tensor(losses, dtype=torch.float64)) / weights_NN.sum(dim=1)


def diverged(rates: Sequence[float], losses: Sequence[float]) -> bool:
    """Whether the last smoothed loss is more than `DIVERGENCE_RATIO` times the minimum."""
    smoothed_N = smooth(rates, losses)
    return bool(smoothed_N[-1] > DIVERGENCE_RATIO * smoothed_N.min())


def suggest(rates: Sequence[float], losses: Sequence[float]) -> Suggestion:
    """Find the rates of a `Suggestion`.

    A factor on all rates scales the results; a factor on all losses changes nothing, and neither does a constant added to them, except for
    `climbs`. Losses after the minimum have no effect on `steep` and `tenth`, however large they are.

    Args:
        rates: increasing.
        losses: finite, one for each rate.
    """
    smoothed_N = smooth(rates, losses)
    least = int(smoothed_N.argmin())
    climbs = int((smoothed_N <= RISING_RATIO * smoothed_N.min()).nonzero().max())
    tenth, climbing = _without_lag(rates, least) / 10, _without_lag(rates, climbs) / 10
    if least == 0:
        return Suggestion(None, tenth, climbing, rates[-1])
    logs_N = torch.tensor(rates[: least + 1], dtype=torch.float64).log()
    falling_N = smooth(rates[: least + 1], losses[: least + 1], centred=True)  # nothing after the minimum counts
    slopes = torch.gradient(falling_N, spacing=(logs_N,))[0]
    return Suggestion(rates[int(slopes.argmin())], tenth, climbing, rates[-1])


def _without_lag(rates: Sequence[float], place: int) -> float:
    """The rate of a place on the smoothed curve, less its lag; the first and the last rate stay."""
    return rates[place] if place in (0, len(rates) - 1) else max(rates[0], rates[place] * exp(-SMOOTHING_WIDTH))


def write_csv(path: Path, rates: Sequence[float], losses: Sequence[float]) -> None:
    """Write one row for each step: rate, loss, smoothed loss."""
    write_rows(path, [("rate", "loss", "smoothed"), *zip(rates, losses, smooth(rates, losses).tolist(), strict=True)])


def draw(path: Path, rates: Sequence[float], losses: Sequence[float], suggestion: Suggestion, *, probe_head: bool) -> None:
    """Plot the losses over the rates as PNG, with the suggested rates.

    Args:
        path: of the PNG file.
        rates: increasing.
        losses: one for each rate.
        suggestion: the rates to mark.
        probe_head: whether the head is a fitted linear probe.
    """
    from matplotlib.figure import Figure  # imported late: every run imports this module. Not pyplot: it may need a screen

    smoothed = smooth(rates, losses).tolist()
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="optimizer.lr", ylabel="training loss")
    axes.plot(rates, losses, color="0.75", linewidth=1, label="loss of a step")
    axes.plot(rates, smoothed, color="C0", linewidth=2, label="smoothed")
    if (steep := suggestion.steep) and not probe_head:
        axes.plot(steep, smoothed[rates.index(steep)], "o", color="C3", markersize=9, label=f"falls fastest: {steep:.1e}")
    tenth, of = (suggestion.climbs, "where it has doubled") if probe_head else (suggestion.tenth, "the minimum's")
    axes.axvline(tenth, color="C2", linestyle="--", label=f"a tenth of {of}: {tenth:.1e}")
    until = sum(rate <= 10 * tenth for rate in rates)
    axes.set_ylim(0, 1.15 * max(losses[:until]))  # later losses may be arbitrarily large
    axes.legend()
    write_figure(path, figure, dpi=120)
