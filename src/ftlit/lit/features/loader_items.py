"""The items of a loader by their place, and batches of features in their place."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ftlit.data.samplers import SeededItems
from ftlit.features.batch_parts import batch_of
from ftlit.features.table import Rows
from ftlit.models.feature_batch import FeatureBatch

BATCH = 64  # images of a pass, where the loader does not say


def collate_features(
    form: Any, rows: Mapping[str, Rows], others: Mapping[Any, Tensor | list[Any]], dtype: torch.dtype, places: Sequence[int]
) -> Any:
    """A batch of the features of these places, and of what belongs to them."""
    return batch_of(form, FeatureBatch({cut: own.read(places).to(dtype) for cut, own in rows.items()}), others, places)


def items_of(loader: DataLoader[Any]) -> Any:
    """The data set of a loader, whose items are read by their index; that of `ResumableData` without the seeds of its epochs."""
    return loader.dataset.examples if isinstance(loader.dataset, SeededItems) else loader.dataset


def in_order(loader: DataLoader[Any], *, workers: int) -> DataLoader[Any]:
    """The items of a loader in the order of its data set."""
    return DataLoader(
        items_of(loader),
        batch_size=loader.batch_size or BATCH,
        collate_fn=loader.collate_fn,
        num_workers=workers,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator(),  # leaves the global random state as it is
    )
