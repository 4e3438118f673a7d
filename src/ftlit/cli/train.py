"""The command line of training: Hydra composes the config, the recipe that it names runs, mistakes are one line each."""

import os
import sys
from functools import partial
from importlib import import_module

import hydra
from omegaconf import DictConfig

from ftlit.cli import sweep_jobs as sweeping
from ftlit.errors import one_line, unknown
from ftlit.recipes.config.overrides import which_job, with_text
from ftlit.recipes.run import processes as isolation

TRACEBACK = "FTLIT_TRACEBACK"  # what HYDRA_FULL_ERROR was before `main` set it, for the processes that a launcher starts
WANTS_TRACEBACK = bool(os.environ.get(TRACEBACK, os.environ.get("HYDRA_FULL_ERROR")))

RECIPES = {name: f"ftlit.recipes.{name}" for name in ("finetune", "pretrain", "lr_find", "probe", "advise")}
ADVISED = ("finetune", "lr_find")  # recipes that scenario=auto measures for


def main() -> None:
    """Run what `sys.argv` asks for. A mistake is one line on stderr and exit status 2; `HYDRA_FULL_ERROR=1` shows its traceback.

    A job of a sweep that fails does not end the sweep: a table of all ends it, the failed ones are named, and the status is 2 where all
    of them are mistakes, else 1. An interruption is status 130.
    """
    sys.argv[1:] = with_text(sys.argv[1:])
    os.environ[TRACEBACK] = os.environ.get("HYDRA_FULL_ERROR", "") if WANTS_TRACEBACK else ""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra hand over its errors instead of printing them
    try:
        _train()
    except KeyboardInterrupt:  # outside of the training, in which Lightning answers it
        sys.exit(isolation.INTERRUPTED)
    except Exception as error:
        exit_if_mistake(error)
        isolation.leave_reason(f"{type(error).__name__}: {one_line(error)}")
        raise
    finally:
        status = sweeping.end()
    if status:
        sys.exit(status)


@hydra.main(config_path="pkg://ftlit.conf", config_name="train", version_base="1.3")
def _train(cfg: DictConfig) -> float:
    return sweeping.job(cfg, partial(_run, cfg)) if isolation.is_sweep() else _run(cfg)


def _run(cfg: DictConfig) -> float:
    if not WANTS_TRACEBACK:  # nor do the processes that this run starts
        os.environ.pop("HYDRA_FULL_ERROR", None)
    try:
        if isolation.is_sweep() and isolation.several_processes(cfg):
            return isolation.run_apart()
        if cfg.recipe not in RECIPES:
            raise unknown("recipe", cfg.recipe, RECIPES)
        with isolation.undone():
            if cfg.recipe in ADVISED:
                cfg = import_module(RECIPES["advise"]).settled(cfg)
            return import_module(RECIPES[cfg.recipe]).run(cfg)  # type: ignore[no-any-return]
    except Exception as error:
        exit_if_mistake(error)
        raise
    finally:
        os.environ["HYDRA_FULL_ERROR"] = "1"


def exit_if_mistake(error: Exception) -> None:
    """Say a person's mistake on stderr and end with status 2; return where the error is none."""
    from ftlit.recipes.config.error_messages import as_user_error  # here, so that --help stays fast

    if not WANTS_TRACEBACK and (mistake := as_user_error(error)):
        print("ftlit", *filter(None, [which_job()]), mistake, sep=": ", file=sys.stderr)
        isolation.leave_reason(str(mistake))
        isolation.remove_empty()
        raise isolation.Ended(isolation.MISTAKE, str(mistake))


if __name__ == "__main__":
    main()
