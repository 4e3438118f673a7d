"""The jobs of a sweep, none of which disturbs another.

One of several processes runs as a program of its own: Lightning starts the command line again for each further process, and the
command line of a sweep is the whole sweep.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ftlit.recipes.command import arguments, program, which_job

MISTAKE = 2
INTERRUPTED = 130  # the shells' status for a program that Ctrl-C ended
GRACE = 60  # seconds that an interrupted job has to save its checkpoint
ENVIRONMENT = dict(os.environ)  # as it was given, before a job adds to it
ONE_PROCESS = {"devices": 1, "num_nodes": 1, "strategy": "auto"}  # of the trainer
FAILED: dict[str, int] = {}  # the jobs that failed, in words, each with its status


def is_sweep() -> bool:
    """Whether this run is a job of a sweep that this process goes through."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


def job(run: Callable[[], float]) -> float:
    """Run a job. Returns its score, NaN where it failed: that is noted, and the sweep goes on.

    Raises:
        SystemExit: with `INTERRUPTED`, which ends the sweep.
    """
    try:
        return run()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        if status == INTERRUPTED:
            raise
    except Exception:
        traceback.print_exc()
        status = 1
    FAILED[f"{which_job()} failed with status {status}, its folder: {HydraConfig.get().runtime.output_dir}"] = status
    return float("nan")


def say_failed() -> int:
    """Name the failed jobs on stderr, one a line. Returns the sweep's status: `MISTAKE` where all are mistakes, 1 where not, 0 for none."""
    for line in FAILED:
        print(f"ftlit: {line}", file=sys.stderr)
    statuses = set(FAILED.values())
    return 0 if not statuses else MISTAKE if statuses == {MISTAKE} else 1


@contextmanager
def undone() -> Iterator[None]:
    """What Lightning sets for a whole process (seed, determinism) is as before afterwards, so that each job starts as if alone."""
    import torch  # here, so that --help stays fast

    environment, benchmark = dict(os.environ), torch.backends.cudnn.benchmark
    mode = torch.get_deterministic_debug_mode()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.backends.cudnn.benchmark = benchmark
        torch.set_deterministic_debug_mode(mode)


def several_processes(cfg: DictConfig) -> bool:
    """Whether the trainer may start processes, or leave a process group behind, as a strategy by name does."""
    return any(OmegaConf.select(cfg, f"trainer.{name}", default=one) != one for name, one in ONE_PROCESS.items())


def run_apart() -> float:
    """Run this job as a single run in processes of its own, none of which outlives it. Raises `SystemExit` with its status."""
    hydra = HydraConfig.get()
    folder = hydra.runtime.output_dir
    command = [sys.executable, *program(), *arguments(folder), "hydra.mode=RUN", f"hydra.job.num={hydra.job.num}"]
    sys.stdout.flush()
    if status := _run_to_its_end(command, hydra.runtime.cwd):
        sys.exit(status)
    result = Path(folder, "result.json")  # a range test trains nothing that could be judged, and leaves none
    return float(json.loads(result.read_text())["val/accuracy"]) if result.is_file() else float("nan")


def _run_to_its_end(command: list[str], folder: str) -> int:
    """Run a command in a process group of its own. An interruption is handed on; a second one, or `GRACE`, ends it at once."""
    stops: list[int] = []  # signals: noted, not raised, so that none falls between the child's start and its name
    before = {number: signal.signal(number, lambda number, _: stops.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        child = subprocess.Popen(command, env=ENVIRONMENT, cwd=folder, stdin=subprocess.DEVNULL, start_new_session=True)
        deadline = float("inf")
        while child.poll() is None and len(stops) < 2 and time.monotonic() < deadline:
            if stops and deadline == float("inf"):
                os.killpg(child.pid, signal.SIGINT)  # all of its processes, as a terminal does
                deadline = time.monotonic() + GRACE
            time.sleep(0.1)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # what is left of them
        return INTERRUPTED if stops else child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
