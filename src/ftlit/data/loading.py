"""How many processes load images."""

import os

MAX_WORKERS = 16
INPUTS_PER_WORKER = 32  # starting a process takes as long as reading about as many photos


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(processes: int = 1, inputs: int | None = None) -> int:
    """Loading processes for each of `processes` that compute on this machine: what the others leave of the cores, at most `MAX_WORKERS`.

    Args:
        processes: that compute on this machine, each with a core of its own.
        inputs: number of images of each process, if it is known: few are read by the process itself (0).
    """
    own = max(1, min(MAX_WORKERS, usable_cores() // processes - 1)) if usable_cores() > 1 else 0
    return own if inputs is None else min(own, inputs // INPUTS_PER_WORKER)
