"""Order and random numbers of the images as functions of (seed, epoch, index), in one process and in several.

Batches are made here rather than by the DataLoader, which then has `batch_size=None`: a batch is a list of (epoch, index) pairs, so that
worker processes know the epoch too, and training can resume at any batch.
"""

from collections.abc import Iterator, Sequence, Sized
from itertools import cycle, islice, pairwise
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler

from ftlit.data.collate import MixedCollate
from ftlit.data.dataset import Batch, LabelledImages
from ftlit.errors import UserError
from ftlit.formatting import count
from ftlit.seeding import derived_seed, kept_random_state

BatchIndices = list[tuple[int, int]]  # (epoch, index) of each image of a batch


class TrainOrder(DistributedSampler[Any]):
    """All images in a random order given by (seed, epoch), in batches. Lightning calls `set_epoch`, and does not replace it under `ddp`.

    Each of W processes takes every W-th image. In each step W processes with batches of N images together read the same images as one
    process with batches of W N. A last batch of one image in all processes is dropped: BatchNorm cannot normalise a single value.

    In the last batch some processes may have an image less. They are given repeated images, so that every process has as many as the first
    one, and at least two. `counted` gives the number of images without the repeated ones, which are at the end of the batch; the loss and
    the metrics leave them out.

    Args:
        images: the data set.
        batch_size: images in a batch of one process.
        seed: of the order.
        processes: W.
        rank: index of this process.
    """

    def __init__(self, images: Sized, batch_size: int, *, seed: int = 0, processes: int = 1, rank: int = 0) -> None:
        super().__init__(images, processes, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self._begin = (0, 0)

    def begin_at(self, epoch: int, batch: int) -> None:
        """Skip the first `batch` batches of this epoch only, and set the epoch to it."""
        self._begin = (epoch, batch)
        self.set_epoch(epoch)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size * self.num_replicas)  # type: ignore[arg-type]
        return full + (rest > 1 or (rest == 1 and full == 0))

    def __iter__(self) -> Iterator[Any]:
        epoch = self.epoch
        order = torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(self.seed + epoch)).tolist()  # type: ignore[arg-type]
        own = order[self.rank :: self.num_replicas]
        for i in range(self._begin[1] if self._begin[0] == epoch else 0, len(self)):
            counted, together = self.counted(i)
            begin = i * self.batch_size
            repeated = islice(cycle(order), self._size(together) - counted)  # without a copy of the order, which may be long
            yield [(epoch, index) for index in (*own[begin : begin + counted], *repeated)]

    def counted(self, batch: int) -> tuple[int, int]:
        """Return the number of images of a batch without repeated ones: of this process, and of all processes together."""
        whole = self.batch_size * self.num_replicas
        together = min(whole, len(self.dataset) - batch * whole)  # type: ignore[arg-type]
        return len(range(self.rank, together, self.num_replicas)), together

    def _size(self, together: int) -> int:
        """Return the number of images in a batch of each process, from the number in a batch of all processes."""
        if self.num_replicas == 1:
            return together
        return max(-(-together // self.num_replicas), min(2, self.batch_size))


class EpochOrder(DistributedSampler[Any]):
    """The order of single examples that torch's `DistributedSampler` draws from (seed, epoch), as (epoch, index) pairs for `SeededItems`.

    Args:
        examples: the data set.
        seed: of the order.
        processes: number of processes that share the examples.
        rank: index of this process.
        begin: the first epoch, and the number of examples of this process that it leaves out in that epoch only.
    """

    def __init__(self, examples: Sized, *, seed: int = 0, processes: int = 1, rank: int = 0, begin: tuple[int, int] = (0, 0)) -> None:
        super().__init__(examples, processes, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self._begin = begin
        self.set_epoch(begin[0])

    def __iter__(self) -> Iterator[Any]:
        epoch, skipped = self.epoch, self._begin[1] if self._begin[0] == self.epoch else 0
        return ((epoch, index) for index in islice(super().__iter__(), skipped, None))


class EvalOrder(DistributedSampler[Any]):
    """Each image exactly once over all processes, in batches. All processes have the same number of batches, because forward passes of
    DDP wait for each other. The last batches may therefore have one image more or less.

    Args:
        images: the data set.
        batch_size: images in a batch of one process.
        processes: number of processes that share the images.
        rank: index of this process.

    Raises:
        UserError: fewer images than processes.
    """

    def __init__(self, images: Sized, batch_size: int, *, processes: int = 1, rank: int = 0) -> None:
        super().__init__(images, processes, rank, shuffle=False)  # type: ignore[arg-type]
        if len(images) < processes:
            most = f"trainer.devices={len(images)}" + (" or less" if len(images) > 1 else "")
            raise UserError(f"{processes} processes cannot share a split of {count(len(images), 'example')}: give {most}")
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Batches of each process."""
        return min(-(-self.num_samples // self.batch_size), len(self.dataset) // self.num_replicas)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        own = range(self.rank, len(self.dataset), self.num_replicas)  # type: ignore[arg-type]
        ends = [min(i * self.batch_size, len(own) - (len(self) - i)) for i in range(len(self))]  # each later batch gets an image
        for begin, end in pairwise([*ends, len(own)]):
            yield [(0, index) for index in own[begin:end]]


def counted_images(loader: Any, batch: int, images: int) -> tuple[int, int, int]:
    """Count the images of a batch without repeated ones.

    Where the processes cannot share the images evenly, torch's `DistributedSampler` repeats an image at the end of the last batch of some
    processes. A user's loader has this sampler from the user, or from Lightning.

    Args:
        loader: of the batch.
        batch: its number.
        images: in it.

    Returns:
        The number of images that count, the same for all processes together, and the number of processes.
    """
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(loader if batches is None else batches, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.num_replicas == 1:
        return images, images, 1
    processes = sampler.num_replicas
    if isinstance(sampler, TrainOrder):
        return *sampler.counted(batch), processes
    together, size = images * processes, getattr(loader, "batch_size", None)
    is_last = batch * size + images == sampler.num_samples if size else batch + 1 == len(loader)
    if isinstance(sampler, EvalOrder) or sampler.drop_last or not is_last:
        return images, together, processes
    repeated = sampler.total_size - len(sampler.dataset)  # type: ignore[arg-type]
    return images - (sampler.rank >= processes - repeated), together - repeated, processes


class SeededItems(Dataset[Any]):
    """Items of a data set by their (epoch, index) pairs. The random numbers of torch that an item draws are a function of (seed, epoch,
    index), and the global random state is kept.

    Args:
        examples: the data set.
        seed: of the random numbers.
    """

    def __init__(self, examples: Any, seed: int) -> None:
        self.examples, self.seed = examples, seed

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        with kept_random_state():
            torch.default_generator.manual_seed(derived_seed(self.seed, *place))
            return self.examples[place[1]]


class Batches(Dataset[Batch]):
    """Whole batches by their (epoch, index) pairs.

    The random numbers of an image are a function of (seed, epoch, index). Those that mix a batch are a function of its first image. They
    depend neither on the process nor on the worker, and the global random state is kept.

    Args:
        images: single images.
        collate: images -> batch.
        seed: of torch's random numbers.
    """

    def __init__(self, images: LabelledImages, collate: MixedCollate, seed: int) -> None:
        self.images, self.collate, self.seed = images, collate, seed

    def __getitem__(self, indices: Sequence[tuple[int, int]]) -> Batch:
        with kept_random_state():
            samples = [self._sample(*pair) for pair in indices]
            if self.images.normalization:
                images, targets = zip(*samples, strict=True)
                samples = list(zip(self.images.normalization.of_one_type(images), targets, strict=True))
            torch.default_generator.manual_seed(derived_seed(self.seed, *indices[0], -1))
            return self.collate(samples)

    def _sample(self, epoch: int, index: int) -> Batch:
        torch.default_generator.manual_seed(derived_seed(self.seed, epoch, index))
        return self.images[index]
