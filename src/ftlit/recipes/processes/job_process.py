"""How a job of a sweep runs and ends, so that no job disturbs another.

A job with several processes runs as a program of its own: Lightning starts the command line again for each further process, and the command
line of a sweep is the whole sweep.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from traceback import walk_tb

from omegaconf import DictConfig, OmegaConf

from ftlit.errors import one_line
from ftlit.lit.stop_signals import INTERRUPTED_STATUS, SIGNALS
from ftlit.recipes.config.hydra_internals import hydra_config, run_mode
from ftlit.recipes.config.overrides import arguments, program
from ftlit.recipes.processes.process_state import INITIAL_ENVIRONMENT
from ftlit.run_folder import TRAINED, read_result

STARTED = time.time()  # of this program
USER_ERROR_STATUS = 2
SECONDS_TO_SAVE = 60  # that an interrupted job has for its checkpoint
ONE_PROCESS = {"devices": 1, "num_nodes": 1, "strategy": "auto"}  # values of the trainer
REASON = "reason.txt"  # in the folder of a job, while its own process runs
REASON_FILE = "FTLIT_REASON"  # in the environment of a job's own process: the file for the reason of its failure


def is_sweep() -> bool:
    """Whether this run is a job of a sweep that this process runs."""
    return run_mode() == "MULTIRUN"


def is_interruption(end: BaseException) -> bool:
    """Whether Ctrl-C, or a signal that ends the run, ended the program: itself, or by Lightning's `sys.exit` for it."""
    return isinstance(end, KeyboardInterrupt) or (isinstance(end, SystemExit) and isinstance(end.__context__, KeyboardInterrupt))


def is_requeue(end: BaseException) -> bool:
    """Whether a handler of submitit ended the program, to start the job again: its exit status is meant for submitit."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(end.__traceback__)]
    return isinstance(end, SystemExit) and bool(modules) and modules[-1].startswith("submitit.")


class JobExit(SystemExit):
    """The end of a job with a status other than 0, and the reason in one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status)
        self.reason = reason

    def __reduce__(self) -> tuple[type["JobExit"], tuple[object, str]]:
        """Both arguments, for processes of joblib: one whose exception cannot be read ends all others."""
        return JobExit, (self.code, self.reason)


def end_status(end: BaseException) -> int:
    """The status that Python's process would have: 0 without a code, 1 for a text. A job that is started again was interrupted."""
    code = INTERRUPTED_STATUS if is_requeue(end) else getattr(end, "code", INTERRUPTED_STATUS)
    return code if isinstance(code, int) else int(code is not None)


def end_reason(end: BaseException) -> str:
    """Why a job ended, in one line."""
    if isinstance(end, JobExit):
        return end.reason
    return "interrupted" if end_status(end) == INTERRUPTED_STATUS else one_line(end.__context__ or end)


def write_reason(reason: str) -> None:
    """Leave the reason of a failure to the process that started this job, if one did. The first process of the job that fails writes it."""
    if path := os.environ.get(REASON_FILE):
        with suppress(OSError), Path(path).open("x") as file:
            file.write(reason)


def remove_empty_folder() -> None:
    """Remove the folder of a single run that ended in a user error, if this program made it, and it is empty."""
    hydra = hydra_config()
    if hydra is None or run_mode() != "RUN" or OmegaConf.is_missing(hydra.runtime, "output_dir"):
        return
    folder = Path(hydra.runtime.output_dir)
    made_here = folder.is_dir() and not folder.is_symlink() and folder.stat().st_mtime >= STARTED
    if made_here and folder.resolve() != Path.cwd():
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def several_processes(cfg: DictConfig) -> bool:
    """Whether the trainer may start processes, or leave a process group behind, as a strategy that is given by name does."""
    return any(OmegaConf.select(cfg, f"trainer.{name}", default=one) != one for name, one in ONE_PROCESS.items())


def run_in_own_process() -> float:
    """Run this job as a single run in a process group of its own, which ends with it and prints to the log of the job. Raises `JobExit`
    with its status.
    """
    hydra = hydra_config()
    folder = hydra.runtime.output_dir
    command = [sys.executable, *program(), *arguments(folder), "hydra.mode=RUN", f"hydra.job.num={hydra.job.num}"]
    sys.stdout.flush()
    reason = Path(folder, REASON)
    reason.unlink(missing_ok=True)
    if status := wait_for(command, hydra.runtime.cwd, {**INITIAL_ENVIRONMENT, REASON_FILE: str(reason)}):
        raise JobExit(status, reason.read_text() if reason.is_file() else reason_of(status))
    result = read_result(folder)  # a range test trains nothing that could be evaluated, and leaves none
    return float(result[TRAINED if TRAINED in result else "val/accuracy"]) if isinstance(result, dict) else float("nan")


def reason_of(status: int) -> str:
    """Why a process ended with a status other than 0, where it left no reason."""
    if status == INTERRUPTED_STATUS:
        return "interrupted"
    return "its process was killed" if status < 0 else "its process ended"


def wait_for(command: list[str], folder: str, environment: dict[str, str]) -> int:
    """Run a command in a process group of its own and return its status. An interruption is passed on; a second one, or `SECONDS_TO_SAVE`
    after the first, ends the group at once.
    """
    stops: list[int] = []  # signals: noted, not raised, so that none falls between the start of the child and its name
    before = {number: signal.signal(number, lambda number, _: stops.append(number)) for number in SIGNALS}
    try:
        child = subprocess.Popen(command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=sys.stdout, start_new_session=True)
        deadline = float("inf")
        while child.poll() is None and len(stops) < 2 and time.monotonic() < deadline:
            if stops and deadline == float("inf"):
                os.killpg(child.pid, stops[0])  # all of its processes, as a terminal does
                deadline = time.monotonic() + SECONDS_TO_SAVE
            time.sleep(0.1)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # those that are left
        return INTERRUPTED_STATUS if stops else child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
