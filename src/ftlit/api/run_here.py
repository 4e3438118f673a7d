"""Run a command line of training in this process: the same config, recipe and run folder."""

import gc
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from ftlit.cli.command_words import complete
from ftlit.cli.run_again import with_run
from ftlit.cli.train import run_recipe
from ftlit.errors import UserError
from ftlit.lit.stop_signals import INTERRUPTED_STATUS, owned_signals
from ftlit.printing import print_line
from ftlit.recipes.config.error_messages import as_user_error
from ftlit.recipes.config.hydra_internals import hydra_main, own_hydra
from ftlit.recipes.config.literal_values import quote
from ftlit.recipes.config.overrides import COMMAND
from ftlit.recipes.processes import job_process, launched
from ftlit.recipes.processes.process_state import INITIAL_ENVIRONMENT, error_environment, process_state, wants_traceback
from ftlit.recipes.resuming.interruption import print_interrupted
from ftlit.recipes.resuming.resume import CONFIG


def run_here(words: Sequence[str], resume_call: Callable[[Path], str] | None = None) -> Path:
    """Run the recipe of a command line of training; what it prints goes to stdout.

    Hydra, signal handlers, environment and command line of this process are afterwards as they were. A run with several processes runs in
    processes of its own.

    Args:
        words: after `ftlit train`, for one run.
        resume_call: the folder of a run -> the call in Python that resumes it, which is printed after an interruption; `None`: none does.

    Returns:
        The run's folder.

    Raises:
        UserError: a mistake that the command line reports in one line.
        RuntimeError: a process of a run with several failed; the reason, and the run's folder.
        KeyboardInterrupt: the run was interrupted; what resumes it has been printed.
    """
    spec = find_spec("ftlit.cli.train")
    assert spec is not None and spec.origin is not None
    program, folders, words = spec.origin, [], with_run(words)
    errors: list[Exception] = []

    @hydra_main(config_name="train")
    def job(cfg: DictConfig) -> None:
        folders.append(Path(cfg.paths.run).absolute())
        try:
            if job_process.several_processes(cfg) and launched.launched() is None:
                _run_in_processes(program, sys.argv[1:], folders[0])
            else:
                _run(cfg)
        except Exception as error:  # Hydra would print its own lines
            errors.append(error)

    command = {COMMAND: json.dumps({"program": [program], "words": list(words)})}
    with own_hydra(), owned_signals(), process_state(argv=[program, *words], environment=error_environment() | command):
        try:
            sys.argv[1:] = launched.complete(complete(sys.argv[1:]))
            if "hydra.mode=MULTIRUN" in sys.argv:
                raise UserError(
                    "this is a sweep, which only the command line runs: leave hparams_search out, and give each option one value"
                )
            job()
            if errors:
                raise errors[0]
        except KeyboardInterrupt:
            if resume_call and folders and (folders[0] / CONFIG).exists():
                print_line(f"In Python: {resume_call(folders[0])}")
            if wants_traceback():
                raise
            raise KeyboardInterrupt from None  # a new one: without the frames of Hydra and Lightning
        except Exception as error:
            if (user_error := as_user_error(error)) and not wants_traceback():
                raise user_error from None
            raise
        finally:
            gc.unfreeze()  # of `quick_imports`: objects of the caller too, which would never be collected
    return folders[0]


def _run(cfg: DictConfig) -> None:
    try:
        run_recipe(cfg)
    except (KeyboardInterrupt, SystemExit) as end:
        if not job_process.is_interruption(end):
            raise
        print_interrupted(cfg)
        raise KeyboardInterrupt from None
    except Exception:
        job_process.remove_empty_folder()
        raise


def _run_in_processes(program: str, words: Sequence[str], folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        reason = Path(place, "reason")
        own = [*words, f"hydra.run.dir={quote(str(folder))}"]
        environment = {**INITIAL_ENVIRONMENT, job_process.REASON_FILE: str(reason)}
        status = job_process.wait_for([sys.executable, program, *own], str(Path.cwd()), environment)
        if status == INTERRUPTED_STATUS:
            raise KeyboardInterrupt
        if status:
            why = reason.read_text() if reason.is_file() else f"{job_process.reason_of(status)} with status {status}"
            raise UserError(why) if status == job_process.USER_ERROR_STATUS else RuntimeError(f"the run in {folder} failed: {why}")
