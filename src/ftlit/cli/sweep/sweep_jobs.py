"""The jobs of a sweep: each writes its state to its folder, whatever launches it, and a sweep that is started again runs the rest."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import isfinite, isnan
from pathlib import Path
from typing import Any, NoReturn

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from ftlit.cli.sweep import sweep_output, sweep_resume, sweep_rungs
from ftlit.cli.sweep.sweep_resume import failed_early, first_change, new_job, refusal
from ftlit.errors import UserError, one_line, shorten
from ftlit.formatting import count, shell_command
from ftlit.lit.stop_signals import INTERRUPTED_STATUS, SECONDS_TO_STOP, STOP_SIGNALS, PauseReached
from ftlit.recipes.checks.check_jobs import check_jobs, check_launcher
from ftlit.recipes.checks.early_checks import check_folder_words
from ftlit.recipes.config.hydra_internals import add_task_override, hydra_config
from ftlit.recipes.processes.job_process import REASON, USER_ERROR_STATUS, end_reason, end_status
from ftlit.recipes.resuming.resume import RESUMABLE_RECIPES
from ftlit.run_folder import ADVICE, BACKBONE
from ftlit.sweeps import jobs, running, summary
from ftlit.sweeps.caption import finished, never_begun
from ftlit.sweeps.halving import Monitor, score_at
from ftlit.sweeps.jobs import SEED, Job, varying
from ftlit.sweeps.plan_file import SweepPlan, remove_plan
from ftlit.sweeps.running import RunningSweep, wait_for_running

OPTUNA_SWEEPER = "hydra_plugins.hydra_optuna_sweeper"
SECONDS_TO_WRITE = 5.0  # for the last checkpoint of an interrupted job
# of recipes that have not written config.yaml, or do not write it
EARLY_FILES = (ADVICE, BACKBONE, "lr_find.csv", "lr_find.png", REASON, sweep_output.LOG)


class SweepCallback(Callback):
    """Hydra calls it when a sweep begins, whatever launches the jobs. A second sweep in the folder of one is refused."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Keep the sweep's folder for `end_sweep`.

        Raises:
            SystemExit: with `USER_ERROR_STATUS`; any other error of a callback is only a warning of Hydra's.
        """
        folder = Path(config.hydra.sweep.dir)
        try:
            check_folder_words(config.hydra.overrides.hydra, is_sweep=True)
            check_launcher(config.hydra.runtime.choices.get("hydra/launcher"))
            sweep_rungs.check_sweeper(config)
            done, trials = sweep_resume.count_done(config), OmegaConf.select(config, "hydra.sweeper.n_trials")
            if trials:
                running.lock(folder)
        except UserError as error:
            print(f"ftlit: {error}", file=sys.stderr)
            sys.exit(USER_ERROR_STATUS)
        sweep = running.SWEEPS[folder] = RunningSweep()
        if config.hydra.runtime.choices.get("hydra/launcher") == "joblib":  # which kills its processes at Ctrl-C
            STOP_SIGNALS.wait_for_jobs = partial(wait_for_running, folder, SECONDS_TO_STOP + SECONDS_TO_WRITE)
        if trials:
            logging.getLogger(OPTUNA_SWEEPER).setLevel(logging.ERROR)  # it warns of each job without a score
            if not sys.stderr.isatty():
                os.environ.setdefault("NO_COLOR", "1")  # releases of Optuna below 3 colour their lines in files too
            sweep.minimizes = str(OmegaConf.select(config, "hydra.sweeper.direction")) == "minimize"
            names = [*(OmegaConf.select(config, "hydra.sweeper.params") or {})]
            sweep_output.print_resuming(folder, done)
            SweepPlan(trials, names, sweep_resume.resume_command(folder)).write(folder)
            sweep_output.begin_sweep(folder, trials, done, names)


def plan_jobs(config: DictConfig, jobs: list[list[str]]) -> list[list[str]]:
    """Number the jobs of a sweep without a search, see `sweep_resume.in_order`, and check those that are to run. A refusal prints and
    writes nothing, and leaves no table of the earlier sweep.

    Args:
        config: of the sweep.
        jobs: the overrides of each.

    Returns:
        Those to launch; none where all are done, so that no launcher starts processes for them.

    Raises:
        UserError: the folder holds another sweep, or a job could not begin.
    """
    folder = Path(config.hydra.sweep.dir)
    try:
        words_of_jobs = sweep_resume.in_order(config, jobs)
        composed: dict[int, DictConfig] = {}
        check_jobs(config, sweep_resume.to_run(folder, words_of_jobs), composed if sweep_rungs.has_rungs(config) else None)
        running.SWEEPS[folder] = RunningSweep(words_of_jobs, halving=sweep_rungs.plan_rungs(config, words_of_jobs, composed))
        done = sweep_resume.count_done(config)
        if done < len(words_of_jobs):
            running.lock(folder)
    except UserError:
        running.SWEEPS.pop(folder, None)
        raise
    planned = [Job(number, tuple(words)) for number, words in enumerate(words_of_jobs)]
    sweep_output.print_resuming(folder, done)
    if done == len(planned):
        return []
    halving = running.SWEEPS[folder].halving
    of_rungs = (halving.rungs[-1].epochs, halving.monitor.name) if halving else ()
    SweepPlan(len(planned), varying(planned), sweep_resume.resume_command(folder), words_of_jobs, *of_rungs).write(folder)
    sweep_output.begin_sweep(folder, len(planned), done, [*varying(planned), SEED])
    return words_of_jobs


def run_job(cfg: DictConfig, run: Callable[[], float]) -> float | None:
    """Run a job of a sweep and write its state before and after. One that is done already does not run again.

    Returns:
        Its score; `None` where it failed or its score is NaN: the sweep continues, and a search counts a failed trial.

    Raises:
        UserError: its folder is that of another job, of a sweep with other settings.
        SystemExit: with `INTERRUPTED_STATUS`, which ends the sweep.
    """
    folder = Path(hydra_config().runtime.output_dir)
    before, this = jobs.read_job(folder), new_job(cfg)
    if before and (change := first_change(before, this)):
        if not failed_early(before, folder):
            raise refusal(before, folder, change)
        before = None  # its settings were corrected
        for name in EARLY_FILES:
            (folder / name).unlink(missing_ok=True)
    if before and before.status == 0:
        return before.score
    if before and cfg.recipe in RESUMABLE_RECIPES and (folder / "config.yaml").is_file():
        cfg.resume = True
        add_task_override("resume=true")  # for processes that the job starts, and for configs that it composes
        this = replace(this, seconds=before.seconds, rung=before.rung, epochs=before.epochs, at_rungs=before.at_rungs)
    this.write(folder)
    at_rung = {} if "rung" not in cfg.sweep else {"rung": cfg.sweep.rung, "epochs": cfg.sweep.until}
    ended = _run_and_record(this, replace(this, status=0, reason="", **at_rung), folder, run)
    if at_rung and not ended.has_failed:
        _record_rung(folder, sweep_rungs.monitor_of(cfg))
    if ended.status == 0:
        sweep_output.print_job(folder)
    elif ended.status == jobs.STOPPED:
        sweep_output.print_stopped(folder, sweep_rungs.monitor_of(cfg))
    return ended.score


def _record_rung(folder: Path, monitor: Monitor) -> None:
    """Add the metric that ranks, at the rung that the job of a folder has reached, to its state."""
    job = jobs.read_job(folder)
    if job and isfinite(value := monitor.value(score_at(folder, job.epochs, monitor))):
        replace(job, at_rungs=(*job.at_rungs, (job.epochs, value))).write(folder)


def finish_alone(score: float) -> float:
    """Record the success of a run by itself in the folder of a job, where it was resumed: the table of its sweep reads that. Returns the
    score.
    """
    from ftlit.lit.trainer_internals import rank_before_trainer  # here, so that --help stays fast

    folder = Path(hydra_config().runtime.output_dir)
    if not rank_before_trainer() and (before := jobs.read_job(folder)) and before.status != 0:
        of_rungs: dict[str, Any] = {"rung": 0, "epochs": 0, "at_rungs": ()}  # it left them
        replace(before, status=0, reason="", score=None if isnan(score) else score, **of_rungs).write(folder)
    return score


def _run_and_record(this: Job, done: Job, folder: Path, run: Callable[[], float]) -> Job:
    """Run a job and write its state, that of `done` where it ends well, or stops at its rung. Returns the state."""
    started, ended = time.perf_counter(), replace(this, status=1)
    try:
        with sweep_output.job_log(folder):
            score = run()
        ended = replace(done, score=None if isnan(score) else score)
    except PauseReached:
        ended = replace(done, status=jobs.STOPPED)
    except (KeyboardInterrupt, SystemExit) as end:
        status = end_status(end)
        ended = replace(this, status=status, reason=end_reason(end)) if status else done
        if status == INTERRUPTED_STATUS:
            raise
    except Exception as error:
        traceback.print_exc()
        ended = replace(this, reason=f"{type(error).__name__}: {one_line(error)}", status=1)
    finally:
        replace(ended, seconds=round((this.seconds or 0) + time.perf_counter() - started, 2)).write(folder)
    return ended


def end_sweep() -> int:
    """Print the table of the sweep that this process ran, if any, and the failed jobs on stderr, one a line.

    Returns:
        The sweep's status: `USER_ERROR_STATUS` where all failures are errors of the user, 1 where not, 0 for none.

    Raises:
        SystemExit: with `INTERRUPTED_STATUS`: a signal came before the table was complete.
    """
    statuses: set[int | None] = set()
    for folder, sweep in running.SWEEPS.items():
        if not jobs.is_sweep(folder):
            remove_plan(folder)
            continue
        try:
            statuses |= _end_sweep_in(folder, sweep)
        except UserError as error:  # a damaged file of a job
            print(f"ftlit: {error}", file=sys.stderr)
            statuses.add(USER_ERROR_STATUS)
        except KeyboardInterrupt:
            _end_without_table(folder)
    running.unlock()
    if not statuses:
        return 0
    return USER_ERROR_STATUS if statuses == {USER_ERROR_STATUS} else 1


def _end_without_table(folder: Path) -> NoReturn:
    """Print the command that makes the table of a sweep, and exit. Removes the files of the table: they may be of an earlier state."""
    summary.remove_table(folder)
    found = [job for _, job in jobs.jobs_of(folder)]
    state = finished(found) or ("its job has finished" if len(found) == 1 else f"all {count(len(found), 'job')} have finished")
    command = shell_command(["ftlit", "report", str(folder)])
    print(f"ftlit: interrupted before the table of the sweep was complete; {state}. To make the table: {command}", file=sys.stderr)
    sys.exit(INTERRUPTED_STATUS)


def _end_sweep_in(folder: Path, sweep: RunningSweep) -> set[int | None]:
    """Print the table, the best job of a search, and the failed jobs. Returns their statuses."""
    summary.report(folder)
    sweep_output.write_page(folder)
    if sweep.minimizes is not None:
        sweep_output.print_best(folder, minimize=sweep.minimizes)
    statuses = set()
    for path, job in jobs.failed(folder):
        how = {None: jobs.RUNNING, INTERRUPTED_STATUS: "was interrupted"}.get(job.status, f"failed with status {job.status}")
        print(f"ftlit: {sweep_output.name_of(job)} {how}, its folder: {path.absolute()}", file=sys.stderr)
        statuses.add(job.status)
    if waiting := never_begun([job for _, job in jobs.jobs_of(folder)], sweep.jobs):
        print(f"ftlit: {count(len(waiting), 'job')} never began", file=sys.stderr)  # the caption of the table names them
        statuses.add(None)
    elif sweep.has_rungs_left:
        print("ftlit: the sweep ended before its last rung", file=sys.stderr)
        statuses.add(None)
    if refused := [job.number for _, job in jobs.failed(folder) if job.status == USER_ERROR_STATUS]:
        which = f"jobs {shorten(refused)} fail" if len(refused) > 1 else f"job {refused[0]} fails"
        print(f"ftlit: {which} again until the option or file that the error names is changed", file=sys.stderr)
    if statuses:
        print(f"ftlit: to run the jobs that have not finished: {sweep_resume.resume_command(folder)}", file=sys.stderr)
    return statuses
