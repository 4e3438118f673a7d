"""A sweep's folder -> its jobs, and the settings that they are of, best first."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite, nan
from pathlib import Path
from statistics import mean
from typing import Any

from ftlit.errors import UserError
from ftlit.files import write_atomically

FILE = "job.json"  # what a job says of itself, in its folder
ADVICE = "advice.json"
RUNNING = "did not end"
SEED = "seed"
VAL, TEST, SCORE = "val/accuracy", "test/accuracy", "score"


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
        seconds: that it took in all, from its begin to its end; one that went on from a checkpoint, with what it had taken before.
        metrics: of `result.json`, means where that has several entries; empty where there is none.
        advised: the scenario that `scenario=auto` came to; empty where there was none of it.
    """

    number: int
    overrides: tuple[str, ...] = ()
    config: str = ""
    status: int | None = None
    reason: str = RUNNING
    score: float | None = None
    seconds: float | None = None
    metrics: dict[str, float] = field(default_factory=dict, compare=False)
    advised: str = field(default="", compare=False)

    @property
    def values(self) -> dict[str, str]:
        """The overrides by name; what is left out (`~name`) stands under its name."""
        pairs = (override.lstrip("+").partition("=") for override in self.overrides)
        return {name: value for name, _, value in pairs}

    def write(self, folder: Path) -> None:
        """All at once into the job's folder, without what other files there say."""
        told = {name: value for name, value in asdict(self).items() if name not in ("metrics", "advised")}
        write_atomically(folder / FILE, json.dumps(told, indent=1))


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
    """The job of a folder, with its metrics and what it was advised where it ended well. Raises `UserError` for a damaged file."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text())
        job = Job(**{**told, "overrides": tuple(told["overrides"])})
        return replace(job, metrics=_metrics(folder / "result.json"), advised=_advised(folder / ADVICE)) if job.status == 0 else job
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} is damaged, or was not written by a sweep: remove this folder, or run the sweep again") from None


def _advised(path: Path) -> str:
    return str(json.loads(path.read_text())["advice"]["scenario"]) if path.is_file() else ""


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


def failed(folder: Path) -> Iterator[tuple[Path, Job]]:
    """The jobs that did not end well."""
    return ((path, job) for path, job in jobs_of(folder) if job.status != 0)
