"""Jobs of a sweep, read from its folder, in the order of their swept values."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf, isnan, nan
from pathlib import Path
from statistics import mean
from typing import Any

from ftlit.errors import UserError
from ftlit.formats import FORMAT, KEY, read_json, reading, write_json
from ftlit.run_folder import CROSS_VALIDATION, HELD_OUT_BY, IGNORED, RESULT, read_advice, read_result
from ftlit.sweeps.plan_file import SweepPlan, read_plan

FILE = "job.json"  # in the folder of each job
RUNNING = "did not end"
STOPPED = -1  # no status of a process: the job waits, or has stopped, at a rung of successive halving
STATUSES = {0: "finished", STOPPED: "stopped", 130: "interrupted", None: RUNNING}  # 130 is that of Ctrl-C; all others: failed
REMEDY = "remove the folder of this job, or run the sweep again"
SEED = "seed"
VAL, TEST, TEST_F1, SCORE = "val/accuracy", "test/accuracy", "test/f1", "score"
CROSS_VALIDATED = "cross_validated/accuracy"  # of a probe that is chosen by cross-validation on train, in place of val
HELD_OUT = "held_out/accuracy"  # the one of these two that a job has
PROBES_TRIED = "best_of"  # behind `val/` or `cross_validated/`: the number of probes of which this is the best

READ_ELSEWHERE = (
    "metrics",
    "samples",
    "advised",
    "cut",
    "backbone",
    "ignored",
    "sweep",
    KEY,
)  # fields of a job that its own file does not hold


@dataclass(frozen=True)
class Job:
    """A job of a sweep.

    Args:
        number: Hydra's.
        overrides: of the config, on the command line or by the sweep.
        config: its settings and the options that it chose, to recognise it when the sweep is resumed.
        status: 0 for success, `STOPPED`, 2 for a user error, 130 for an interruption; `None`: still running, or killed.
        reason: why it failed, in one line.
        score: the number that the recipe returned.
        seconds: duration of the whole job; of a resumed one, of all its parts together.
        rung: the last rung of successive halving that it reached, 1 for the first; 0 for none, and in other sweeps.
        epochs: that it had trained there.
        at_rungs: of each rung that it reached, the epochs and the metric that ranks, at its best epoch so far.
        metrics: of `result.json`, means where that has several entries; empty where there is none.
        samples: the same of each entry, which is a random sample of training images (`probe.repeats`).
        advised: the scenario that `scenario=auto` chose; empty for other scenarios.
        cut: the cut that `recipe=probe` chose, several for several repeats; empty for other recipes.
        backbone: that `backbone=auto` chose; empty for others.
        ignored: names of given options that it ignored, because it had no gradient training.
        sweep: to which it belongs, where that is known.
        format: of the file that it was read from.
    """

    number: int
    overrides: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)
    status: int | None = None
    reason: str = RUNNING
    score: float | None = None
    seconds: float | None = None
    rung: int = 0
    epochs: int = 0
    at_rungs: Sequence[tuple[int, float]] = ()
    metrics: dict[str, float] = field(default_factory=dict, compare=False)
    samples: Sequence[Mapping[str, float]] = field(default=(), compare=False)
    advised: str = field(default="", compare=False)
    cut: str = field(default="", compare=False)
    backbone: str = field(default="", compare=False)
    ignored: Sequence[str] = field(default=(), compare=False)
    sweep: SweepPlan | None = field(default=None, compare=False)
    format: int = field(default=FORMAT, compare=False)

    @property
    def status_in_words(self) -> str:
        """How the job ended: finished, stopped at a rung, failed, interrupted, or `did not end`: it still runs, or was killed."""
        return STATUSES.get(self.status, "failed")

    @property
    def has_failed(self) -> bool:
        """Whether it neither finished nor stopped at a rung."""
        return self.status not in (0, STOPPED)

    @property
    def rung_in_words(self) -> str:
        """The rung that it reached, with its epochs: `2 (epoch 6)`; `-` for none."""
        return f"{self.rung} (epoch {self.epochs})" if self.rung else "-"

    @property
    def at_last_rung(self) -> float | None:
        """The metric that ranks, at the last rung that it reached; `None` for none."""
        return self.at_rungs[-1][1] if self.at_rungs else None

    @property
    def values(self) -> dict[str, str]:
        """The overrides by name; a deletion (`~name`) is listed under its name."""
        pairs = (override.lstrip("+").partition("=") for override in self.overrides)
        return {name: value for name, _, value in pairs}

    def write(self, folder: Path) -> None:
        """Write `job.json` atomically, without the fields that are read from other files of the folder."""
        write_json(folder / FILE, {name: value for name, value in asdict(self).items() if name not in READ_ELSEWHERE})

    def value(self, metric: str) -> float | None:
        """The value of a metric; `None` where the job has none."""
        if metric == HELD_OUT:
            return self.metrics.get(VAL, self.metrics.get(CROSS_VALIDATED))
        return self.score if metric == SCORE else self.metrics.get(metric)


def is_sweep(folder: Path) -> bool:
    """Whether jobs of a sweep have begun in this folder."""
    return any(folder.glob(f"*/{FILE}"))


def read_job(folder: Path) -> Job | None:
    """The job of a folder, if there is one; with its metrics if it succeeded. Raises `UserError` for a damaged file."""
    path = folder / FILE
    if not path.is_file():
        return None
    with reading(path, REMEDY):
        content = read_json(path, lambda old: {**old, KEY: 0}, remedy=REMEDY)
        job = Job(**{**content, "overrides": tuple(content["overrides"]), "at_rungs": tuple(map(tuple, content.get("at_rungs", ())))})
    if job.status != 0:
        return job
    entries = _results(folder)
    with reading(folder / RESULT, REMEDY):
        cut, backbone = (_texts(entries, name) for name in ("cut", "backbone"))
        samples = [_metrics([entry]) for entry in entries]
        job = replace(job, ignored=entries[0].get(IGNORED, ()) if entries else ())
        return replace(job, metrics=_metrics(entries), samples=samples, cut=cut, backbone=backbone, advised=_advised(folder))


def _advised(folder: Path) -> str:
    content = read_advice(folder)
    return str(content["advice"].get("scenario", "")) if content else ""


def _results(folder: Path) -> list[Any]:
    """The entries of `result.json`: none, one, or one for each repeat of a probe."""
    result = read_result(folder) or []
    return result if isinstance(result, list) else [result]


def _metrics(entries: Sequence[Any]) -> dict[str, float]:
    """The numbers of the results; those of a probe on held-out images count as val, or as cross-validated."""
    names = [name for name, value in entries[0].items() if isinstance(value, int | float)] if entries else []
    crossed = bool(entries) and entries[0].get(HELD_OUT_BY) == CROSS_VALIDATION
    prefix = "cross_validated/" if crossed else "val/"
    return {name.replace("held_out/", prefix): mean(nan if e[name] is None else e[name] for e in entries) for name in names}


def _texts(entries: Sequence[Any], name: str) -> str:
    return ", ".join(dict.fromkeys(str(entry[name]) for entry in entries if name in entry))


def jobs_of(folder: Path) -> list[tuple[Path, Job]]:
    """Folders and jobs of a sweep, by their swept values, then by seed: numbers by size, other values as the sweep has them.

    Raises:
        UserError: the folder is not that of a sweep, or has no job.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    plan = read_plan(folder)
    found = ((path.parent, read_job(path.parent)) for path in folder.glob(f"*/{FILE}"))
    jobs = sorted(((path, replace(job, sweep=plan)) for path, job in found if job), key=lambda pair: pair[1].number)
    if not jobs and (folder / "multirun.yaml").is_file():
        raise UserError(f"the sweep in {folder} is empty, because no job began: start the sweep again")
    if not jobs:
        raise UserError(f"{folder} is not the folder of a sweep: give the folder that holds its jobs, such as runs/sweeps/DATE/TIME")
    names = [*varying([job for _, job in jobs]), SEED]
    places = {name: _places(job.values.get(name, "") for _, job in jobs) for name in names}
    return sorted(jobs, key=lambda pair: [places[name][pair[1].values.get(name, "")] for name in names])


def _places(values: Iterable[str]) -> dict[str, int]:
    """The place of each value among them."""
    return {value: place for place, value in enumerate(sorted(dict.fromkeys(values), key=_size))}


def _size(value: str) -> float:
    """A number, or infinity for a value that is none."""
    try:
        number = float(value)
    except ValueError:
        return inf
    return inf if isnan(number) else number


def varying(jobs: Sequence[Job]) -> list[str]:
    """The names, other than the seed, that have several values within the sweep, or will have when all its jobs have run."""
    names = dict.fromkeys(name for job in jobs for name in job.values)
    swept = {name for job in jobs if job.sweep for name in job.sweep.swept}
    return [name for name in names if name != SEED and (name in swept or len({job.values.get(name) for job in jobs}) > 1)]


def failed(folder: Path) -> Iterator[tuple[Path, Job]]:
    """Folders and jobs that neither finished nor stopped at a rung."""
    return ((path, job) for path, job in jobs_of(folder) if job.has_failed)
