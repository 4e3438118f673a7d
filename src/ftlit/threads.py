"""One thread for small problems: several cost more than they give, and many times more on a machine with other work."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

MIN_OPERATIONS = 20_000_000  # multiplications in one matrix product from which on several threads are worth their start


@contextmanager
def threads_for(operations: int) -> Iterator[None]:
    """Let torch use one thread in the block if its largest matrix product is small.

    The number of threads is torch's for the whole process, and is restored at the end.

    Args:
        operations: multiplications in the largest matrix product of the block.
    """
    before = torch.get_num_threads()
    if operations < MIN_OPERATIONS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
