"""Describe the devices of a trainer, and measure their memory."""

import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from ftlit.models.precision import matmul_precision

PRECISIONS = {
    "32-true": "float32",
    "16-mixed": "float16 (mixed)",
    "bf16-mixed": "bfloat16 (mixed)",
    "16-true": "float16",
    "bf16-true": "bfloat16",
}


def describe_devices(trainer: Trainer) -> str:
    """Devices, their memory, and the number format: `2 x NVIDIA H100 (80 GB), bfloat16 (mixed), TF32`, `CPU, 2 threads, float32`."""
    precision = PRECISIONS.get(str(trainer.precision), str(trainer.precision))
    times = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    device = trainer.strategy.root_device
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"{times}CPU, {threads} {'thread' if threads == 1 else 'threads'}, {precision}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        tf32 = ", TF32" if matmul_precision("cuda") == "high" else ""  # of matrix products in float32
        return f"{times}{properties.name} ({properties.total_memory / 2**30:.0f} GB), {precision}{tf32}"
    return f"{times}{device.type}, {precision}"


def bytes_in_use(device: torch.device) -> int:
    """Memory in bytes: on a GPU the most that was allocated since `reset_peak`, else what this process holds."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "win32":
        return 0
    import resource  # which gives only the most so far

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak(device: torch.device) -> None:
    """Reset the measured peak memory of a GPU. A no-op on other devices."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
