"""The output of a sweep: a line for each job, and each note once. What a job prints itself is in `train.log` in its folder."""

import atexit
import fcntl
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from math import isfinite
from pathlib import Path

from ftlit.errors import one_line
from ftlit.formatting import count, duration_in_words
from ftlit.printing import print_line
from ftlit.run_folder import TIE_BREAK, TRAINED, keeps_baseline
from ftlit.sweeps.caption import ignored_note, ignored_options
from ftlit.sweeps.halving import Monitor, score_at
from ftlit.sweeps.jobs import CROSS_VALIDATED, HELD_OUT, TEST, VAL, Job, jobs_of, read_job, varying
from ftlit.sweeps.plan_file import read_plan
from ftlit.sweeps.running import hearing_estimate
from ftlit.sweeps.setting_results import RANKINGS

LOG = "train.log"
TOTAL = "FTLIT_SWEEP_JOBS"  # in the environment, also of processes that run jobs: the number of jobs of the sweep
BEGAN = "FTLIT_SWEEP_BEGAN"  # likewise: when it began, in seconds of the epoch, and how many jobs had finished before
VARYING = "FTLIT_SWEEP_OPTIONS"  # likewise: the names of the options that differ between its jobs; unset: not known
PRINTED = "FTLIT_SWEEP_PRINTED"  # likewise: the file with the notes that its jobs have printed, whatever processes run them
LEAST_LEFT = 20.0  # seconds; the end of a shorter sweep needs no estimate
LEAST_ESTIMATE = 60.0  # seconds; the line of a shorter job comes soon, and says from its real time how long the others take
NOTE = re.compile(r"(note|doctor|warning)\b")
INDENT = " " * 10  # of the further lines of a row of the plan
TRAINS = "To train the head by gradient descent, give head=linear; to train all layers, give scenario=large_similar"


def print_resuming(folder: Path, done: int) -> None:
    """Print how many jobs of a sweep had finished in an earlier start, where there was one; they print no line of their own."""
    if done:
        print_line(f"resuming the sweep in {folder}: skipping {count(done, 'finished job')}")


def begin_sweep(folder: Path, total: int, done: int = 0, names: Sequence[str] = ()) -> None:
    """Print the number of jobs and where their output is.

    Args:
        folder: of the sweep.
        total: number of its jobs.
        done: how many have finished before, in an earlier start of the sweep.
        names: of the options that differ between the jobs; none: not known.
    """
    os.environ[TOTAL], os.environ[BEGAN], os.environ[VARYING] = str(total), f"{time.time()} {done}", " ".join(names)
    handle, os.environ[PRINTED] = tempfile.mkstemp(prefix="ftlit-sweep-")
    os.close(handle)
    atexit.register(Path(os.environ[PRINTED]).unlink, missing_ok=True)
    print_line(f"sweep of {count(total, 'job')}: each prints to {LOG} in its folder, {folder}/NUMBER")
    sys.stdout.flush()


@contextmanager
def job_log(folder: Path) -> Iterator[None]:
    """Append what a job prints on stdout to its log, then print those of its notes that no earlier job had. Errors stay on stderr."""
    console = sys.stdout

    def print_estimate(seconds: float) -> None:
        with redirect_stdout(console):
            _print_estimate(folder, seconds)

    with (folder / LOG).open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as log:
        begin = log.tell()
        try:
            with redirect_stdout(log), hearing_estimate(print_estimate):
                yield
        finally:
            log.flush()
            with (folder / LOG).open("rb") as written:
                written.seek(begin)
                notes = list(_notes(written.read().decode(errors="replace")))
            for note in _not_printed(notes):
                print_line(note)


def _print_estimate(folder: Path, seconds: float) -> None:
    """Print the estimate of the first job that has one, and how long the jobs that remain would take at this rate. Nothing is printed in a
    sweep by successive halving, whose jobs train a part of their epochs only, nor for the last job and short ones.
    """
    job, plan = read_job(folder), read_plan(folder.parent)
    if job is None or plan is None or plan.epochs or seconds < LEAST_ESTIMATE or not _not_printed(["estimate"]):
        return
    others = (other for _, other in jobs_of(folder.parent))
    left = plan.total - sum(other.status == 0 or (other.status is not None and other.number < job.number) for other in others)
    if left < 2:
        return
    one, every = duration_in_words(seconds), duration_in_words(left * seconds)
    print_line(
        f"estimate  {name_of(job)} takes about {one}; {left:,} jobs like this one, one after another, about {every}, less where features "
        "are stored already"
    )
    sys.stdout.flush()


def _not_printed(texts: Iterable[str]) -> list[str]:
    """Those of these lines that no job of the sweep has printed, in this process or in another one. From now on they count as printed."""
    lines = list(dict.fromkeys(texts))
    try:
        with Path(os.environ.get(PRINTED, "")).open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            before = set(file.read().split("\n"))
            new = [line for line in lines if line not in before]
            file.writelines(f"{line}\n" for line in new)
            return new
    except OSError:  # a job on another machine, where this file is not: its output goes to a file of its own
        return lines


def _notes(text: str) -> Iterator[str]:
    """The notes and warnings in the output of a job, each in one line."""
    note = ""
    for line in text.splitlines():
        if note and line.startswith(INDENT):
            note += f" {line.strip()}"
            continue
        if note:
            yield note
        note = line if NOTE.match(line) else ""
    if note:
        yield note


def print_job(folder: Path) -> None:
    """Print the settings of a job that has ended well, its place among all, its result and duration. The jobs that end in a sweep by
    successive halving are few of all, so that their rung stands in place of their place.
    """
    job = read_job(folder)
    if job is None:
        return
    total = os.environ.get(TOTAL)
    names = {**RANKINGS, TEST: "test accuracy"}
    found = [f"{names[name]} {job.metrics[name]:.4f}" for name in (VAL, CROSS_VALIDATED, TEST) if name in job.metrics]
    if keeps_baseline(job.metrics) and TRAINED in job.metrics:
        found.append(f"linear probe kept (best epoch: val {job.metrics[TRAINED]:.4f})")
    elif job.score is not None and (not found or job.score != job.value(HELD_OUT)):  # what a search maximizes, and ranks jobs by
        found.insert(0, f"score {job.score:.4g}")
    chosen: Mapping[str, str] = {"scenario": job.advised, "backbone": job.backbone, "cut": job.cut}
    found += [f"{name} {value}" for name, value in chosen.items() if value]
    place = f"{job.number + 1} of {total}, " if total and not job.rung else ""
    rung = f", rung {job.rung}, trained to the end" if job.rung else ""
    left = _time_left(job.number + 1, int(total), job.seconds or 0) if total else ""
    print_line(f"{place}{name_of(job)}{rung}: {', '.join([*found, duration_in_words(job.seconds or 0)])}{left}")
    _print_ignored(folder, job)
    sys.stdout.flush()  # a sweep takes hours


def _print_ignored(folder: Path, job: Job) -> None:
    """Print which swept options a job ignores, as an earlier job with another value did."""
    names = [name for name in os.environ.get(VARYING, "").split() if name in job.ignored]
    ignored = ignored_options(names, [other for _, other in jobs_of(folder.parent)]) if names else []
    note = f"note      {ignored_note('jobs that only fit a linear probe, as this one,', ignored)} {TRAINS}"
    if ignored and _not_printed([note]):
        print_line(note)


def print_stopped(folder: Path, monitor: Monitor) -> None:
    """Print the settings of a job that has stopped at a rung of successive halving, and its best epoch so far by the metric that ranks."""
    job = read_job(folder)
    if job is None:
        return
    score = score_at(folder, job.epochs, monitor)
    names = {monitor.name: monitor.value(score), TIE_BREAK: score[1]}  # one where that is the metric
    found = "".join(f", {RANKINGS.get(name, name)} {value:.4f}" for name, value in names.items() if isfinite(value))
    print_line(f"{name_of(job)}, rung {job.rung}: {count(job.epochs, 'epoch')}{found}, {duration_in_words(job.seconds or 0)}")
    sys.stdout.flush()


def name_of(job: Job) -> str:
    """The number of a job, and the values of the options that differ between the jobs."""
    words = [f"{name}={job.values[name]}" for name in os.environ.get(VARYING, "").split() if name in job.values] or job.overrides
    return f"job {job.number} ({' '.join(words)})"


def _time_left(ended: int, total: int, seconds: float) -> str:
    """How long the other jobs take if they take as long as those so far, whatever runs side by side; empty where that is not known.

    Args:
        ended: number of jobs that have ended.
        total: number of jobs of the sweep.
        seconds: that the last of them took. What came before the first one, as the import of PyTorch, comes once.
    """
    began, _, done = os.environ.get(BEGAN, "").partition(" ")
    if not began or ended <= int(done) or ended >= total:
        return ""
    if ended == int(done) + 1:
        began = str(max(float(began), time.time() - seconds))
        os.environ[BEGAN] = f"{began} {done}"
    left = (time.time() - float(began)) / (ended - int(done)) * (total - ended)
    return f"; about {duration_in_words(left)} left at this rate" if left >= LEAST_LEFT else ""


def write_page(folder: Path) -> None:
    """Write the page of a sweep and print its path. An error is a line on stderr: the table is printed already."""
    from ftlit.report.sweep_page import write_sweep_page  # here: matplotlib takes a second

    try:
        print_line(f"report: {write_sweep_page(folder)}")
    except Exception as error:
        print(f"ftlit: no report of the sweep: {one_line(error)}", file=sys.stderr)


def print_best(folder: Path, *, minimize: bool) -> None:
    """Print the best job of a search, the first of equals, in one line: its searched values, its score and its folder."""
    jobs = jobs_of(folder)
    names = varying([job for _, job in jobs])
    scored = [(job.score, job.number, job, path) for path, job in jobs if job.score is not None]
    if not scored:
        print_line("the search has no finished job, so there is no best one")
        return
    score, _, job, path = min(scored, key=lambda pair: (pair[0] if minimize else -pair[0], pair[1]))
    values = [f"{name}={job.values[name]}" for name in names if name in job.values] or job.overrides
    print_line(f"best of {count(len(scored), 'finished job')}: {' '.join(values)}, score {score:.4g}, folder {path}")
