"""Check the jobs of a sweep before the first one runs: each is composed and bound, so that no mistake is found hours later."""

import shutil
from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from ftlit.errors import UserError
from ftlit.formatting import count
from ftlit.recipes.checks.early_checks import check_early
from ftlit.recipes.config.error_messages import as_user_error
from ftlit.recipes.config.hydra_internals import kept_hydra, use_hydra_config
from ftlit.recipes.config.hydra_sweeps import compose_job
from ftlit.sweeps.jobs import Job, varying

SLURM, SLURM_PROGRAMS = "submitit_slurm", ("srun", "sbatch")  # the launcher, and what it calls
REMOTE_LAUNCHERS = (SLURM, "ray")  # launchers whose jobs run on other machines, with other files and packages
NAMED_FILES = ("ftlit.load_backbone", "ftlit.load_timm")  # networks that find their weights in a folder by name


def check_launcher(launcher: str | None) -> None:
    """Raise `UserError` for the launcher of SLURM where SLURM is not installed."""
    missing = [name for name in SLURM_PROGRAMS if launcher == SLURM and shutil.which(name) is None]
    if missing:
        raise UserError(
            f"hydra/launcher={SLURM} needs {' and '.join(missing)} of SLURM, not found on this machine: start the sweep on a machine that "
            "submits SLURM jobs, or give hydra/launcher=submitit_local to run the jobs on this machine"
        )


def check_jobs(config: DictConfig, planned: Mapping[int, Sequence[str]], composed: dict[int, DictConfig] | None = None) -> None:
    """Compose and bind jobs of a sweep; of those that differ in their seed alone, one.

    Args:
        config: of the sweep.
        planned: the overrides of the jobs that are to run, by number.
        composed: gets the config of each job that was composed, by number; `None`: they are not kept, because a sweep may have thousands.

    Raises:
        UserError: the first job that could not begin, and how many others.
    """
    if config.hydra.runtime.choices.get("hydra/launcher") in REMOTE_LAUNCHERS:
        return
    jobs = [Job(number, tuple(words)) for number, words in planned.items()]
    names = varying(jobs)
    kinds = {tuple(job.values.get(name) for name in names): job for job in reversed(jobs)}  # the first of each
    errors = {job.number: error for job in reversed(kinds.values()) if (error := _error_of(config, job, composed))}
    if not errors:
        return
    number, error = next(iter(errors.items()))
    if len(errors) == len(kinds) and len(set(map(str, errors.values()))) == 1:
        raise error
    words = " ".join(f"{name}={planned_job.values[name]}" for planned_job in jobs if planned_job.number == number for name in names)
    others = f"; {count(len(errors) - 1, 'other job')} could not begin either" if len(errors) > 1 else ""
    raise UserError(f"no job has run, because job {number} ({words}) could not begin: {error}{others}") from error


def _error_of(config: DictConfig, job: Job, composed: dict[int, DictConfig] | None) -> UserError | None:
    try:
        cfg = compose_job(config, job.overrides, job.number)
        with use_hydra_config(cfg):
            _check(OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"]))
        if composed is not None:
            composed[job.number] = cfg
    except Exception as error:
        with kept_hydra():
            found = as_user_error(error)
        if found is None:
            raise
        return found
    return None


def _check(cfg: DictConfig) -> None:
    """What a recipe checks of its config before it builds its parts."""
    check_early(cfg)
    from ftlit.recipes.checks.validate import bind  # here: a launcher's own process needs no torch
    from ftlit.zoo.weights.weight_sources import file_of

    bind(cfg)
    if cfg.backbone.get("_target_") in NAMED_FILES:
        file_of(cfg.backbone.get("weights"), cfg.backbone.name)
