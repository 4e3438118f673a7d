"""The jobs of a sweep. One of several processes runs as a program of its own: Lightning starts the command line again for
each further process, and the command line of a sweep is the whole sweep."""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import __main__
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ftlit.recipes.command import arguments

INTERRUPTED = 130  # the shells' status for a program that Ctrl-C ended
GRACE = 60  # seconds that an interrupted job has to save its checkpoint
RANKS = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in RANKS}  # as it was given, before a job adds to it


@dataclass(frozen=True)
class Job:
    """A job that ended, with the status of a program; the score is NaN where it failed."""

    number: int
    overrides: list[str]
    folder: str
    score: float
    status: int


JOBS: list[Job] = []


def job(cfg: DictConfig, run: Callable[[DictConfig], float]) -> float:
    """Run a job and note it in `JOBS`. One that fails does not end the sweep, an interrupted one does: raises `SystemExit`."""
    hydra, score, status = HydraConfig.get(), float("nan"), 0
    try:
        score = _apart(hydra) if several_processes(cfg) else run(cfg)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) and end.code else 1
        if status == INTERRUPTED:
            raise
    except Exception:
        traceback.print_exc()
        status = 1
    JOBS.append(Job(hydra.job.num, list(hydra.overrides.task), hydra.runtime.output_dir, score, status))
    return score


def several_processes(cfg: DictConfig) -> bool:
    """Whether the trainer may start processes, or leave a process group behind, as a strategy by name does."""
    return any(cfg.trainer.get(name, one) != one for name, one in {"devices": 1, "num_nodes": 1, "strategy": "auto"}.items())


def _apart(hydra: DictConfig) -> float:
    """Run this job as a single run in processes of its own, all of which end with it. Raises `SystemExit` with its status."""
    folder, program = hydra.runtime.output_dir, ["-m", __main__.__spec__.name] if __main__.__spec__ else [sys.argv[0]]
    command = [sys.executable, *program, *arguments(folder), "hydra.mode=RUN", f"hydra.job.num={hydra.job.num}"]
    stops: list[int] = []  # signals: noted, not raised, so that none falls between the child's start and its name
    before = {number: signal.signal(number, lambda number, _: stops.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.stdout.flush()
    try:
        child = subprocess.Popen(command, env=ENVIRONMENT, cwd=hydra.runtime.cwd, stdin=subprocess.DEVNULL, start_new_session=True)
        deadline = float("inf")
        while child.poll() is None and len(stops) < 2 and time.monotonic() < deadline:
            if stops and deadline == float("inf"):
                os.killpg(child.pid, signal.SIGINT)  # all of its processes, as a terminal does
                deadline = time.monotonic() + GRACE
            time.sleep(0.1)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # what is left of them
        if status := INTERRUPTED if stops else child.wait():
            sys.exit(status)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return float(json.loads(Path(folder, "result.json").read_text())["val/accuracy"])
