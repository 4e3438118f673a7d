"""Describe the devices of a trainer."""

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
