"""Changes to the whole process (command line, environment, warnings, settings of torch), undone where their block ends."""

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

INITIAL_ENVIRONMENT = dict(os.environ)  # before this program adds to it

HYDRA_FULL_ERROR = "HYDRA_FULL_ERROR"  # makes Hydra raise its errors instead of printing them
TRACEBACK = "FTLIT_TRACEBACK"  # what the user gave as HYDRA_FULL_ERROR, for the processes that a launcher starts


@contextmanager
def process_state(*, argv: Sequence[str] | None = None, environment: Mapping[str, str | None] | None = None) -> Iterator[None]:
    """Change the command line and the environment; restore both afterwards, and the filters and the format of warnings.

    Args:
        argv: the new `sys.argv`; `None` leaves it.
        environment: variables to set; one with the value `None` is removed.
    """
    old_argv, old_environment, old_format = sys.argv[:], dict(os.environ), warnings.formatwarning
    with warnings.catch_warnings():
        try:
            if argv is not None:
                sys.argv[:] = argv
            for name, value in (environment or {}).items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            yield
        finally:
            sys.argv[:], warnings.formatwarning = old_argv, old_format
            os.environ.clear()
            os.environ.update(old_environment)


@contextmanager
def job_state() -> Iterator[None]:
    """Run one job; what it changes for the whole process, seed and determinism included, is undone, so that the next starts as if alone.

    Unless the user asked for tracebacks, neither Hydra nor the processes that the job starts print any.
    """
    import torch  # here, so that --help stays fast

    benchmark, mode = torch.backends.cudnn.benchmark, torch.get_deterministic_debug_mode()
    with process_state(environment={} if wants_traceback() else {HYDRA_FULL_ERROR: None}):
        try:
            yield
        finally:
            if wandb := sys.modules.get("wandb"):
                wandb.finish()  # its run belongs to the process, and the next job would log to it
            torch.backends.cudnn.benchmark = benchmark
            torch.set_deterministic_debug_mode(mode)


def wants_traceback() -> bool:
    """Whether the user has set HYDRA_FULL_ERROR: errors of the user are shown with their traceback then."""
    return bool(os.environ.get(TRACEBACK, os.environ.get(HYDRA_FULL_ERROR)))


def error_environment() -> dict[str, str | None]:
    """Variables under which Hydra raises its errors, and this process and those that it starts remember what the user wanted."""
    return {TRACEBACK: os.environ.get(HYDRA_FULL_ERROR, "") if wants_traceback() else "", HYDRA_FULL_ERROR: "1"}
