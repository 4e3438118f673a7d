"""The jobs of a sweep, none of which disturbs another.

One of several processes runs as a program of its own: Lightning starts the command line again for each further process, and the
command line of a sweep is the whole sweep.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ftlit.recipes.config.overrides import arguments, program
from ftlit.run_folder import read_result

MISTAKE = 2
INTERRUPTED = 130  # the shells' status for a program that Ctrl-C ended
GRACE = 60  # seconds that an interrupted job has to save its checkpoint
ENVIRONMENT = dict(os.environ)  # as it was given, before a job adds to it
ONE_PROCESS = {"devices": 1, "num_nodes": 1, "strategy": "auto"}  # of the trainer
REASON = "FTLIT_REASON"  # in the environment of a job that runs apart: the file for why it failed


def is_sweep() -> bool:
    """Whether this run is a job of a sweep that this process goes through."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


class Ended(SystemExit):
    """The end of a job with a status, and why, in one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status)
        self.reason = reason


def leave_reason(reason: str) -> None:
    """For the process that started this job apart, if one did. The first of the job's processes that fails knows why."""
    if path := os.environ.get(REASON):
        with suppress(OSError), Path(path).open("x") as file:
            file.write(reason)


def remove_empty() -> None:
    """Remove the folder of a single run that was refused where it holds nothing but the config that Hydra wrote."""
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    if hydra is None or hydra.mode is not RunMode.RUN or OmegaConf.is_missing(hydra.runtime, "output_dir"):
        return
    folder = Path(hydra.runtime.output_dir).resolve()
    if folder.is_dir() and {path.name for path in folder.iterdir()} == {".hydra"} and folder != Path.cwd():
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def undone() -> Iterator[None]:
    """What Lightning sets for a whole process (seed, determinism) is as before afterwards, so that each job starts as if alone."""
    import torch  # here, so that --help stays fast

    environment, benchmark = dict(os.environ), torch.backends.cudnn.benchmark
    mode = torch.get_deterministic_debug_mode()
    try:
        yield
    finally:
        if wandb := sys.modules.get("wandb"):
            wandb.finish()  # its run is the process's, and the next job would log to it
        os.environ.clear()
        os.environ.update(environment)
        torch.backends.cudnn.benchmark = benchmark
        torch.set_deterministic_debug_mode(mode)


def several_processes(cfg: DictConfig) -> bool:
    """Whether the trainer may start processes, or leave a process group behind, as a strategy by name does."""
    return any(OmegaConf.select(cfg, f"trainer.{name}", default=one) != one for name, one in ONE_PROCESS.items())


def run_apart() -> float:
    """Run this job as a single run in processes of its own, none of which outlives it. Raises `Ended` with its status."""
    hydra = HydraConfig.get()
    folder = hydra.runtime.output_dir
    command = [sys.executable, *program(), *arguments(folder), "hydra.mode=RUN", f"hydra.job.num={hydra.job.num}"]
    sys.stdout.flush()
    reason = Path(folder, "reason.txt")
    reason.unlink(missing_ok=True)
    if status := _run_to_its_end(command, hydra.runtime.cwd, {**ENVIRONMENT, REASON: str(reason)}):
        why = "interrupted" if status == INTERRUPTED else "its process was killed" if status < 0 else "its process ended"
        raise Ended(status, reason.read_text() if reason.is_file() else why)
    result = read_result(folder)  # a range test trains nothing that could be evaluated, and leaves none
    return float(result["val/accuracy"]) if isinstance(result, dict) else float("nan")


def _run_to_its_end(command: list[str], folder: str, environment: dict[str, str]) -> int:
    """Run a command in a process group of its own. An interruption is handed on; a second one, or `GRACE`, ends it at once."""
    stops: list[int] = []  # signals: noted, not raised, so that none falls between the child's start and its name
    before = {number: signal.signal(number, lambda number, _: stops.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        child = subprocess.Popen(command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, start_new_session=True)
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
