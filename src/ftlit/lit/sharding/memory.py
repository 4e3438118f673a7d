"""The memory that a process needs for sharded weights, computed before training."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ftlit.formatting import size_in_words
from ftlit.lit.sharding.sharded import is_shard

MEMINFO = Path("/proc/meminfo")  # of Linux
CGROUP = Path("/sys/fs/cgroup")  # of Linux: limits of a container, or of a job; version 2
VECTOR, MATRIX = (3,), (3, 2)  # shapes on which an optimizer is tried


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes in the process that holds most.

    Args:
        parameters: the shards of all parameters.
        gradients: those of the parameters that train, in the stage with most of them.
        optimizer: state of the optimizer, once all parameters that ever train have taken a step.
        gathered: the largest unit as a whole; two of them are whole at a time, one in use and the next.
    """

    parameters: int
    gradients: int
    optimizer: int
    gathered: int = 0

    @property
    def total(self) -> int:
        """Of parameters, gradients and optimizer state."""
        return self.parameters + self.gradients + self.optimizer

    def describe(self, processes: int) -> str:
        """A line for the plan."""
        parts = {"parameters": self.parameters, "gradients": self.gradients, "optimizer state": self.optimizer}
        sharded = ", ".join(f"{name} {size_in_words(size)}" for name, size in parts.items())
        whole = f"up to two layers of {size_in_words(self.gathered)} are whole at a time"
        holder = f"each of {processes} processes" if processes > 1 else "the only process"
        return f"{holder} holds shards: {sharded}; {whole}; activations come on top"


def process_memory(
    parameters: Mapping[str, Tensor],
    trains: Sequence[Collection[str]],
    optimizer: Callable[[list[dict[str, Any]]], Optimizer],
    processes: int,
    units: Iterable[str] = (),
) -> ProcessMemory | None:
    """Predict the memory of the first process, which holds the largest shards.

    Each parameter is sharded along its first dimension, in pieces of equal length as far as possible. `None` where the state of the
    optimizer is not known: it is of other shapes than the parameters (Adafactor), or a small step on a vector or a matrix fails (Muon).

    Args:
        parameters: by name, not sharded; those on the meta device do too.
        trains: the names of the parameters that train, for each stage.
        optimizer: called with parameter groups.
        processes: number of processes, 1 or more.
        units: names of the modules that are gathered as a whole; each parameter belongs to one, or to the rest.
    """
    shards = {name: _shard_bytes(parameter, processes) for name, parameter in parameters.items()}
    of_vector, of_matrix = _state_of(optimizer, VECTOR), _state_of(optimizer, MATRIX)
    if of_vector is None or of_matrix is None:
        return None
    state = 0
    for name in set().union(*trains):
        copies, scalars = of_matrix if parameters[name].ndim > 1 else of_vector
        state += copies * shards[name] + scalars
    whole: dict[str, int] = {}
    for name, parameter in parameters.items():
        unit = next((unit for unit in units if name.startswith(f"{unit}.")), "")
        whole[unit] = whole.get(unit, 0) + parameter.numel() * parameter.element_size()
    return ProcessMemory(
        sum(shards.values()),
        max((sum(shards[name] for name in names) for names in trains), default=0),
        state,
        max(whole.values(), default=0),
    )


def measured_memory(module: nn.Module, optimizer: Optimizer) -> ProcessMemory:
    """The bytes that this process holds now: parameters, gradients, and the state of the optimizer."""
    parameters = list(module.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return ProcessMemory(*(sum(map(_bytes_here, tensors)) for tensors in (parameters, gradients, states)))


def available_memory() -> float:
    """Bytes of main memory that this program can still take; infinite where the system does not tell."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return inf
    of_machine = next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), inf)
    return min(of_machine, _left_in_cgroup())


def _left_in_cgroup() -> float:
    """Bytes up to the limit of the container; pages of files that have not been read for a while give way."""
    try:
        limit, used = ((CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        pages = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except OSError:  # no limit, or version 1
        return inf
    return inf if limit == "max" else max(0.0, float(limit) - float(used) + float(pages.get("inactive_file", 0)))


def _bytes_here(tensor: Tensor) -> int:
    return int((tensor.to_local() if is_shard(tensor) else tensor).nbytes)


def _shard_bytes(parameter: Tensor, processes: int) -> int:
    if not parameter.numel():
        return 0
    rows = parameter.shape[0] if parameter.ndim else 1
    return -(-rows // processes) * (parameter.numel() // rows) * parameter.element_size()


def _state_of(optimizer: Callable[[list[dict[str, Any]]], Optimizer], shape: tuple[int, ...]) -> tuple[int, int] | None:
    """What an optimizer keeps for a parameter: the number of tensors of its shape, and the bytes of single numbers. Found in one small
    step; `None` where that fails, or leaves other tensors.
    """
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.ones(shape)
    try:
        built = optimizer([{"params": [parameter]}])
        built.step()
        states = [value for value in built.state[parameter].values() if isinstance(value, Tensor)]
    except Exception:  # a closure, a sparse gradient or another shape is needed; training says so where it needs them too
        return None
    others = [value for value in states if value.shape != parameter.shape]
    if any(value.numel() != 1 for value in others):
        return None
    return len(states) - len(others), sum(value.nbytes for value in others)
