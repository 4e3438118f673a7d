"""Run a sweep by successive halving (`hparams_search=halving`): jobs are launched rung by rung, and those that lose stop there.

Each rung is decided by the files of the jobs alone, so that a sweep that is resumed decides as before.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ftlit.cli.sweep.sweep_devices import launch_beside
from ftlit.cli.sweep.sweep_output import BEGAN
from ftlit.cli.sweep.sweep_resume import resume_command, to_run
from ftlit.errors import UserError, shorten
from ftlit.printing import print_line
from ftlit.recipes.checks.check_jobs import check_jobs
from ftlit.recipes.checks.ranges import RANGES
from ftlit.recipes.config.hydra_sweeps import Launch, compose_job, result_of_job
from ftlit.recipes.processes.job_process import several_processes
from ftlit.sweeps import running
from ftlit.sweeps.halving import METRICS, Halving, Monitor, Rung, rungs_of, score_at, survivors
from ftlit.sweeps.jobs import SEED, VAL, Job, read_job, varying
from ftlit.sweeps.plan_file import SweepPlan, record_going
from ftlit.sweeps.running import RunningSweep
from ftlit.sweeps.setting_jobs import Setting, settings_of

HALVING = "sweep.halving"
GRID = "basic"  # the sweeper that runs all combinations of the given values
NUMBERS = ("first", "eta", "reduction")  # options
STEP_OPTIONS = ("data.batch_size", "data.per_class", "data._target_", "trainer.accumulate_grad_batches", "trainer.limit_train_batches")


def has_rungs(config: DictConfig) -> bool:
    """Whether a sweep is one by successive halving."""
    return OmegaConf.select(config, HALVING) is not None


def plan_rungs(config: DictConfig, jobs: Sequence[Sequence[str]], composed: Mapping[int, DictConfig] | None = None) -> Halving | None:
    """The plan for the jobs of a sweep; `None` for a sweep without halving.

    Args:
        config: of the sweep.
        jobs: the overrides of each, by number.
        composed: configs of jobs by number; those of others are composed.

    Raises:
        UserError: an option out of its range, one setting only, or a job that cannot stop and go on at an epoch that all share.
    """
    if not has_rungs(config):
        return None
    options, known = OmegaConf.select(config, HALVING), composed or {}
    planned = [Job(number, tuple(words)) for number, words in enumerate(jobs)]
    settings = settings_of(planned)
    if len(settings) < 2:
        raise UserError(
            "hparams_search=halving compares settings, but this command has only one: give an option several values, as in "
            "optimizer.lr=1e-3,1e-2"
        )
    firsts = [setting.jobs[0] for setting in settings]  # the others differ in their seed alone
    of_jobs = {job.number: known.get(job.number) or compose_job(config, job.overrides) for job in firsts}
    for job in firsts:
        if problem := _problem(of_jobs[job.number]):
            names = [*varying(planned), SEED]
            words = " ".join(f"{name}={job.values[name]}" for name in names if name in job.values)
            raise UserError(f"hparams_search=halving, job {job.number} ({words}): {problem}")
    epochs = _the_same("trainer.max_epochs", {number: cfg.trainer.max_epochs for number, cfg in of_jobs.items()})
    monitor = _the_same("callbacks.best", {number: monitor_of(cfg) for number, cfg in of_jobs.items()})
    every = max(int(cfg.trainer.get("check_val_every_n_epoch") or 1) for cfg in of_jobs.values())
    first, eta, reduction = (_number(options, name) for name in NUMBERS)
    if not every <= first < epochs:
        least = f"{every} (trainer.check_val_every_n_epoch)" if every > 1 else "1"
        raise UserError(f"{HALVING}.first={first:g}: give epochs from {least} to {epochs - 1}, below trainer.max_epochs={epochs}")
    steps = {tuple(str(OmegaConf.select(cfg, name)) for name in STEP_OPTIONS) for cfg in of_jobs.values()}
    rungs = rungs_of(len(settings), epochs, first=int(first), eta=eta, reduction=reduction)
    return Halving(settings, rungs, monitor, "steps" if len(steps) == 1 else "epochs")


def _number(options: Any, name: str) -> float:
    value, allowed = options.get(name), RANGES[f"{HALVING}.{name}"]
    if value not in allowed:
        raise UserError(f"{HALVING}.{name}={value}: give {allowed.describe()}")
    return float(value)


def _the_same(name: str, values: Mapping[int, Any]) -> Any:
    """The value that all jobs have, of those by number; 0 is among them."""
    if len(set(values.values())) > 1:
        number = next(number for number, value in values.items() if value != values[0])
        shown = [value.name if isinstance(value, Monitor) else value for value in (values[0], values[number])]
        raise UserError(
            f"hparams_search=halving compares the jobs after the same epochs by the same metric, but {name} is {shown[0]} in job 0 and "
            f"{shown[1]} in job {number}: give {name}{'.monitor' if name != 'trainer.max_epochs' else ''}=... one value"
        )
    return values[0]


def _problem(cfg: DictConfig) -> str:
    """Why a job cannot stop at an epoch, and what to give; empty where it can.

    Args:
        cfg: with its `hydra` node.
    """
    chosen, trainer = cfg.hydra.runtime.choices, cfg.trainer
    if cfg.recipe != "finetune":
        return f"recipe={cfg.recipe} has no epochs to stop after: leave hparams_search=halving out"
    if chosen.get("scenario") == "auto":
        return (
            "the number of epochs must be known before the jobs begin, but scenario=auto chooses it in the job: give "
            "scenario=large_similar, or another one (recipe=advise shows which)"
        )
    if (chosen.get("head"), chosen.get("schedule")) == ("linear_probe", "head_only"):
        return (
            "head=linear_probe with schedule=head_only is fitted without epochs, in seconds: leave hparams_search=halving out, or give "
            "head=linear or head=mlp, which train"
        )
    if cfg.final:
        return "final=true has no val by which settings could be compared: leave it out"
    limited = (trainer.get("max_steps") or -1) != -1 or trainer.get("max_time")
    if limited or not isinstance(trainer.max_epochs, int) or trainer.max_epochs < 2:
        return "rungs are counted in epochs: give trainer.max_epochs=... of 2 or more, without trainer.max_steps and trainer.max_time"
    if trainer.get("limit_val_batches") == 0 or trainer.get("fast_dev_run"):
        return "without val settings cannot be compared: leave trainer.limit_val_batches=0 and trainer.fast_dev_run out"
    if not cfg.logger.get("csv"):
        return "logger.csv=null leaves no metrics.csv, by which settings are compared: leave it out"
    if not cfg.callbacks.get("last"):
        return "callbacks.last=null leaves no checkpoint from which a job could go on: leave it out"
    if several_processes(cfg):
        return "jobs with several processes cannot stop at a rung yet: give trainer.devices=1 and trainer.strategy=auto"
    return ""


def monitor_of(cfg: DictConfig) -> Monitor:
    """The metric that ranks a job: that of its best checkpoint."""
    from ftlit.finetuning.stage import mode_of  # here, so that --help stays fast

    best = cfg.callbacks.get("best") or {}
    name = str(best.get("monitor") or VAL)
    return Monitor(name, (best.get("mode") or mode_of(name)) == "min")


def check_sweeper(config: DictConfig) -> None:
    """Raise `UserError` where a sweep by successive halving has a sweeper that chooses jobs by the results of others."""
    sweeper = config.hydra.runtime.choices.get("hydra/sweeper", GRID)
    if not has_rungs(config) or sweeper == GRID:
        return
    trials, beside = (OmegaConf.select(config, f"hydra.sweeper.{name}") for name in ("n_trials", "n_jobs"))
    if trials is None:
        raise UserError(
            f"{HALVING} needs all jobs at the beginning, but hydra/sweeper={sweeper} chooses them one after another: give "
            "hparams_search=halving and values, as in optimizer.lr=1e-3,1e-2, or hparams_search=optuna_halving"
        )
    if beside < trials:
        raise UserError(
            f"{HALVING} needs all jobs at the beginning, but with hydra.sweeper.n_jobs={beside} Optuna draws {beside} of {trials} at a "
            f"time: give hparams_search=optuna_halving, or hydra.sweeper.n_jobs={trials}"
        )


def launch_in_rungs(config: DictConfig, launch: Launch, jobs: list[list[str]], first: int) -> Sequence[Any]:
    """Launch the jobs of a sweep: at once, or by successive halving where it has a plan; see `hydra_sweeps.launched_by`.

    Returns:
        What each job that ran returned last.

    Raises:
        UserError: a launcher gets a part of the jobs only, or no job of a rung has a score.
    """
    folder = Path(config.hydra.sweep.dir)
    sweep = running.SWEEPS.get(folder)
    if sweep is not None and sweep.minimizes is not None and has_rungs(config):
        return _launch_drawn(config, launch, jobs, sweep)
    if sweep is None or sweep.halving is None:
        return launch_beside(config, launch, jobs, first, [*to_run(folder, jobs, first)])
    halving = sweep.halving
    if len(jobs) < len(halving.jobs):
        raise UserError(
            "hparams_search=halving compares all jobs of the sweep, so they must be launched together: give "
            "hydra.sweeper.max_batch_size=null"
        )
    return list(_run_sweep(config, launch, sweep, halving).values())


def _launch_drawn(config: DictConfig, launch: Launch, jobs: list[list[str]], sweep: RunningSweep) -> list[Any]:
    """Run the jobs that a search has drawn at once. Returns the result of each, in their order: its score, or `None` where it stopped."""
    folder, composed = Path(config.hydra.sweep.dir), dict[int, DictConfig]()
    check_jobs(config, to_run(folder, jobs), composed)
    sweep.jobs, sweep.halving = jobs, plan_rungs(config, jobs, composed)
    if sweep.halving:
        swept = dict.fromkeys([*(OmegaConf.select(config, "hydra.sweeper.params") or {}), *varying(sweep.halving.jobs)])
        epochs, monitor = sweep.halving.rungs[-1].epochs, sweep.halving.monitor.name
        SweepPlan(len(jobs), [*swept], resume_command(folder), jobs, epochs, monitor).write(folder)
        _run_sweep(config, launch, sweep, sweep.halving)
    ended = [read_job(folder / str(number)) for number in range(len(jobs))]
    return [result_of_job(job.score if job and job.status == 0 else None) for job in ended]


def _run_sweep(config: DictConfig, launch: Launch, sweep: RunningSweep, halving: Halving) -> dict[int, Any]:
    """Print the plan and run its rungs. Returns what each job that ran returned last, by number."""
    print_line(halving.describe())
    sys.stdout.flush()
    os.environ[BEGAN] = ""  # jobs have different lengths: no time left is known
    sweep.has_rungs_left = True
    returned = _run_rungs(halving, Path(config.hydra.sweep.dir), lambda words: launch_beside(config, launch, words, 0, range(len(words))))
    sweep.has_rungs_left = False
    return returned


def _run_rungs(halving: Halving, folder: Path, launch: Callable[[list[list[str]]], Sequence[Any]]) -> dict[int, Any]:
    """Launch the jobs of each rung that have not reached it. Returns what each job that ran returned last, by number."""
    returned: dict[int, Any] = {}
    going = halving.settings
    for place, rung in enumerate(halving.rungs, 1):
        left = [job for setting in going for job in setting.jobs if not _has_reached(folder, job, rung)]
        record_going(folder, [job.number for setting in going for job in setting.jobs])
        at_rung = [f"++sweep.rung={place}", f"++sweep.until={rung.epochs}"]
        words = [[*job.overrides, *at_rung, f"hydra.sweep.subdir={job.number}"] for job in left]
        if words:
            returned |= zip((job.number for job in left), launch(words), strict=True)
        if place == len(halving.rungs):
            return returned
        reached = [job for setting in going for job in setting.jobs if _has_reached(folder, job, rung)]
        this = f"rung {place} of {len(halving.rungs)} (epoch {rung.epochs})"
        if not reached:
            print_line(f"no job reached the end of {this}, so the sweep ends here: correct the errors listed below, and resume the sweep")
            return returned
        scores = {job.number: score_at(folder / str(job.number), rung.epochs, halving.monitor) for job in reached}
        best = survivors(going, scores, halving.rungs[place].settings)
        if not best:
            raise UserError(
                f"{this} has ended, but no job has a finite {halving.monitor.name}, so none can be compared: give other settings, or "
                f"another metric of {folder / str(reached[0].number) / METRICS} as callbacks.best.monitor"
            )
        going = [Setting(setting.values, tuple(job for job in setting.jobs if job.number in scores)) for setting in best]
        values = [halving.monitor.value(scores[job.number]) for setting in going for job in setting.jobs]
        span = " to ".join(f"{value:.4f}" for value in dict.fromkeys([min(values), max(values)]))
        numbers = shorten([str(job.number) for setting in going for job in setting.jobs], 12)
        on, jobs = "goes on" if len(going) == 1 else "go on", "job" if len(values) == 1 else "jobs"
        print_line(f"{this} has ended: {len(going)} of {rung.settings} settings {on}: {jobs} {numbers} ({halving.monitor.name} {span})")
        sys.stdout.flush()
    return returned


def _has_reached(folder: Path, job: Job, rung: Rung) -> bool:
    state = read_job(folder / str(job.number))
    return state is not None and (state.status == 0 or state.epochs >= rung.epochs)
