"""Jobs of a sweep, read from its folder, and its settings (jobs that differ in their seed alone), best first."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite, nan
from pathlib import Path
from statistics import mean
from typing import Any

from ftlit.errors import UserError
from ftlit.formats import FORMAT, KEY, read_json, reading, write_json
from ftlit.run_folder import RESULT, read_advice, read_result

FILE = "job.json"  # in the folder of each job
RUNNING = "did not end"
REMEDY = "remove the folder of this job, or run the sweep again"
SEED = "seed"
VAL, TEST, SCORE = "val/accuracy", "test/accuracy", "score"


@dataclass(frozen=True)
class Job:
    """A job of a sweep.

    Args:
        number: Hydra's.
        overrides: of the config, on the command line or by the sweep.
        config: its settings and the options that it chose, to recognise it when the sweep is resumed.
        status: 0 for success, 2 for a user error, 130 for an interruption; `None`: still running, or killed.
        reason: why it failed, in one line.
        score: the number that the recipe returned.
        seconds: duration of the whole job; of a resumed one, of all its parts together.
        metrics: of `result.json`, means where that has several entries; empty where there is none.
        advised: the scenario that `scenario=auto` chose; empty for other scenarios.
        format: of the file that it was read from.
    """

    number: int
    overrides: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)
    status: int | None = None
    reason: str = RUNNING
    score: float | None = None
    seconds: float | None = None
    metrics: dict[str, float] = field(default_factory=dict, compare=False)
    advised: str = field(default="", compare=False)
    format: int = field(default=FORMAT, compare=False)

    @property
    def values(self) -> dict[str, str]:
        """The overrides by name; a deletion (`~name`) is listed under its name."""
        pairs = (override.lstrip("+").partition("=") for override in self.overrides)
        return {name: value for name, _, value in pairs}

    def write(self, folder: Path) -> None:
        """Write `job.json` atomically, without the fields that are read from other files of the folder."""
        own = {name: value for name, value in asdict(self).items() if name not in ("metrics", "advised", KEY)}
        write_json(folder / FILE, own)


@dataclass(frozen=True)
class Setting:
    """Jobs that differ in their seed alone.

    Args:
        values: of the overrides that vary within the sweep.
        jobs: by number.
    """

    values: tuple[str, ...]
    jobs: tuple[Job, ...]

    @property
    def done(self) -> list[Job]:
        """The successful jobs, the last one per seed."""
        return list({job.values.get(SEED): job for job in self.jobs if job.status == 0}.values())

    def of(self, metric: str) -> list[float]:
        """The values of a metric, one per seed that has one."""
        found = (job.score if metric == SCORE else job.metrics.get(metric) for job in self.done)
        return [value for value in found if value is not None and isfinite(value)]

    @property
    def failed(self) -> list[Job]:
        """The jobs that are not successful."""
        return [job for job in self.jobs if job.status != 0]


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
        job = Job(**{**content, "overrides": tuple(content["overrides"])})
    return replace(job, metrics=_metrics(folder), advised=_advised(folder)) if job.status == 0 else job


def _advised(folder: Path) -> str:
    content = read_advice(folder)
    return str(content["advice"].get("scenario", "")) if content else ""


def _metrics(folder: Path) -> dict[str, float]:
    """The numbers of `result.json`; those of a probe on held-out images count as val."""
    result = read_result(folder)
    if not result:
        return {}
    entries = result if isinstance(result, list) else [result]
    with reading(folder / RESULT, REMEDY):
        names = [name for name, value in entries[0].items() if isinstance(value, int | float)]
        return {name.replace("held_out/", "val/"): mean(nan if e[name] is None else e[name] for e in entries) for name in names}


def jobs_of(folder: Path) -> list[tuple[Path, Job]]:
    """Folders and jobs of a sweep, by number.

    Raises:
        UserError: the folder is not that of a sweep, or has no job.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    found = ((path.parent, read_job(path.parent)) for path in folder.glob(f"*/{FILE}"))
    jobs = sorted(((path, job) for path, job in found if job), key=lambda pair: pair[1].number)
    if not jobs and (folder / "multirun.yaml").is_file():
        raise UserError(f"the sweep in {folder} is empty: no job began")
    if not jobs:
        raise UserError(f"{folder} is not the folder of a sweep: give the folder that holds its jobs, such as runs/sweeps/DATE/TIME")
    return jobs


def varying(jobs: Sequence[Job]) -> list[str]:
    """The names, other than the seed, that have several values within the sweep."""
    names = dict.fromkeys(name for job in jobs for name in job.values)
    return [name for name in names if name != SEED and len({job.values.get(name) for job in jobs}) > 1]


def settings_of(jobs: Sequence[Job]) -> list[Setting]:
    """The settings, best first: by accuracy on val, or by score where no job has one."""
    names, by = varying(jobs), ranking_metric(jobs)
    keys = [tuple(job.values.get(name, "") for name in names) for job in jobs]
    settings = [Setting(key, tuple(job for job, own in zip(jobs, keys, strict=True) if own == key)) for key in dict.fromkeys(keys)]
    return sorted(settings, key=lambda setting: mean(setting.of(by) or [-sys.float_info.max]), reverse=True)


def ranking_metric(jobs: Sequence[Job]) -> str:
    """The metric that ranks the settings."""
    return VAL if any(VAL in job.metrics for job in jobs) else SCORE


def failed(folder: Path) -> Iterator[tuple[Path, Job]]:
    """Folders and jobs that are not successful."""
    return ((path, job) for path, job in jobs_of(folder) if job.status != 0)
