"""The processes that load images: how many there are, and the shared memory through which they pass the images on."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

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


def in_shared_memory(images: "Tensor") -> "Tensor":
    """Move images, in a process that loads them, to the shared memory, through which they are passed on in any case.

    Where it is full, this process raises here, and its error reaches the program. A thread would do it otherwise, and its error would only
    be printed: the program would wait for the images forever.
    """
    from torch.utils.data import get_worker_info  # here, so that --help stays fast

    return images if get_worker_info() is None else images.share_memory_()  # type: ignore[no-untyped-call]
