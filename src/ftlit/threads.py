"""One thread for small problems: several cost more than they give, and many times more on a machine with other work."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

MIN_OPERATIONS = 20_000_000  # multiplications in one matrix product from which on several threads are worth their start
LOCK = threading.Lock()
SAVED: list[int] = []  # torch's number of threads before each block that runs now, the first one first


@contextmanager
def threads_for(operations: int) -> Iterator[None]:
    """Let torch use one thread in the block if its largest matrix product is small.

    The number of threads is torch's for the whole process. It is restored at the end of the block, or of the last block where several
    run at once in threads of Python.

    Args:
        operations: multiplications in the largest matrix product of the block.
    """
    if operations >= MIN_OPERATIONS:
        yield
        return
    with LOCK:
        SAVED.append(torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with LOCK:
            before = SAVED.pop(0) if len(SAVED) == 1 else SAVED.pop()
            if not SAVED:
                torch.set_num_threads(before)
