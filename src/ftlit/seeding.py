"""Seed random numbers by the position where they are used, so that no state needs to be stored to repeat them (invariant 5)."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import torch


def derived_seed(*position: int) -> int:
    """Integers that name a position -> a seed of 63 bits; neighbouring positions get unrelated seeds.

    >>> derived_seed(0, 1) == derived_seed(0, 1), derived_seed(0, 1) == derived_seed(1, 0)
    (True, False)
    """
    digest = blake2b(",".join(map(str, position)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore torch's global random state of the CPU at the end, whatever is drawn or seeded inside."""
    with torch.random.fork_rng(devices=[]):
        yield
