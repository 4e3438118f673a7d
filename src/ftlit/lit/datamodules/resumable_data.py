"""ResumableData: any data sets in loaders that are resumed exactly, also in the middle of an epoch (invariant 5)."""

from collections.abc import Sized
from typing import Any

import torch
from torch.utils.data import DataLoader

from ftlit.data.samplers import EpochOrder, SeededItems
from ftlit.errors import UserError
from ftlit.lit.datamodules.epoch_position import ContinuesEpoch
from ftlit.lit.trainer_internals import process_share
from ftlit.plain_arguments import plain_arguments

OWN = ("shuffle", "sampler", "batch_sampler")  # arguments of a DataLoader that decide the order


class ResumableData(ContinuesEpoch):
    """Serves data sets of your own; with `LastCheckpoint` training on them resumes exactly, also in the middle of an epoch.

    The order of the training examples is a function of (seed, epoch), and the random numbers of torch that an example draws, in a
    transform for instance, of (seed, epoch, index). Several processes share the examples as with torch's `DistributedSampler`. Random
    numbers of numpy and Python are not seeded. `FeatureData` stores features of these data sets, and keeps the order.

    Args:
        train: the training set, with a length and items by index.
        val: read in order; `None` for no validation.
        test: read in order; `None` for no test.
        seed: of the order and the random numbers.
        **loader: further arguments of each `DataLoader`, such as `batch_size`, `num_workers` and `collate_fn`; `drop_last` is for train.

    Raises:
        UserError: a training set without a length, or an argument that decides the order.
    """

    @plain_arguments
    def __init__(self, train: Any, val: Any = None, test: Any = None, *, seed: int = 0, **loader: Any) -> None:
        super().__init__()
        if not isinstance(train, Sized) or not hasattr(train, "__getitem__"):
            raise UserError(f"ResumableData needs a data set with a length and items by index, not {type(train).__name__}")
        if given := [name for name in OWN if name in loader]:
            raise UserError(f"ResumableData decides the order of the examples itself: leave out {', '.join(given)}")
        self.train, self.val, self.test, self.seed, self.options = train, val, test, seed, loader
        self.batch_size = loader.get("batch_size", 1) or 1  # None: each batch is one item

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches, in the epoch of a checkpoint from the batch at which training continues."""
        processes, rank = process_share(self.trainer)
        epoch, batch = self.begin
        begin = (epoch, batch * self.batch_size)
        order = EpochOrder(self.train, seed=self.seed, processes=processes, rank=rank, begin=begin)
        own = {"generator": torch.Generator(), **self.options}  # without it, workers are seeded from the global random state, and change it
        return DataLoader(SeededItems(self.train, self.seed), sampler=order, **own)

    def val_dataloader(self) -> Any:
        """Return the batches of `val`, in order."""
        return self._in_order(self.val)

    def test_dataloader(self) -> Any:
        """Return the batches of `test`, in order."""
        return self._in_order(self.test)

    def _in_order(self, examples: Any) -> Any:
        own = {"generator": torch.Generator(), **self.options, "drop_last": False}  # for training: val and test are read whole
        return [] if examples is None else DataLoader(examples, **own)
