"""A sweep's folder -> what its jobs came to: a table of the settings over their seeds, printed and in files."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite, nan, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ftlit.errors import UserError

FILE = "job.json"  # what a job says of itself, in its folder
RUNNING = "did not end"
SEED = "seed"
VAL, TEST, SCORE = "val/accuracy", "test/accuracy", "score"
CAPTION = (
    "Best first by {by}, never by test: what is chosen on test looks better there than it is. "
    "Mean, standard deviation and 95 % interval (Student's t) are over seeds."
)
SCORED = "score: what the recipe returns (recipe=lr_find: a rate, which is no better for being high)"


@dataclass(frozen=True)
class Job:
    """A job of a sweep.

    Args:
        number: Hydra's.
        overrides: what it was given beside the composed config.
        config: a digest of its config, by which it is known again.
        status: 0 where it ended well, 2 for a mistake, 130 where it was interrupted; `None`: still running, or killed.
        reason: why it did not end well, in one line.
        score: what the recipe returned.
        seconds: that it took.
        metrics: of `result.json`, means where that has several entries; empty where there is none.
    """

    number: int
    overrides: tuple[str, ...] = ()
    config: str = ""
    status: int | None = None
    reason: str = RUNNING
    score: float | None = None
    seconds: float | None = None
    metrics: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def values(self) -> dict[str, str]:
        """The overrides by name; what is left out (`~name`) stands under its name."""
        pairs = (override.lstrip("+").partition("=") for override in self.overrides)
        return {name: value for name, _, value in pairs}

    def write(self, folder: Path) -> None:
        """All at once into the job's folder, without metrics."""
        beside = folder / f"{FILE}.part"
        beside.write_text(json.dumps({name: value for name, value in asdict(self).items() if name != "metrics"}, indent=1))
        beside.replace(folder / FILE)


@dataclass(frozen=True)
class Setting:
    """Jobs that differ in their seed alone.

    Args:
        values: of the names that vary within the sweep.
        jobs: by number.
    """

    values: tuple[str, ...]
    jobs: tuple[Job, ...]

    @property
    def done(self) -> list[Job]:
        """The jobs that ended well, one for each seed: the last."""
        return list({job.values.get(SEED): job for job in self.jobs if job.status == 0}.values())

    def of(self, metric: str) -> list[float]:
        """A value for each seed that has one."""
        found = (job.score if metric == SCORE else job.metrics.get(metric) for job in self.done)
        return [value for value in found if value is not None and isfinite(value)]

    @property
    def failed(self) -> list[Job]:
        """The jobs that did not end well."""
        return [job for job in self.jobs if job.status != 0]


def is_sweep(folder: Path) -> bool:
    """Whether jobs of a sweep have begun in this folder."""
    return any(folder.glob(f"*/{FILE}"))


def read_job(folder: Path) -> Job | None:
    """The job of a folder, with its metrics where it ended well. Raises `UserError` for a damaged file."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text())
        job = Job(**{**told, "overrides": tuple(told["overrides"])})
        return replace(job, metrics=_metrics(folder / "result.json")) if job.status == 0 else job
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} is damaged, or was not written by a sweep: remove this folder, or run the sweep again") from None


def _metrics(path: Path) -> dict[str, float]:
    """The numbers of `result.json`; a probe's held-out ones are called val's."""
    if not path.is_file():
        return {}
    told: Any = json.loads(path.read_text())
    entries = told if isinstance(told, list) else [told]
    names = [name for name, value in entries[0].items() if isinstance(value, int | float)]
    return {name.replace("held_out/", "val/"): mean(nan if e[name] is None else e[name] for e in entries) for name in names}


def jobs_of(folder: Path) -> list[tuple[Path, Job]]:
    """Folders and jobs of a sweep, by number.

    Raises:
        UserError: the folder is none of a sweep, or holds no job.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    found = ((path.parent, read_job(path.parent)) for path in folder.glob(f"*/{FILE}"))
    jobs = sorted(((path, job) for path, job in found if job), key=lambda pair: pair[1].number)
    if not jobs and (folder / "multirun.yaml").is_file():
        raise UserError(f"the sweep in {folder} is empty: none of its jobs began")
    if not jobs:
        raise UserError(f"{folder} is no folder of a sweep: give the one that holds the folders of its jobs, runs/sweeps/DATE/TIME")
    return jobs


def varying(jobs: Sequence[Job]) -> list[str]:
    """The names, other than the seed, that have several values within the sweep."""
    names = dict.fromkeys(name for job in jobs for name in job.values)
    return [name for name in names if name != SEED and len({job.values.get(name) for job in jobs}) > 1]


def settings_of(jobs: Sequence[Job]) -> list[Setting]:
    """The settings, best first: by accuracy on val, or by score where no job has one."""
    names, by = varying(jobs), judged_by(jobs)
    keys = [tuple(job.values.get(name, "") for name in names) for job in jobs]
    settings = [Setting(key, tuple(job for job, own in zip(jobs, keys, strict=True) if own == key)) for key in dict.fromkeys(keys)]
    return sorted(settings, key=lambda setting: mean(setting.of(by) or [-sys.float_info.max]), reverse=True)


def judged_by(jobs: Sequence[Job]) -> str:
    """The metric that ranks the settings."""
    return VAL if any(VAL in job.metrics for job in jobs) else SCORE


def half_interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of the mean by Student's t. Needs two values.

    >>> round(half_interval([1.0, 2.0, 3.0]), 3)  # 4.303 / sqrt(3)
    2.484
    """
    from scipy.stats import t  # here, so that the command line stays fast

    return float(t.ppf(0.975, len(values) - 1) * stdev(values) / sqrt(len(values)))


def table_of(jobs: Sequence[Job]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, a row a setting."""
    names, by = varying(jobs), judged_by(jobs)
    failures = any(job.status != 0 for job in jobs)
    shown = TEST if by == VAL else SCORE
    what = "test accuracy" if by == VAL else SCORE
    header = [*names, "seeds", what, "deviation", "95 % interval", *(["val accuracy"] if by == VAL else []), "seconds"]
    rows = []
    for setting in settings_of(jobs):
        seconds = [job.seconds for job in setting.done if job.seconds is not None]
        val = [_mean(setting.of(VAL))] if by == VAL else []
        time = f"{mean(seconds):.1f}" if seconds else "-"
        row = [*setting.values, str(len(setting.done)), *_spread(setting.of(shown)), *val, time]
        rows.append([*row, "\n".join(map(why, setting.failed))] if failures else row)
    return [*header, "failed"] if failures else header, rows


def why(job: Job) -> str:
    """`job 3 (seed=1): cuda out of memory`."""
    seed = job.values.get(SEED)
    return f"job {job.number}{f' (seed={seed})' if seed else ''}: {job.reason}"


def _mean(values: Sequence[float]) -> str:
    return f"{mean(values):.4f}" if values else "-"


def _spread(values: Sequence[float]) -> list[str]:
    """Mean, deviation, interval, as far as there are values for them."""
    if len(values) < 2:
        return [_mean(values), "-", "-"]
    middle, half = mean(values), half_interval(values)
    return [f"{middle:.4f}", f"{stdev(values):.4f}", f"{middle - half:.4f} to {middle + half:.4f}"]


def caption_of(jobs: Sequence[Job]) -> str:
    """How the table is to be read."""
    return CAPTION.format(by="val accuracy") if judged_by(jobs) == VAL else f"Highest first by {SCORED}."


def markdown_of(jobs: Sequence[Job]) -> str:
    """The table as markdown."""
    header, rows = table_of(jobs)
    lines = [header, ["---"] * len(header), *rows]
    cells = (" | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in line) for line in lines)
    return "\n".join(f"| {line} |" for line in cells) + f"\n\n{caption_of(jobs)}\n"


def write_csv(path: Path, jobs: Sequence[tuple[Path, Job]]) -> None:
    """A row a job."""
    names = list(dict.fromkeys(name for _, job in jobs for name in job.metrics))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("job", "overrides", "status", "reason", *names, SCORE, "seconds", "folder"))
        for folder, job in jobs:
            metrics = (job.metrics.get(name) for name in names)
            writer.writerow((job.number, " ".join(job.overrides), job.status, job.reason, *metrics, job.score, job.seconds, folder.name))


def draw(path: Path, jobs: Sequence[Job]) -> None:
    """A row a setting, best on top: a point a seed, the mean and its interval, as PNG."""
    from matplotlib.figure import Figure  # here, so that the command line is read without it; no pyplot: no screen is needed

    names, metric = varying(jobs), TEST if judged_by(jobs) == VAL else SCORE
    shown = [setting for setting in settings_of(jobs) if setting.of(metric)]
    labels = ["\n".join(map("=".join, zip(names, setting.values, strict=True))) or "all jobs" for setting in shown]
    lines = max(1, len(names))
    figure = Figure(figsize=(7.0, 1.2 + (0.3 + 0.2 * lines) * max(1, len(shown))), layout="constrained")
    axes = figure.subplots()
    for place, setting in enumerate(shown):
        values = setting.of(metric)
        error = half_interval(values) if len(values) > 1 else None
        axes.plot(values, [place] * len(values), "o", color="C0", alpha=0.4, label="a seed")
        axes.errorbar([mean(values)], [place], xerr=error, fmt="D", color="black", capsize=4, markersize=5, label="mean, 95 %")
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.set(xlabel=metric, ylim=(len(shown) - 0.5, -0.5) if shown else None)
    axes.grid(axis="x", alpha=0.3)
    labelled = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(labelled.values(), labelled.keys(), loc="outside upper right", ncols=2, fontsize=8)
    figure.savefig(path, dpi=120)


def report(folder: str | Path) -> None:
    """Print the table of a sweep, and write `sweep.csv`, `sweep.md` and `sweep.png` to its folder. Raises `UserError` as `jobs_of` does."""
    folder = Path(folder)
    found = jobs_of(folder)
    jobs = [job for _, job in found]
    header, rows = table_of(jobs)
    table = Table(*map(escape, header), caption=escape(caption_of(jobs)), caption_justify="left")
    for row in rows:
        table.add_row(*map(escape, row))
    write_csv(folder / "sweep.csv", found)
    (folder / "sweep.md").write_text(markdown_of(jobs))
    draw(folder / "sweep.png", jobs)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(f"sweep.csv, sweep.md, sweep.png: {escape(str(folder))}", soft_wrap=True)


def failed(folder: Path) -> Iterator[tuple[Path, Job]]:
    """The jobs that did not end well."""
    return ((path, job) for path, job in jobs_of(folder) if job.status != 0)
