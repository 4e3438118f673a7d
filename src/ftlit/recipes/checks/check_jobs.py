"""Check the jobs of a sweep before the first one runs: each is composed and bound, so that no mistake is found hours later."""

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from inspect import signature
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ftlit.errors import UserError, shorten
from ftlit.formatting import count
from ftlit.recipes.checks.early_checks import check_early
from ftlit.recipes.config.error_messages import as_user_error
from ftlit.recipes.config.hydra_internals import choices, kept_hydra, use_hydra_config
from ftlit.recipes.config.hydra_sweeps import compose_job
from ftlit.sweeps.jobs import Job, varying

SLURM, SLURM_PROGRAMS = "submitit_slurm", ("srun", "sbatch")  # the launcher, and what it calls
REMOTE_LAUNCHERS = (SLURM, "ray")  # launchers whose jobs run on other machines, with other files and packages
Published = tuple[str, str]  # a network, and the weights that it reads
MOST_REASONS = 3  # in one error
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
    """Compose and bind jobs of a sweep; of those that differ in their seed alone, one. Then download the published weights that they lack.

    Args:
        config: of the sweep.
        planned: the overrides of the jobs that are to run, by number.
        composed: gets the config of each job that was composed, by number; `None`: they are not kept, because a sweep may have thousands.

    Raises:
        UserError: the jobs that could not begin, and why.
    """
    if config.hydra.runtime.choices.get("hydra/launcher") in REMOTE_LAUNCHERS:
        return
    jobs = [Job(number, tuple(words)) for number, words in planned.items()]
    names = varying(jobs)
    kinds = {tuple(job.values.get(name) for name in names): job for job in reversed(jobs)}  # the first of each
    published: dict[Published, Job] = {}
    errors = [(job, error) for job in reversed(kinds.values()) if (error := _error_of(config, job, composed, published))]
    if errors and len(errors) == len(kinds) and len({str(error) for _, error in errors}) == 1:
        raise errors[0][1]
    missing = ""
    if not errors and (failed := _failed_download(published)):
        if len(published) == 1:
            raise failed[1]
        errors, missing = [failed], _missing_too(published, failed[0])
    if errors:
        raise UserError(f"no job has run, because {_reasons(errors, names)}{missing}") from errors[0][1]


def _reasons(errors: Sequence[tuple[Job, UserError]], names: Sequence[str]) -> str:
    """Which jobs could not begin, and why: `MOST_REASONS` reasons, each with the jobs that have it.

    Args:
        errors: of the jobs.
        names: the swept options.
    """
    jobs_of: dict[str, list[str]] = {}
    for job, error in errors:
        words = " ".join(f"{name}={job.values[name]}" for name in names if name in job.values)
        jobs_of.setdefault(str(error), []).append(f"{job.number} ({words})")
    shown = list(jobs_of.items())[:MOST_REASONS]
    texts = [f"job{'s' if len(jobs) > 1 else ''} {shorten(jobs, MOST_REASONS)} could not begin: {reason}" for reason, jobs in shown]
    left = sum(map(len, jobs_of.values())) - sum(len(jobs) for _, jobs in shown)
    return "; ".join([*texts, *([f"{count(left, 'other job')} could not begin either"] if left else [])])


def _failed_download(published: Mapping[Published, Job]) -> tuple[Job, UserError] | None:
    """Download the weights that are missing, up to the first that cannot be: its job and the error, or `None`."""
    if not published:
        return None
    from ftlit.zoo.torchvision_nets import download  # here: a launcher's own process needs no torch

    for (name, weights), job in published.items():
        try:
            download(name, weights)
        except UserError as error:
            return job, error
    return None


def _missing_too(published: Mapping[Published, Job], failed: Job) -> str:
    """The other networks whose weights are missing, as the end of an error."""
    from ftlit.zoo.torchvision_nets import is_at_hand  # here: a launcher's own process needs no torch

    names = [name for (name, weights), job in published.items() if job is not failed and not is_at_hand(name, weights)]
    return f". The weights of {shorten(names)}, which other jobs need, are missing too" if names else ""


def _error_of(config: DictConfig, job: Job, composed: dict[int, DictConfig] | None, published: dict[Published, Job]) -> UserError | None:
    """The error of a job that could not begin; `None` for others. Adds the published weights that it reads."""
    try:
        cfg = compose_job(config, job.overrides, job.number)
        with use_hydra_config(cfg):
            own = OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"])
            _check(own)
            if own.backbone.get("_target_") == NAMED_FILES[0] and own.init_from is None and own.backbone.get("weights") is not None:
                published.setdefault((own.backbone.name, str(own.backbone.weights)), job)
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
    from ftlit.zoo.torchvision_nets import file_in_folder
    from ftlit.zoo.weights.weights_folder import file_of

    bind(cfg)
    if (target := cfg.backbone.get("_target_")) in NAMED_FILES:
        find_file = file_in_folder if target == NAMED_FILES[0] else file_of
        find_file(cfg.backbone.get("weights"), cfg.backbone.name)
    if cfg.backbone.get("_target_") == NAMED_FILES[0] and cfg.init_from is None:
        _check_layers(cfg)


def _check_layers(cfg: DictConfig) -> None:
    """Check names of layers, and that training reaches the last stage of a schedule with a stage for each layer."""
    from ftlit.finetuning.schedule import without_warm_up
    from ftlit.recipes.checks.own_parts import build_part

    cuts = cfg.head.get("cuts")
    named = [cfg.backbone.cut, *(cfg.backbone.reinit or ()), *(cuts if isinstance(cuts, ListConfig) else ())]
    layerwise = cfg.recipe == "finetune" and choices().get("scenario") != "auto" and "every" in cfg.schedule
    if not layerwise and all(name is None for name in named):
        return
    values: Any = OmegaConf.to_container(cfg.backbone, resolve=True)
    if (whole := _layers_of(cfg.backbone.name, json.dumps(values))) is None:
        return
    for name in named:
        if name is not None:
            whole.index(name)
    if layerwise:
        ends = [whole.index(name) for name in (cfg.backbone.cut, *(cuts if isinstance(cuts, ListConfig) else ())) if name is not None]
        backbone = whole.upto(max(ends)) if ends else whole
        schedule = build_part("schedule", cfg.schedule, layers=backbone.layers_with_parameters)
        if choices().get("head") == "linear_probe":
            schedule = without_warm_up(schedule)
        try:
            schedule.check_reached(cfg.trainer.get("max_epochs"), cfg.trainer.get("max_steps") or -1)
        except UserError as error:
            layers = count(len(backbone.layers_with_parameters), "layer")
            ways = f"with a smaller schedule.every or schedule=all_at_once; this backbone has {layers}"
            raise UserError(f"{error}, {ways}") from None


@lru_cache(maxsize=64)
def _layers_of(name: str, values: str) -> Any:
    """The `Backbone` of a network without weights; `None` where it cannot be built in this way, and the job itself checks its layers.

    Args:
        name: of the network.
        values: of the config group, as JSON.
    """
    from ftlit.zoo.torchvision_nets import backbone_without_weights, load_backbone

    own = signature(load_backbone).parameters
    arguments = {key: value for key, value in json.loads(values).items() if key not in own and not key.startswith("_")}
    try:
        return backbone_without_weights(name, **arguments)
    except UserError:
        return None
