"""Random numbers as a function of where they are drawn, so that nothing needs to be stored to draw them again (invariant 5)."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import torch


def derived_seed(*place: int) -> int:
    """Whole numbers that say where -> a seed of 63 bits; neighbouring places get unrelated ones.

    >>> derived_seed(0, 1) == derived_seed(0, 1), derived_seed(0, 1) == derived_seed(1, 0)
    (True, False)
    """
    digest = blake2b(",".join(map(str, place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Whatever is drawn or seeded inside on the CPU, the global random state of torch is afterwards what it was."""
    with torch.random.fork_rng(devices=[]):
        yield
