"""The output of a sweep: a line for each job, and each note once. What a job prints itself is in `train.log` in its folder."""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from ftlit.formatting import count, duration_in_words
from ftlit.printing import print_line
from ftlit.recipes.config.overrides import job_label
from ftlit.sweeps.jobs import CROSS_VALIDATED, HELD_OUT, TEST, VAL, jobs_of, read_job, varying
from ftlit.sweeps.setting_results import RANKINGS

LOG = "train.log"
TOTAL = "FTLIT_SWEEP_JOBS"  # in the environment, also of processes that run jobs: the number of jobs of the sweep
NOTE = re.compile(r"(note|doctor|warning)\b")
INDENT = " " * 10  # of the further lines of a row of the plan
PRINTED: set[str] = set()  # notes of the jobs of this process


def begin_sweep(folder: Path, total: int) -> None:
    """Print the number of jobs and where their output is."""
    os.environ[TOTAL] = str(total)
    print_line(f"sweep of {count(total, 'job')}: each prints to {LOG} in its folder, {folder}/NUMBER")
    sys.stdout.flush()


@contextmanager
def job_log(folder: Path) -> Iterator[None]:
    """Append what a job prints on stdout to its log, then print those of its notes that no earlier job had. Errors stay on stderr."""
    with (folder / LOG).open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as log:
        begin = log.tell()
        try:
            with redirect_stdout(log):
                yield
        finally:
            log.flush()
            with (folder / LOG).open("rb") as written:
                written.seek(begin)
                notes = list(_notes(written.read().decode(errors="replace")))
            for note in dict.fromkeys(notes):
                if note not in PRINTED:
                    print_line(note)
            PRINTED.update(notes)


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
    """Print the settings of a job that has ended well, its place among all, its result and duration."""
    job = read_job(folder)
    if job is None:
        return
    total = os.environ.get(TOTAL)
    names = {**RANKINGS, TEST: "test accuracy"}
    found = [f"{names[name]} {job.metrics[name]:.4f}" for name in (VAL, CROSS_VALIDATED, TEST) if name in job.metrics]
    if job.score is not None and (not found or job.score != job.value(HELD_OUT)):  # what a search maximizes, and ranks jobs by
        found.insert(0, f"score {job.score:.4g}")
    chosen: Mapping[str, str] = {"scenario": job.advised, "backbone": job.backbone, "cut": job.cut}
    found += [f"{name} {value}" for name, value in chosen.items() if value]
    place = f", {job.number + 1} of {total}" if total else ""
    print_line(f"{job_label()}{place}: {', '.join([*found, duration_in_words(job.seconds or 0)])}")
    sys.stdout.flush()  # a sweep takes hours


def print_best(folder: Path, *, minimize: bool) -> None:
    """Print the best job of a search, the first of equals, in one line: its searched values, its score and its folder."""
    jobs = jobs_of(folder)
    names = varying([job for _, job in jobs])
    scored = [(job.score, job.number, job, path) for path, job in jobs if job.score is not None]
    if not scored:
        return
    score, _, job, path = min(scored, key=lambda pair: (pair[0] if minimize else -pair[0], pair[1]))
    values = [f"{name}={job.values[name]}" for name in names if name in job.values] or job.overrides
    print_line(f"best of {count(len(scored), 'finished job')}: {' '.join(values)}, score {score:.4g}, folder {path}")
