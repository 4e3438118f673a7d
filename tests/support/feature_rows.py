"""Random rows of feature tables, for the tests of shards, tables and stores."""

import warnings
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch

import ftlit.features.table
from ftlit.features.spec import HASH_DTYPE
from ftlit.features.store import Store
from ftlit.features.table import FeatureKey, FeatureTable, Writer

KEY = "0123456789abcdef" * 2


def hashes(*numbers: int) -> np.ndarray:
    return np.array([blake2b(str(n).encode(), digest_size=16).hexdigest() for n in numbers], HASH_DTYPE)


def row(number: int, shape=(5,), dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(number)).to(dtype)


def values(numbers, shape=(5,), dtype=torch.float32) -> torch.Tensor:
    return torch.stack([row(n, shape, dtype) for n in numbers]) if len(numbers) else torch.empty(0, *shape, dtype=dtype)


def feature_key(digest=KEY, shape=(5,), dtype=torch.float32) -> FeatureKey:
    return FeatureKey(digest, dtype, shape, {"cut": "layer4", "of": digest})


def written(table: FeatureTable, numbers, step: int = 4) -> FeatureTable:
    """Write rows in batches of `step`; return the table, refreshed."""
    writer = Writer(table)
    for begin in range(0, len(numbers), step):
        some = numbers[begin : begin + step]
        writer.add(hashes(*some), values(some, table.shape, table.dtype))
    writer.flush()
    table.refresh()
    return table


@contextmanager
def shards_of(rows: int):
    """Limit shards to this number of rows of five float32."""
    before, ftlit.features.table.SHARD_BYTES = ftlit.features.table.SHARD_BYTES, 20 * rows
    try:
        yield
    finally:
        ftlit.features.table.SHARD_BYTES = before


def one_shard(tmp_path):
    """Write a shard of four rows; return its path."""
    table = written(Store(tmp_path).table(feature_key()), range(4))
    return table.shards[0].path


def reopened(tmp_path):
    """Return the table as a new process reads it, and the messages of the warnings."""
    table = Store(tmp_path).table(feature_key())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table.refresh()
    return table, [str(warning.message) for warning in caught]
