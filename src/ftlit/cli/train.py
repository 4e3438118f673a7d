"""The command line of training: Hydra composes the config, its recipe runs, an error of the user is one line."""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from omegaconf import DictConfig

from ftlit.cli import search_current_folder
from ftlit.cli.command_words import complete
from ftlit.cli.deferred_imports import defer_imports, quick_imports
from ftlit.cli.output import robust_output
from ftlit.cli.run_again import with_run
from ftlit.cli.sweep import sweep_jobs, sweep_rungs
from ftlit.cli.sweep.sweep_devices import take_gpu
from ftlit.errors import invalid, named_options, one_line
from ftlit.files import WriteError
from ftlit.lit.stop_signals import INTERRUPTED_STATUS, owned_signals
from ftlit.recipes.checks.early_checks import check_early
from ftlit.recipes.config.hydra_internals import choices, hydra_config, hydra_main, set_help
from ftlit.recipes.config.hydra_sweeps import composed_once, jobs_of_sweeps, launched_by
from ftlit.recipes.config.overrides import command_environment, given, job_label
from ftlit.recipes.processes import job_process, launched
from ftlit.recipes.processes.process_state import error_environment, job_state, process_state, wants_traceback
from ftlit.recipes.resuming import resume
from ftlit.recipes.resuming.interruption import print_interrupted
from ftlit.sweeps import running
from ftlit.sweeps.jobs import is_sweep

RECIPES = {name: f"ftlit.recipes.{name}" for name in ("finetune", "pretrain", "lr_find", "probe", "advise")}
CHOOSING = ("finetune", "lr_find", "probe", "advise")  # recipes that choose a backbone for backbone=auto
ADVISED = ("finetune", "lr_find")  # recipes that take the scenario of scenario=auto


def main() -> None:
    """Run the recipe that the command line asks for.

    An error of the user is one line on stderr and exit status 2; `HYDRA_FULL_ERROR=1` shows its traceback. A failed job does not end its
    sweep: at the end a table shows all jobs, failed ones are listed, and the status is 2 where all are errors of the user, else 1. An
    interruption, by Ctrl-C, SIGTERM or SIGUSR1, is status 130.
    """
    search_current_folder()
    defer_imports()
    set_help(_help_text)
    with (
        robust_output(),
        owned_signals(answers=launched.is_first_on_machine()),
        composed_once(),
        jobs_of_sweeps(sweep_jobs.plan_jobs),
        launched_by(sweep_rungs.launch_in_rungs),
        process_state(argv=[*sys.argv], environment=error_environment()),
    ):
        status = _run_hydra()
    if status:
        sys.exit(status)


def _run_hydra() -> int:
    try:
        sys.argv[1:] = with_run(sys.argv[1:])
        os.environ.update(command_environment())
        sys.argv[1:] = launched.complete(complete(sys.argv[1:]))
        _train()
    except KeyboardInterrupt:  # outside of a run, or a launcher's jobs run in other processes
        if launched.is_first_on_machine():
            before = "the first job of the sweep" if running.SWEEPS else "a run"
            again = f"interrupted before {before} began: give the same command to start again"
            begun = any(map(is_sweep, running.SWEEPS))  # its table says how to go on
            print(f"ftlit: {'the sweep was interrupted' if begun else again}", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)
    except Exception as error:
        exit_for_user_error(error)
        job_process.write_reason(f"{type(error).__name__}: {one_line(error)}")
        raise
    finally:
        status = sweep_jobs.end_sweep()
    return status


def _help_text(cfg: DictConfig) -> str:
    from ftlit.cli.help_text import help_text  # here: only --help needs it

    return help_text(cfg)


@hydra_main(config_name="train")
def _train(cfg: DictConfig) -> float | None:
    with named_options():  # also in a process of Hydra's launchers
        return sweep_jobs.run_job(cfg, partial(_run, cfg)) if job_process.is_sweep() else sweep_jobs.finish_alone(_run(cfg))


def _run(cfg: DictConfig) -> float:
    try:
        with owned_signals():  # also in a process of Hydra's launchers
            return run_recipe(cfg)
    except (KeyboardInterrupt, SystemExit) as end:
        if job_process.is_interruption(end):
            exit_for_interruption(cfg)
        raise
    except Exception as error:
        exit_for_user_error(error, cfg)
        raise


def run_recipe(cfg: DictConfig) -> float:
    """Run the recipe of a composed config. Returns its score. Raises what the recipe raises, and `UserError` for an unknown recipe."""
    if job_process.is_sweep() and not running.SWEEPS:  # a launcher runs the jobs side by side, not this program one by one
        take_gpu(cfg, hydra_config().job.num)
    if job_process.is_sweep() and job_process.several_processes(cfg):
        return job_process.run_in_own_process()
    if cfg.recipe not in RECIPES:
        raise invalid("recipe", cfg.recipe, RECIPES)
    check_early(cfg)
    resume.decide(cfg)
    _print_loading(cfg)
    with quick_imports():
        for module in ("lightning.pytorch", *([RECIPES["advise"]] if cfg.recipe in ADVISED else []), RECIPES[cfg.recipe]):
            import_module(module)
    once = import_module("ftlit.recipes.run.data").data_read_once()
    with job_state(), once, _with_start(cfg) as cfg, _with_backbone(cfg) as cfg, _with_scenario(cfg) as cfg:
        return import_module(RECIPES[cfg.recipe]).run(cfg)  # type: ignore[no-any-return]


def _with_start(cfg: DictConfig) -> AbstractContextManager[DictConfig]:
    """The config with the settings of the run of `init_from`."""
    if cfg.init_from is None:
        return nullcontext(cfg)
    return import_module("ftlit.recipes.choose_start").start_of_run(cfg)  # type: ignore[no-any-return]


def _with_backbone(cfg: DictConfig) -> AbstractContextManager[DictConfig]:
    """The config with the backbone that `backbone=auto` chooses."""
    if choices()["backbone"] != "auto" or cfg.recipe not in CHOOSING:
        return nullcontext(cfg)
    return import_module("ftlit.recipes.choose_backbone").backbone_of_run(cfg)  # type: ignore[no-any-return]


def _with_scenario(cfg: DictConfig) -> AbstractContextManager[DictConfig]:
    """The config with the scenario that `scenario=auto` advises."""
    return import_module(RECIPES["advise"]).advice_of_run(cfg) if cfg.recipe in ADVISED else nullcontext(cfg)


def _print_loading(cfg: DictConfig) -> None:
    """Print what is being loaded, before an import that takes seconds, once for all processes and jobs."""
    if "torch" not in sys.modules and launched.own_rank() == 0:
        chosen = {group: (given(f"{group}._target_") or [f"{group}={choices()[group]}"])[-1].lstrip("+") for group in ("backbone", "data")}
        network = chosen["backbone"] if cfg.init_from is None else f"init_from={cfg.init_from}"
        print(f"loading   PyTorch and Lightning, then {network} and {chosen['data']}", flush=True)


def exit_for_interruption(cfg: DictConfig) -> NoReturn:
    """Print how to go on, and exit with status 130. A further process exits with 0: Lightning kills the first where one ends otherwise."""
    print_interrupted(cfg)
    job_process.remove_empty_folder()
    raise job_process.JobExit(0 if launched.own_rank() else INTERRUPTED_STATUS, "interrupted") from None


def exit_for_user_error(error: Exception, cfg: DictConfig | None = None) -> None:
    """Print an error of the user on stderr and exit with status 2; return where the error is a fault of the program. If a file could not be
    written, the line says how to go on with the run of `cfg`.
    """
    from ftlit.recipes.config.error_messages import as_user_error  # here, so that --help stays fast

    if not wants_traceback() and (user_error := as_user_error(error)):
        text = f"{user_error}; {_next_step(cfg)}" if cfg is not None and isinstance(user_error, WriteError) else str(user_error)
        launched.print_once(": ".join(["ftlit", *filter(None, [job_label()]), text]), user_error)
        job_process.write_reason(text)
        job_process.remove_empty_folder()
        raise job_process.JobExit(job_process.USER_ERROR_STATUS, text)


def _next_step(cfg: DictConfig) -> str:
    if cfg.recipe in resume.RESUMABLE_RECIPES and Path(cfg.paths.run, "config.yaml").is_file():
        return f"then resume: {import_module('ftlit.recipes.console.commands').resume_command(cfg)}"
    return "then give the command again"


if __name__ == "__main__":
    main()
