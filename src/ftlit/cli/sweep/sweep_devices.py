"""GPUs and cores of jobs that run beside others on one machine."""

import os
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ftlit.data.loading import usable_cores
from ftlit.recipes.config.hydra_sweeps import Launch
from ftlit.recipes.processes.process_state import INITIAL_ENVIRONMENT, process_state

GPU_VARIABLE, THREADS_VARIABLE = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"
ONE_GPU = {"devices": (1, "1"), "num_nodes": (1,), "accelerator": ("auto", "gpu", "cuda")}  # values of the trainer
ONE_BY_ONE = "basic"  # the launcher that runs the jobs in this process
LOCAL = "submitit_local"  # the launcher that starts all jobs at once, and sets GPU_VARIABLE: to no GPU where the user asks for none
TO_RUN = "FTLIT_SWEEP_TO_RUN"  # in the environment of processes that run jobs: the numbers of the jobs of a launch that are not done
GPUS = "FTLIT_SWEEP_GPUS"  # likewise, with `LOCAL`: GPU_VARIABLE as it was before, or `ALL`
ALL = "all"  # the variable was not set


def launch_beside(config: DictConfig, launch: Launch, jobs: Sequence[Sequence[str]], first: int, to_run: Sequence[int]) -> Sequence[Any]:
    """Launch jobs, and tell their processes what they need to share the GPUs and the cores of this machine.

    joblib and Ray divide the cores themselves.

    Args:
        config: of the sweep.
        launch: the launcher, see `hydra_internals.launched_by`.
        jobs: the overrides of each.
        first: number of the first.
        to_run: numbers of those that are not done.

    Returns:
        What the launcher returns.
    """
    launcher = (OmegaConf.select(config, "hydra.runtime.choices") or {}).get("hydra/launcher", ONE_BY_ONE)
    if launcher == ONE_BY_ONE:
        return launch(jobs, initial_job_idx=first)
    shared: dict[str, str | None] = {TO_RUN: " ".join(map(str, to_run))}
    if launcher == LOCAL:
        shared[GPUS] = os.environ.get(GPU_VARIABLE, ALL)
        shared[THREADS_VARIABLE] = os.environ.get(THREADS_VARIABLE, str(max(1, usable_cores() // max(1, len(to_run)))))
    with process_state(environment=shared):
        return launch(jobs, initial_job_idx=first)


def take_gpu(cfg: DictConfig, number: int) -> str | None:
    """Let this process see one GPU only: of those that it may use, the one at the job's place among the jobs that run.

    Lightning gives the first GPU to every process with one device. The process keeps its GPU for the jobs that follow. Nothing changes
    where the trainer has other devices, and with fewer than two GPUs.

    Args:
        cfg: config of the job.
        number: of the job in its launch.

    Returns:
        The GPU, as `CUDA_VISIBLE_DEVICES` names it; `None`: unchanged.
    """
    _forget_gpus_of_launcher()
    trainer = cfg.get("trainer") or {}
    if any(trainer.get(name, known[0]) not in known for name, known in ONE_GPU.items()):
        return None
    import torch  # here, so that --help stays fast

    listed = os.environ.get(GPU_VARIABLE)
    gpus = [str(gpu) for gpu in range(torch.cuda.device_count())] if listed is None else listed.split(",")
    if len(gpus) < 2 or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # it is too late for a process that uses one
        return None
    to_run = os.environ.get(TO_RUN, "").split()
    place = to_run.index(str(number)) if str(number) in to_run else number
    _set_gpus(gpus[place % len(gpus)])
    return os.environ[GPU_VARIABLE]


def _forget_gpus_of_launcher() -> None:
    """Undo what `LOCAL` does to the GPUs: it gives all jobs none, or the first one."""
    before = os.environ.get(GPUS)
    if before is not None and "," not in os.environ.get(GPU_VARIABLE, ","):
        _set_gpus(None if before == ALL else before)


def _set_gpus(value: str | None) -> None:
    """Set or remove the variable, also for processes that the job starts."""
    for environment in (os.environ, INITIAL_ENVIRONMENT):
        environment.pop(GPU_VARIABLE, None)
        if value is not None:
            environment[GPU_VARIABLE] = value
