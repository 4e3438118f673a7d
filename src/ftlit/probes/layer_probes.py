"""Linear probes at every layer: held-out accuracy of each cut, kind and pooling, the best one, its test accuracy, files and figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from ftlit.errors import UserError, invalid
from ftlit.features.extract import Features
from ftlit.files import write_figure, write_rows
from ftlit.finetuning.losses import ClassWeights
from ftlit.models.pooling import POOLINGS, Pooling
from ftlit.probes.linear_probe import L2_PENALTIES, Probe, fit_probe
from ftlit.probes.probe_kinds import PROBE_KINDS
from ftlit.seeding import derived_seed

BOOTSTRAP_SAMPLES = 10_000
CONFIDENCE = 0.95
LAYER_COLUMNS = ("draw", "cut", "kind", "pooling", "l2", "accuracy", "loss", "test_accuracy", "test_low", "test_high")
LINE_STYLES = ("o-", "^--", "d:", "v-.")  # of the kinds, in turn


@dataclass(frozen=True)
class LayerProbes:
    """Which probes to fit. An option of the config group `probe`.

    Args:
        kinds: names in `ftlit.probes.probe_kinds.PROBE_KINDS`.
        l2: L2 penalties to try, see `ftlit.probes.linear_probe.fit_probe`; `None`: 25 from 10 to 1e-5.
        cuts: names of layers; `None`: all.
        poolings: of the features, see `ftlit.models.pooling.pool`; at each cut those that its features allow. `head=linear_probe` takes the
            average.
        seed: of the folds of cross-validation and of the bootstrap.
        repeats: how many random samples of few training images are probed (`data.per_class`).
        rows: training images that are fitted on at most, a share of each class but at least two; `all`: no limit.

    Raises:
        UserError: no kind or pooling, an unknown one, L2 penalties that are not above 0, or fewer than 1 repeat or row.
    """

    kinds: Sequence[str] = ("softmax",)
    l2: Sequence[float] | None = None
    cuts: Sequence[str] | None = None
    poolings: Sequence[str] = ("average",)
    seed: int = 0
    repeats: int = 1
    rows: int | Literal["all"] = 100_000

    def __post_init__(self) -> None:
        for name, given, options in (("kinds", self.kinds, PROBE_KINDS), ("poolings", self.poolings, POOLINGS)):
            if not given:
                raise UserError(f"probe.{name}=[]: give at least one of {', '.join(options)}")
            for one in given:
                if one not in options:
                    raise invalid(f"probe.{name}", one, options)
        if self.cuts is not None and not self.cuts:
            raise UserError("probe.cuts=[]: give at least one cut, or null for all")
        if self.l2 is not None and not (len(self.l2) and all(l2 > 0 for l2 in self.l2)):
            raise UserError(f"probe.l2={list(self.l2)}: give numbers above 0")
        if self.repeats < 1:
            raise UserError(f"probe.repeats={self.repeats}: give a whole number, 1 or more")
        if self.rows != "all" and not (isinstance(self.rows, int) and self.rows > 0):
            raise UserError(f"probe.rows={self.rows}: give a whole number, 1 or more, or all")

    def share_of(self, images: int) -> float:
        """The share of `images` training images on which probes are fitted, above 0 and up to 1."""
        return 1.0 if self.rows == "all" else min(1.0, self.rows / images)

    def at(
        self,
        features: Mapping[Pooling, Features],
        valid: Mapping[Pooling, Features] | None = None,
        class_weights: ClassWeights | None = None,
        *,
        refit: bool = True,
    ) -> list[Probe]:
        """A probe for each cut, kind and pooling, the highest cut first; see `fit_probe`."""
        l2_penalties = [float(l2) for l2 in self.l2 or L2_PENALTIES]
        kinds = [kind for kind in PROBE_KINDS if kind in self.kinds]
        options: dict[str, Any] = {"l2": l2_penalties, "seed": self.seed, "class_weights": class_weights, "refit": refit}
        return [
            fit_probe(own, cut=cut, kind=kind, pooling=pooling, valid=None if valid is None else valid[pooling], **options)
            for cut in reversed(next(iter(features.values())).cuts)
            for kind in kinds
            for pooling, own in features.items()
            if cut in own.cuts
        ]


class Scored(Protocol):
    """What `best_of` chooses from."""

    @property
    def score(self) -> float | None:
        """Accuracy on held-out features."""


Best = TypeVar("Best", bound=Scored)


def best_of(probes: Sequence[Best]) -> Best:
    """The probe with the best accuracy on held-out features; the first of equals.

    Raises:
        UserError: there are several, and nothing was held out to choose by.
    """
    if len(probes) > 1 and any(probe.score is None for probe in probes):
        raise UserError(
            "no examples are held out to choose between probes: give more examples, or a single value each for probe.cuts, probe.kinds, "
            "probe.poolings and probe.l2"
        )
    return max(probes, key=lambda probe: probe.score or 0.0)


@dataclass(frozen=True)
class Interval:
    """A share of N samples with its 95 % confidence interval: the percentiles of a bootstrap (Efron 1979)."""

    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.share:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap(correct: Tensor, seed: int) -> Interval:
    """The interval of the mean of N truth values."""
    n, share = len(correct), float(correct.double().mean())
    generator = torch.Generator().manual_seed(derived_seed(seed, n))
    counts, shares = torch.full((BOOTSTRAP_SAMPLES,), float(n)).double(), torch.full((BOOTSTRAP_SAMPLES,), share).double()
    means = torch.binomial(counts, shares, generator=generator) / n
    low, high = torch.quantile(means, torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=means.dtype)).tolist()
    return Interval(share, low, high)


def write_csv(path: Path, repeats: Sequence[Sequence[Probe]]) -> None:
    """Held-out accuracy and loss: a row for each repeat, cut, kind, pooling and L2 penalty."""
    rows: list[tuple[Any, ...]] = [("draw", "cut", "kind", "pooling", "l2", "accuracy", "loss")]
    for number, probes in enumerate(repeats):
        for probe in probes:
            row = (number, probe.cut, probe.kind, probe.pooling)
            rows += ((*row, l2, accuracy, probe.losses[l2]) for l2, accuracy in probe.scores.items())
    write_rows(path, rows)


def write_layers(path: Path, repeats: Sequence[tuple[Sequence[Probe], Sequence[Interval]]]) -> None:
    """Write a row for each repeat, cut, kind and pooling: the chosen L2 penalty, held-out accuracy and loss there, and the test accuracy
    of the probe with its interval.

    Args:
        path: of the csv file.
        repeats: the probes of each, and the test accuracy of each probe.
    """
    rows: list[tuple[Any, ...]] = [LAYER_COLUMNS]
    for number, (probes, tests) in enumerate(repeats):
        for probe, test in zip(probes, tests, strict=True):
            held_out = probe.score, probe.losses.get(probe.l2)
            rows.append((number, probe.cut, probe.kind, probe.pooling, probe.l2, *held_out, test.share, test.low, test.high))
    write_rows(path, rows)


def draw(path: Path, cuts: Sequence[str], repeats: Sequence[Sequence[Probe]], chosen: Sequence[tuple[Probe, Interval]], title: str) -> None:
    """A figure of held-out accuracy by depth as PNG: a panel per pooling, a line per kind (mean and standard deviation of the repeats), and
    the test accuracy of the chosen probe of each repeat.
    """
    from matplotlib.figure import Figure  # here: matplotlib takes a second to import; no pyplot: no screen is needed

    kinds, poolings = (list(dict.fromkeys(getattr(probe, name) for probe in repeats[0])) for name in ("kind", "pooling"))
    figure = Figure(figsize=(2.4 + 3.6 * len(poolings), 4.2), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(1, len(poolings), sharey=True, squeeze=False)[0]
    for pooling, axes in zip(poolings, panels, strict=True):
        axes.set(title=f"{pooling} features" if len(poolings) > 1 else "", xlabel="cut, from the input to the top")
        axes.set_xticks(range(len(cuts)), cuts, rotation=45 if len(cuts) > 6 else 0)
        axes.grid(axis="y", alpha=0.3)
        for number, (kind, style) in enumerate(zip(kinds, cycle(LINE_STYLES), strict=False)):
            own = [[p for p in probes if (p.kind, p.pooling) == (kind, pooling)] for probes in repeats]
            line: dict[str, Any] = {"fmt": style, "color": f"C{number}", "label": f"{kind}, held out"}
            axes.errorbar(*_accuracy_by_cut(cuts, own), **line, alpha=0.8, markersize=5, capsize=3)
        for best, test in chosen:
            if best.pooling == pooling:
                error = [[test.share - test.low], [test.high - test.share]]
                point: dict[str, Any] = {"fmt": "s", "color": "black", "label": "chosen, test, 95 %"}
                axes.errorbar([cuts.index(str(best.cut))], [test.share], error, **point, capsize=4)
    panels[0].set_ylabel("accuracy")
    labelled = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[-1].legend(labelled.values(), labelled.keys(), loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    write_figure(path, figure, dpi=120)


def _accuracy_by_cut(cuts: Sequence[str], repeats: Sequence[Sequence[Probe]]) -> tuple[list[int], list[float], list[float] | None]:
    """Numbers of the cuts with a held-out accuracy, its means over the repeats, and its standard deviations where there are several."""
    scores = {i: [p.score for probes in repeats for p in probes if p.cut == cut and p.score is not None] for i, cut in enumerate(cuts)}
    scores = {i: values for i, values in scores.items() if values}
    deviations = [stdev(values) for values in scores.values()] if len(repeats) > 1 else None
    return list(scores), [mean(values) for values in scores.values()], deviations
