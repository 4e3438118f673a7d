"""Probes at every layer: how well each cut tells the classes apart, chosen on held-out images and reported once on test."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from ftlit.errors import UserError, unknown
from ftlit.features.extract import Features
from ftlit.models.pooling import POOLINGS, Pooling
from ftlit.probes.linear_probe import L2_PENALTIES, Probe, fit_probe
from ftlit.probes.objectives import KINDS, Kind
from ftlit.seeding import derived_seed

DRAWS = 10_000  # of the bootstrap
LEVEL = 0.95
MARKS = ("o-", "^--", "d:")  # of each kind


@dataclass(frozen=True)
class Probing:
    """What is tried. An option of the group `probe`.

    Args:
        kinds: of the loss, see `ftlit.probes.solver.solve`.
        l2: L2 penalties to try, see `ftlit.probes.linear_probe.fit_probe`; `None`: 25 from 10 to 1e-5.
        cuts: names of layers; `None`: all.
        poolings: of the features, see `ftlit.models.pooling.pool`; at each cut those that its features can be pooled by. A head that is solved in
            place takes the average.
        seed: of the folds of cross-validation and of the bootstrap.
        repeats: how often the training images of each class are drawn anew, where there are few of them (`data.per_class`).

    Raises:
        UserError: no kind or pooling, an unknown one, L2 penalties that are not above 0, or no repeat.
    """

    kinds: Sequence[str] = ("softmax",)
    l2: Sequence[float] | None = None
    cuts: Sequence[str] | None = None
    poolings: Sequence[str] = ("average",)
    seed: int = 0
    repeats: int = 1

    def __post_init__(self) -> None:
        for name, given, options in (("kinds", self.kinds, KINDS), ("poolings", self.poolings, POOLINGS)):
            if not given:
                raise UserError(f"probe.{name}=[]: give at least one of {', '.join(options)}")
            for one in given:
                if one not in options:
                    raise unknown(f"probe.{name}", one, options)
        if self.cuts is not None and not self.cuts:
            raise UserError("probe.cuts=[]: give at least one cut, or null for all")
        if self.l2 is not None and not (len(self.l2) and all(l2 > 0 for l2 in self.l2)):
            raise UserError(f"probe.l2={list(self.l2)}: give numbers above 0")
        if self.repeats < 1:
            raise UserError(f"probe.repeats={self.repeats}: give a whole number, 1 or more")

    def at(self, features: Mapping[Pooling, Features], valid: Mapping[Pooling, Features] | None = None) -> list[Probe]:
        """A probe for each cut, kind and pooling, the highest cut first; see `fit_probe`."""
        l2_penalties = [float(l2) for l2 in self.l2 or L2_PENALTIES]
        kinds: list[Kind] = [kind for kind in KINDS if kind in self.kinds]
        how: dict[str, Any] = {"l2": l2_penalties, "seed": self.seed}
        return [
            fit_probe(own, cut=cut, kind=kind, pooling=pooling, valid=None if valid is None else valid[pooling], **how)
            for cut in reversed(next(iter(features.values())).cuts)
            for kind in kinds
            for pooling, own in features.items()
            if cut in own.cuts
        ]


def best_of(probes: Sequence[Probe]) -> Probe:
    """That whose accuracy on held-out features is best; of equals the first. Raises `UserError` for several of which nothing was held out."""
    if len(probes) > 1 and any(probe.score is None for probe in probes):
        raise UserError("nothing is held out to choose by: give one cut (probe.cuts=[...]), one kind, and one L2 penalty, or more images")
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
    means = torch.binomial(torch.full((DRAWS,), float(n)).double(), torch.full((DRAWS,), share).double(), generator=draw) / n
    low, high = torch.quantile(means, torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=means.dtype)).tolist()
    return Interval(share, low, high)


def write_csv(path: Path, draws: Sequence[Sequence[Probe]]) -> None:
    """A row for each draw, cut, kind, pooling and L2 penalty that was tried: held-out accuracy and loss."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["draw", "cut", "kind", "pooling", "l2", "accuracy", "loss"])
        for number, probes in enumerate(draws):
            for probe in probes:
                row = (number, probe.cut, probe.kind, probe.pooling)
                writer.writerows((*row, l2, share, probe.losses[l2]) for l2, share in probe.scores.items())


def draw(path: Path, cuts: Sequence[str], draws: Sequence[Sequence[Probe]], chosen: Sequence[tuple[Probe, Interval]], title: str) -> None:
    """A picture of held-out accuracy by depth as PNG: a panel for each pooling, a line for each kind, mean and deviation of the draws;
    and what was chosen in each draw with its accuracy on test.
    """
    from matplotlib.figure import Figure  # here, so that settings are read without it; no pyplot: no screen is needed

    kinds, poolings = (list(dict.fromkeys(getattr(probe, name) for probe in draws[0])) for name in ("kind", "pooling"))
    figure = Figure(figsize=(2.4 + 3.6 * len(poolings), 4.2), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(1, len(poolings), sharey=True, squeeze=False)[0]
    for pooling, axes in zip(poolings, panels, strict=True):
        axes.set(title=f"{pooling} features" if len(poolings) > 1 else "", xlabel="cut, from the input to the top")
        axes.set_xticks(range(len(cuts)), cuts, rotation=45 if len(cuts) > 6 else 0)
        axes.grid(axis="y", alpha=0.3)
        for kind in kinds:
            own = {cut: [p.score for ps in draws for p in ps if (p.cut, p.kind, p.pooling) == (cut, kind, pooling)] for cut in cuts}
            shown = [
                (i, [score for score in own[cut] if score is not None])
                for i, cut in enumerate(cuts)
                if any(score is not None for score in own[cut])
            ]
            spread = [stdev(values) for _, values in shown] if len(draws) > 1 else None
            places, means = [i for i, _ in shown], [mean(values) for _, values in shown]
            style: dict[str, Any] = {"color": f"C{KINDS.index(kind)}", "alpha": 0.8, "markersize": 5, "capsize": 3}
            axes.errorbar(places, means, spread, fmt=MARKS[KINDS.index(kind)], label=f"{kind}, held out", **style)
        for best, tested in chosen:
            if best.pooling == pooling:
                error = [[tested.share - tested.low], [tested.high - tested.share]]
                axes.errorbar(
                    [cuts.index(str(best.cut))], [tested.share], error, fmt="s", color="black", capsize=4, label="chosen, test, 95 %"
                )
    panels[0].set_ylabel("accuracy")
    labelled = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[-1].legend(labelled.values(), labelled.keys(), loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    figure.savefig(path, dpi=120)
