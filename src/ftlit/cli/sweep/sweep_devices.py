"""The GPU of a job that runs beside others on one machine."""

import os

from omegaconf import DictConfig

from ftlit.recipes.processes.process_state import INITIAL_ENVIRONMENT

GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
ONE_GPU = {"devices": (1, "1"), "num_nodes": (1,), "accelerator": ("auto", "gpu", "cuda")}  # values of the trainer


def take_gpu(cfg: DictConfig, number: int) -> str | None:
    """Let this process see one GPU only, the job's number modulo the number of GPUs.

    Lightning gives the first GPU to every process with one device. The process keeps its GPU for the jobs that follow. Nothing changes
    where the variable is set, by the user or by a cluster, where the trainer has other devices, and with fewer than two GPUs.

    Args:
        cfg: config of the job.
        number: of the job in its sweep.

    Returns:
        The GPU's number; `None`: unchanged.
    """
    trainer = cfg.get("trainer") or {}
    if GPU_VARIABLE in os.environ or any(trainer.get(name, known[0]) not in known for name, known in ONE_GPU.items()):
        return None
    import torch  # here, so that --help stays fast

    gpus = torch.cuda.device_count()
    if gpus < 2 or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # it is too late for a process that uses one
        return None
    chosen = str(number % gpus)
    os.environ[GPU_VARIABLE] = INITIAL_ENVIRONMENT[GPU_VARIABLE] = chosen  # also for a process that the job starts
    return chosen
