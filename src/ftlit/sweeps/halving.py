"""Successive halving: after how many epochs the settings of a sweep are compared, by what, and which of them go on."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, isnan, log, nan
from pathlib import Path
from statistics import mean

from ftlit.formatting import count
from ftlit.run_folder import TIE_BREAK
from ftlit.sweeps.jobs import Job
from ftlit.sweeps.setting_jobs import Setting

METRICS = "metrics.csv"
Score = tuple[float, float]  # of a job at a rung: the metric that ranks, and the loss on val; the lowest is best


@dataclass(frozen=True)
class Rung:
    """A number of epochs at which settings are compared, or that ends training.

    Args:
        epochs: that have been trained at it.
        settings: number of settings that train to it.
    """

    epochs: int
    settings: int


@dataclass(frozen=True)
class Monitor:
    """The metric of `metrics.csv` that ranks the settings.

    Args:
        name: its column.
        lowest: whether the lowest value is best.
    """

    name: str
    lowest: bool

    def value(self, score: Score) -> float:
        """The metric of a score."""
        return score[0] if self.lowest else -score[0]


@dataclass(frozen=True)
class Halving:
    """The plan of a sweep by successive halving.

    Args:
        settings: their jobs with numbers and overrides.
        rungs: in their order.
        monitor: what ranks the settings.
        unit: `steps`, or `epochs` where those of the jobs have different numbers of steps.
    """

    settings: Sequence[Setting]
    rungs: Sequence[Rung]
    monitor: Monitor
    unit: str

    @property
    def jobs(self) -> list[Job]:
        """All jobs by number."""
        return sorted((job for setting in self.settings for job in setting.jobs), key=lambda job: job.number)

    def describe(self) -> str:
        """The plan in one line: jobs, rungs, epochs of each, and the share of the full grid."""
        jobs, settings = len(self.jobs), len(self.settings)
        number = count(jobs, "job") if jobs == settings else f"{count(jobs, 'job')} of {settings} settings"
        rungs = ", ".join(f"{count(rung.settings, 'setting')} to epoch {rung.epochs}" for rung in self.rungs)
        share = f"{share_of_steps(self.rungs):.0%} of the {self.unit} of the full grid"
        direction = "lowest" if self.monitor.lowest else "highest"
        number += f", {count(len(self.rungs), 'rung')}"
        return f"halving   {number}: {rungs}; {share}; settings with the {direction} {self.monitor.name} go on"


def rungs_of(settings: int, epochs: int, *, first: int = 1, eta: float = 3, reduction: float = 3) -> list[Rung]:
    """The rungs of a sweep: their epochs form a geometric series from `first` to `epochs`, whose ratio is as near to `eta` as it can be.

    Args:
        settings: number of settings, 1 or more.
        epochs: of a whole job.
        first: epochs until the first rung, below `epochs`.
        eta: ratio of the epochs of a rung to those of the one before, above 1.
        reduction: number of settings of which one goes on, above 1.

    Returns:
        Rungs in their order, without those at which no setting would stop; the last one ends training.

    >>> [(rung.epochs, rung.settings) for rung in rungs_of(27, 20, first=2)]
    [(2, 27), (6, 9), (20, 3)]
    """
    intervals = max(1, round(log(epochs / first) / log(eta)))
    ends = dict.fromkeys(round(first * (epochs / first) ** (place / intervals)) for place in range(intervals + 1))
    counts = [settings]
    for _ in list(ends)[1:]:
        counts.append(max(1, int(counts[-1] / reduction)))
    pairs = zip(ends, counts, [*counts[1:], 0], strict=True)
    return [Rung(end, number) for end, number, following in pairs if following < number]


def share_of_steps(rungs: Sequence[Rung]) -> float:
    """The share of the epochs of the full grid that halving trains."""
    begins = [0, *(rung.epochs for rung in rungs)]
    trained = sum(rung.settings * (rung.epochs - begin) for rung, begin in zip(rungs, begins, strict=False))
    return trained / (rungs[0].settings * rungs[-1].epochs)


def score_at(folder: Path, epochs: int, monitor: Monitor) -> Score:
    """The score of the best of the first epochs of a job, of equals the one with the lowest loss on val.

    It is `(inf, inf)` where no epoch has a number.

    Args:
        folder: of the job, with its `metrics.csv`.
        epochs: how many count.
        monitor: the metric that ranks.
    """
    path = folder / METRICS
    if not path.is_file():
        return inf, inf
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row.get("epoch") or "").isdigit() and int(row["epoch"]) < epochs]
    sign = 1 if monitor.lowest else -1
    found = [(sign * _number(row.get(monitor.name)), _number(row.get(TIE_BREAK))) for row in rows]
    return min(((value, inf if isnan(loss) else loss) for value, loss in found if not isnan(value)), default=(inf, inf))


def _number(text: str | None) -> float:
    try:
        return float(text or nan)
    except ValueError:
        return nan


def survivors(settings: Sequence[Setting], scores: Mapping[int, Score], most: int) -> list[Setting]:
    """The best settings at a rung, best first: by the mean over their jobs of the metric, then of the loss; of equals the earlier ones.

    Args:
        settings: those that were to reach the rung.
        scores: number -> score of each job that reached it; a setting without one does not go on, nor one whose mean is not a
            number: a job of it has no epoch with a finite metric.
        most: number of settings that go on, at most.
    """
    known = {place: [scores[job.number] for job in own.jobs if job.number in scores] for place, own in enumerate(settings)}
    ranked = {place: (mean(value for value, _ in own), mean(loss for _, loss in own)) for place, own in known.items() if own}
    finite = [place for place in ranked if isfinite(ranked[place][0])]
    return [settings[place] for place in sorted(finite, key=lambda place: ranked[place])[:most]]
