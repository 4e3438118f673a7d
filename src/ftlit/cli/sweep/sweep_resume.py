"""Resume a sweep: which of its jobs a folder holds, whether the command still has them, and the numbers of jobs that are added."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ftlit.errors import UserError, shorten
from ftlit.formats import FORMAT
from ftlit.formatting import shell_command, shown
from ftlit.lit.stop_signals import INTERRUPTED_STATUS
from ftlit.recipes.config.hydra_internals import use_hydra_config
from ftlit.recipes.config.hydra_sweeps import compose_job
from ftlit.recipes.config.literal_values import as_typed, quote
from ftlit.recipes.config.overrides import job_number, job_overrides, typed_command, typed_words
from ftlit.recipes.resuming.resume import MAY_CHANGE, keeps_value
from ftlit.recipes.resuming.settings import changes, chosen_options, stable_settings
from ftlit.sweeps import jobs
from ftlit.sweeps.jobs import Job
from ftlit.sweeps.plan_file import FILE

REMEDY = "to resume that sweep, give its settings again (more values of a swept option are allowed)"
NEW_FOLDER = "${now:"  # in hydra.sweep.dir, as by default: each start has a new folder


def count_done(config: DictConfig) -> int:
    """The number of jobs of an earlier sweep in the folder of this one that are done, 0 where there was none.

    Raises:
        UserError: there was one, and it is not to be resumed, cannot be resumed, or cannot be read; or none is named that is to be resumed.
    """
    folder, resume = Path(config.hydra.sweep.dir), OmegaConf.select(config, "sweep.resume")
    if resume not in (None, True, False):
        raise UserError(f"sweep.resume={resume}: give true or false")
    if not jobs.is_sweep(folder):
        if resume and NEW_FOLDER in OmegaConf.to_container(config.hydra.sweep, resolve=False)["dir"]:  # type: ignore[index, call-overload]
            raise UserError(f"sweep.resume=true needs the folder of the sweep to resume: give hydra.sweep.dir={_sweeps_near(folder)}")
        return 0
    if not resume:
        raise UserError(f"{folder} already holds a sweep: give sweep.resume=true to resume it, or another hydra.sweep.dir=...")
    found = [job for _, job in jobs.jobs_of(folder)]
    if any(job.format < FORMAT for job in found):
        raise UserError(
            f"the sweep in {folder} is from an older version of ftlit and cannot be resumed: start a new sweep with another "
            "hydra.sweep.dir=... (ftlit report still reads the old one)"
        )
    return sum(job.status == 0 for job in found)


def _sweeps_near(folder: Path) -> str:
    """The newest sweeps in the folder of a day's folder, as text; `...` where there are none."""
    plans = [path for pattern in (f"*/{FILE}", f"*/*/{FILE}") for path in folder.parent.parent.glob(pattern)]
    newest = sorted(plans, key=lambda path: path.stat().st_mtime, reverse=True)
    return f"FOLDER, such as {shorten((shown(path.parent) for path in newest), 3)}" if newest else "..."


def in_order(config: DictConfig, planned: Sequence[list[str]]) -> list[list[str]]:
    """The jobs of a sweep by their numbers. Those that its folder holds keep theirs, others take the free ones in their order.

    Args:
        config: of the sweep.
        planned: the overrides of each job, in the order of the command line.

    Raises:
        UserError: two jobs are the same, or the folder holds a job that is not among them, or that has other settings than its namesake.
            Nothing has run then.
    """
    if twice := next((words for words, number in Counter(map(tuple, planned)).items() if number > 1), None):
        raise UserError(f"two jobs of this sweep would be the same ({' '.join(twice)}): give each value of an option once")
    folder = Path(config.hydra.sweep.dir)
    if not jobs.is_sweep(folder):
        return list(planned)
    found = jobs.jobs_of(folder)
    names = _swept([job for _, job in found], [Job(0, tuple(words)) for words in planned])
    rest, kept = list(planned), dict[int, list[str]]()
    checked = False
    for path, job in found:
        words = next((words for words in rest if _values(job, names) == _values(Job(0, tuple(words)), names)), None)
        begun = not failed_early(job, path)  # one that failed early takes other settings, see `sweep_jobs.run_job`
        if words is not None:
            rest.remove(words)
            kept[job.number] = words
        elif begun:
            swept = [f"{name}={value}" for name, value in zip(names, _values(job, names), strict=True)]
            raise refusal(job, path, "none of the jobs of this command has these values", swept)
        if words is not None and begun and not checked:  # the other settings are the same in all jobs
            _check_settings(config, job, path, words)
            checked = True
    if max(kept, default=0) >= len(planned):
        raise UserError(f"the sweep in {folder} has at least {max(kept) + 1} jobs, but this command makes only {len(planned)}: {REMEDY}")
    others = iter(rest)
    return [kept[number] if number in kept else next(others) for number in range(len(planned))]


def to_run(folder: Path, planned: Sequence[list[str]], first: int = 0) -> dict[int, list[str]]:
    """The jobs, by number, that are not done in the folder of a sweep; `first` is the number of the first one."""
    return {
        number: words
        for number, words in enumerate(planned, first)
        if (job := jobs.read_job(folder / str(number))) is None or job.status != 0
    }


def resume_command(folder: Path) -> str:
    """The command that runs the jobs of a sweep that have not finished."""
    own = [word for word in typed_words() if not re.match(r"\+{0,2}(sweep\.resume|hydra\.sweep\.dir)=", word)]
    return shell_command([*typed_command(), *own, f"hydra.sweep.dir={quote(str(folder))}", "sweep.resume=true"])


def _check_settings(config: DictConfig, before: Job, folder: Path, words: list[str]) -> None:
    """Raise `UserError` where the settings of a job are no longer those with which it began."""
    cfg = compose_job(config, words)
    with use_hydra_config(cfg):
        settings = OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"])
        if change := first_change(before, Job(before.number, tuple(words), _config_of(settings))):
            raise refusal(before, folder, change)


def _swept(*sweeps: Sequence[Job]) -> list[str]:
    """The names that have several values in one of these sweeps, and the seed where it is given."""
    seed = [jobs.SEED] if any(jobs.SEED in job.values for sweep in sweeps for job in sweep) else []
    return list(dict.fromkeys([*(name for sweep in sweeps for name in jobs.varying(sweep)), *seed]))


def _values(job: Job, names: Sequence[str]) -> list[str]:
    return [_value(job, name) for name in names]


def _value(job: Job, name: str) -> str:
    """The value of a swept option in a job: as its words give it, else as it was by default."""
    if name in job.values:
        return as_typed(f"={job.values[name]}")[1:]
    chosen, settings = job.config.get("chosen", {}), OmegaConf.create(job.config.get("settings", {}))
    value = chosen[name] if name in chosen else OmegaConf.select(settings, name, throw_on_missing=False)
    return as_typed(f"={value}")[1:]


def refusal(before: Job, folder: Path, change: str, words: Sequence[str] | None = None) -> UserError:
    """The error for a sweep whose folder holds a job of another one: which job (`words`, by default all of its own), and what changed."""
    remedy = REMEDY if before.status in (0, None) else f"give its settings again, remove {folder} to begin this job with the new settings"
    shown = " ".join(before.overrides if words is None else words) or "its own values"
    return UserError(
        f"{folder} belongs to a different sweep: it is job {before.number} with {shown}, but {change}: {remedy}, or give another "
        "hydra.sweep.dir=..."
    )


def failed_early(before: Job, folder: Path) -> bool:
    """Whether a job failed before it wrote `config.yaml`, so that it may begin again with other settings."""
    return before.status not in (0, INTERRUPTED_STATUS, None) and not (folder / "config.yaml").is_file()


def new_job(cfg: DictConfig) -> Job:
    """The job that this process runs, before it begins."""
    return Job(job_number(), tuple(job_overrides()), _config_of(cfg))


def _config_of(cfg: DictConfig) -> dict[str, Any]:
    return {"chosen": chosen_options(), "settings": OmegaConf.to_container(stable_settings(cfg))}


def first_change(before: Job, now: Job) -> str:
    """The first setting in which two jobs differ, in words; empty where they are the same job."""
    if "settings" not in before.config:
        return "an older version of ftlit ran this job"
    old, new = (OmegaConf.create(job.config["settings"]) for job in (before, now))
    changed = [change for change in changes(old, new, before.config["chosen"], MAY_CHANGE) if not keeps_value(change)]
    return f"{changed[0].name} was {changed[0].before} and is now {changed[0].now}" if changed else ""
