"""Changes to the whole process (command line, environment, warnings, settings of torch), undone where their block ends."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from ftlit.errors import named_options

INITIAL_ENVIRONMENT = dict(os.environ)  # before this program adds to it

HYDRA_FULL_ERROR = "HYDRA_FULL_ERROR"  # makes Hydra raise its errors instead of printing them
TRACEBACK = "FTLIT_TRACEBACK"  # what the user gave as HYDRA_FULL_ERROR, for the processes that a launcher starts

LIBRARY_LOGGERS = ("lightning.pytorch", "lightning.fabric")
HIDDEN_WARNINGS = (  # of Lightning: hints on hardware and loaders, and warnings of intended behaviour
    r"monitor='val/(accuracy|f1|loss)'\)` could not find the monitored key",  # of training without validation; the last line says so
    "does not have many workers",
    "number of training batches",
    "directory .* exists and is not empty",
    "Checkpoint directory",
    "use_distributed_sampler",
    "GPU available but not used",
    "Starting from v1.9.0, `tensorboardX`",
    "resuming from a checkpoint that ended before",
    "`lr_scheduler.step",
    "module\\(s\\) in eval mode at the start of training",  # the frozen ones
    "isinstance\\(treespec, LeafSpec\\)",
    "`IterableDataset` has `__len__`",
)


@contextmanager
def process_state(*, argv: Sequence[str] | None = None, environment: Mapping[str, str | None] | None = None) -> Iterator[None]:
    """Change the command line and the environment; restore both afterwards, and what `hide_warnings` changes. Errors name options.

    Args:
        argv: the new `sys.argv`; `None` leaves it.
        environment: variables to set; one with the value `None` is removed.
    """
    old_argv, old_format = sys.argv[:], warnings.formatwarning
    levels = {name: logging.getLogger(name).level for name in LIBRARY_LOGGERS}
    with named_options(), warnings.catch_warnings(), _environment(environment or {}):
        try:
            sys.argv[:] = old_argv if argv is None else argv
            yield
        finally:
            sys.argv[:], warnings.formatwarning = old_argv, old_format
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextmanager
def job_state() -> Iterator[None]:
    """Run one job; what it changes for the whole process, seed and determinism included, is undone, so that the next starts as if alone.

    Unless the user asked for tracebacks, neither Hydra nor the processes that the job starts print any. Filters of warnings stay until the
    end of the surrounding `process_state`: libraries that the job imports set theirs for all jobs.
    """
    import torch  # here, so that --help stays fast

    from ftlit.models.precision import kept_matmul_precision

    hide_warnings()
    benchmark, mode = torch.backends.cudnn.benchmark, torch.get_deterministic_debug_mode()
    with named_options(), kept_matmul_precision(), _environment({} if wants_traceback() else {HYDRA_FULL_ERROR: None}):
        try:
            yield
        finally:
            if wandb := sys.modules.get("wandb"):
                wandb.finish()  # its run belongs to the process, and the next job would log to it
            torch.backends.cudnn.benchmark = benchmark
            torch.set_deterministic_debug_mode(mode)


def hide_warnings() -> None:
    """Hide hints of Lightning that do not help here, and print other warnings in one line."""
    import lightning.pytorch  # noqa: F401  # first, as it sets the levels of its loggers

    for name in LIBRARY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in HIDDEN_WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{text}.*")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables, or remove those with the value `None`; restore the whole environment afterwards."""
    before = dict(os.environ)
    for name in changes:
        os.environ.pop(name, None)
    os.environ.update({name: value for name, value in changes.items() if value is not None})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def wants_traceback() -> bool:
    """Whether the user has set HYDRA_FULL_ERROR: errors of the user are shown with their traceback then."""
    return bool(os.environ.get(TRACEBACK, os.environ.get(HYDRA_FULL_ERROR)))


def error_environment() -> dict[str, str | None]:
    """Variables under which Hydra raises its errors, and this process and those that it starts remember what the user wanted."""
    return {TRACEBACK: os.environ.get(HYDRA_FULL_ERROR, "") if wants_traceback() else "", HYDRA_FULL_ERROR: "1"}
