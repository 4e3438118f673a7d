"""Probes at every layer: how well each cut tells the classes apart, chosen on held-out images and reported once on test."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ftlit.codes import Codes
from ftlit.errors import UserError, unknown
from ftlit.linear_loss import KINDS, Kind
from ftlit.pooling import POOLINGS, Pooling
from ftlit.probe import STRENGTHS, Probe, fit_probe
from ftlit.seeding import derived_seed

DRAWS = 10_000  # of the bootstrap
LEVEL = 0.95
LINES = ("o-", "^--", "s:")  # of each pooling


@dataclass(frozen=True)
class Probing:
    """What is tried. An option of the group `probe`.

    Args:
        kinds: of the loss, see `ftlit.solve.solve`.
        strengths: of the penalty, see `ftlit.probe.fit_probe`; `None`: 25 from 10 to 1e-5.
        cuts: names of layers; `None`: all.
        poolings: of the codes, see `ftlit.pooling.pool`; at each cut those that its codes can be pooled by. A head that is solved in
            place takes the average.
        seed: of the folds of cross-validation and of the bootstrap.
        repeats: how often the training images of each class are drawn anew, where there are few of them (`data.per_class`).

    Raises:
        UserError: no kind or pooling, an unknown one, strengths that are not above 0, or no repeat.
    """

    kinds: Sequence[str] = ("softmax",)
    strengths: Sequence[float] | None = None
    cuts: Sequence[str] | None = None
    poolings: Sequence[str] = ("average",)
    seed: int = 0
    repeats: int = 1

    def __post_init__(self) -> None:
        for kind in self.kinds or ("",):
            if kind not in KINDS:
                raise unknown("kind of probe", kind, KINDS)
        for pooling in self.poolings or ("",):
            if pooling not in POOLINGS:
                raise unknown("pooling", pooling, POOLINGS)
        if self.strengths is not None and not (len(self.strengths) and all(strength > 0 for strength in self.strengths)):
            raise UserError(f"probe.strengths={list(self.strengths)}: give numbers above 0")
        if self.repeats < 1:
            raise UserError(f"probe.repeats={self.repeats}: give a whole number, 1 or more")

    def at(self, codes: Mapping[Pooling, Codes], valid: Mapping[Pooling, Codes] | None = None) -> list[Probe]:
        """A probe for each cut, kind and pooling, the highest cut first; see `fit_probe`."""
        strengths = [float(strength) for strength in self.strengths or STRENGTHS]
        kinds: list[Kind] = [kind for kind in KINDS if kind in self.kinds]
        how: dict[str, Any] = {"strength": strengths, "seed": self.seed}
        return [
            fit_probe(own, cut=cut, kind=kind, pooling=pooling, valid=None if valid is None else valid[pooling], **how)
            for cut in reversed(next(iter(codes.values())).cuts)
            for kind in kinds
            for pooling, own in codes.items()
            if cut in own.cuts
        ]


def best_of(probes: Sequence[Probe]) -> Probe:
    """That whose accuracy on held-out codes is best; of equals the first. Raises `UserError` for several of which nothing was held out."""
    if len(probes) > 1 and any(probe.score is None for probe in probes):
        raise UserError("nothing is held out to choose by: give one cut (probe.cuts=[...]), one kind, and one strength, or more images")
    return max(probes, key=lambda probe: probe.score or 0.0)


@dataclass(frozen=True)
class Interval:
    """A share of N and where it would lie in 95 of 100 draws of N with replacement (Efron 1979): the percentiles of a bootstrap."""

    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.share:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap(right: Tensor, seed: int) -> Interval:
    """The interval of the mean of N truth values."""
    n, share = len(right), float(right.double().mean())
    draw = torch.Generator().manual_seed(derived_seed(seed, n))
    means = torch.binomial(torch.full((DRAWS,), float(n)), torch.full((DRAWS,), share), generator=draw) / n
    low, high = torch.quantile(means, torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2])).tolist()
    return Interval(share, low, high)


def write_csv(path: Path, draws: Sequence[Sequence[Probe]]) -> None:
    """A row for each draw, cut, kind, pooling and strength that was tried: held-out accuracy and loss."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["draw", "cut", "kind", "pooling", "strength", "accuracy", "loss"])
        for number, probes in enumerate(draws):
            for probe in probes:
                row = (number, probe.cut, probe.kind, probe.pooling)
                writer.writerows((*row, strength, share, probe.losses[strength]) for strength, share in probe.scores.items())


def draw(path: Path, cuts: Sequence[str], probes: Sequence[Probe], best: Probe, tested: Interval, title: str = "") -> None:
    """A picture of held-out accuracy by depth, a line for each kind (colour) and pooling (marker), and the chosen one's test, as PNG."""
    from matplotlib.figure import Figure  # here, so that settings are read without it; no pyplot: no screen is needed

    figure = Figure(figsize=(8.5, 4.2), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="cut, from the input to the top", ylabel="accuracy")
    for kind, pooling in dict.fromkeys((probe.kind, probe.pooling) for probe in probes):
        own = [probe for probe in probes if (probe.kind, probe.pooling) == (kind, pooling) and probe.score is not None]
        scores = {str(probe.cut): probe.score or 0.0 for probe in own}
        shown = [cut for cut in cuts if cut in scores]
        style: dict[str, Any] = {"color": f"C{KINDS.index(kind)}", "alpha": 0.8, "markersize": 5}
        axes.plot(shown, [scores[cut] for cut in shown], LINES[POOLINGS.index(pooling)], label=f"{kind}, {pooling}", **style)
    told = f"test of the chosen\n({best.kind}, {best.pooling})"
    error = [[tested.share - tested.low], [tested.high - tested.share]]
    axes.errorbar([str(best.cut)], [tested.share], error, fmt="s", color="black", capsize=4, label=f"{told}, 95 %")
    axes.tick_params(axis="x", rotation=45 if len(cuts) > 6 else 0)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(title="held-out accuracy", loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    figure.savefig(path, dpi=120)
