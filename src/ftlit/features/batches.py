"""Read stored features in batches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ftlit.features.table import Rows
from ftlit.models.feature_batch import FeatureBatch

BLOCK_BYTES = 8 << 20  # read at once; larger allocations come from the kernel page by page, which is slower


def read_batches(
    order: Iterable[Sequence[tuple[int, int]]], rows: Mapping[str, Rows], targets: Tensor, dtype: torch.dtype
) -> Iterator[tuple[FeatureBatch, Tensor]]:
    """Yield batches of stored features, read in blocks of some megabytes, so that neighbouring rows are read together.

    Args:
        order: batches of (epoch, index); see `ftlit.data.samplers`.
        rows: cut -> features, the lowest cut first.
        targets: of all images.
        dtype: of the batches.
    """
    block_rows = max(1, BLOCK_BYTES // max(1, *(of_cut.row_bytes for of_cut in rows.values())))
    block: list[Sequence[tuple[int, int]]] = []
    for batch in order:
        if block and sum(map(len, block)) + len(batch) > block_rows:
            yield from _read(block, rows, targets, dtype)
            block = []
        block.append(batch)
    if block:
        yield from _read(block, rows, targets, dtype)


def _read(
    block: Sequence[Sequence[tuple[int, int]]], rows: Mapping[str, Rows], targets: Tensor, dtype: torch.dtype
) -> Iterator[tuple[FeatureBatch, Tensor]]:
    places = torch.tensor([index for batch in block for _, index in batch])
    sizes = [len(batch) for batch in block]
    values = [torch.split(of_cut.read(places.numpy()).to(dtype), sizes) for of_cut in rows.values()]
    for target, *features in zip(torch.split(targets[places], sizes), *values, strict=True):
        yield FeatureBatch(dict(zip(rows, features, strict=True))), target
