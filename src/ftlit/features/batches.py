"""Read stored features in batches."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ftlit.features.table import Rows
from ftlit.models.backbone import FeatureBatch

BLOCK_BYTES = 8 << 20  # read at once; larger allocations come from the kernel page by page, which is slower


def read_batches(
    order: Iterable[Sequence[tuple[int, int]]], rows: Rows, targets: Tensor, cut: str, dtype: torch.dtype
) -> Iterator[tuple[FeatureBatch, Tensor]]:
    """Yield batches of stored features, read in blocks of some megabytes, so that neighbouring rows are read together.

    Args:
        order: batches of (epoch, index); see `ftlit.data.samplers`.
        rows: the features.
        targets: of all images.
        cut: of the features.
        dtype: of the batches.
    """
    block_rows = max(1, BLOCK_BYTES // max(1, rows.row_bytes))
    block: list[Sequence[tuple[int, int]]] = []
    for batch in order:
        if block and sum(map(len, block)) + len(batch) > block_rows:
            yield from _read(block, rows, targets, cut, dtype)
            block = []
        block.append(batch)
    if block:
        yield from _read(block, rows, targets, cut, dtype)


def _read(
    block: Sequence[Sequence[tuple[int, int]]], rows: Rows, targets: Tensor, cut: str, dtype: torch.dtype
) -> Iterator[tuple[FeatureBatch, Tensor]]:
    places = torch.tensor([index for batch in block for _, index in batch])
    sizes = [len(batch) for batch in block]
    values = rows.read(places.numpy()).to(dtype)
    for features, target in zip(torch.split(values, sizes), torch.split(targets[places], sizes), strict=True):
        yield FeatureBatch(features, cut), target
