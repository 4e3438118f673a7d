"""One pass over images, shared by the processes of a trainer: what the store lacks is computed, once."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from rich.errors import LiveError
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader

from ftlit.backbone import Backbone
from ftlit.caching import Form
from ftlit.codes import Views, fill
from ftlit.store import Column, Digests, Store, no_room, size_in_words


@dataclass(frozen=True)
class Wanted:
    """Images in one view, and the columns that their codes belong in."""

    images: Views
    columns: dict[Form, Column]

    @property
    def digests(self) -> Digests:
        """Of the images."""
        return self.images.digests

    @property
    def lacking(self) -> list[int]:
        """Places of the images that a column lacks, in order."""
        return sorted({int(place) for column in self.columns.values() for place in column.missing(self.digests)})

    @property
    def bytes_lacking(self) -> int:
        """Bytes that they will take."""
        return sum(len(column.missing(self.digests)) * column.row_bytes for column in self.columns.values())


def extract(store: Store, backbone: Backbone, wanted: Sequence[Wanted], trainer: Trainer, *, batch_size: int, num_workers: int) -> None:
    """Compute and write what the columns lack. Batches are fixed ranges of what is lacking, and each process takes every W-th, so that
    one process and W compute the same. Afterwards all columns have been looked at and lack nothing.

    Raises:
        UserError: the disk has less room than the codes need, before anything is computed.
    """
    columns = [column for one in wanted for column in one.columns.values()]
    first, barrier = trainer.is_global_zero, trainer.strategy.barrier
    started = time.perf_counter()
    with store.locked(columns) if first else nullcontext():
        for turn in (True, False):  # the first process looks before the others, and removes what is damaged
            if first is turn:
                for column in columns:
                    column.look(check=first)
            barrier("codes: looked")
        lacking = sum(len(one.lacking) for one in wanted)
        needed = sum(one.bytes_lacking for one in wanted)
        if needed > shutil.disk_usage(store.folder).free:
            raise no_room(store.folder, needed)
        share = (trainer.global_rank, trainer.world_size)
        with _bar(lacking // share[1], shown=first) as advance:
            for one in wanted:
                _compute(backbone, one, trainer, batch_size, num_workers, share, advance)
        barrier("codes: written")
        for one in wanted:
            for column in one.columns.values():
                column.look(check=False)
            if one.lacking:  # another machine's, whose disk is not this one's
                _compute(backbone, one, trainer, batch_size, num_workers, (0, 1), lambda images: None)
                for column in one.columns.values():
                    column.look(check=False)
    if first:
        images, cuts = sum(len(one.digests) for one in wanted), dict.fromkeys(form.cut for one in wanted for form in one.columns)
        done = f"{lacking:,} computed in {time.perf_counter() - started:.1f} s, {size_in_words(needed)}" if lacking else "all stored"
        print(f"codes of {images:,} images at {', '.join(cuts)}: {done}", flush=True)


def _compute(
    backbone: Backbone,
    wanted: Wanted,
    trainer: Trainer,
    batch_size: int,
    num_workers: int,
    share: tuple[int, int],
    advance: Callable[[int], None],
) -> None:
    """Compute what is lacking: the share (rank, processes) of one process."""
    lacking = wanted.lacking
    own = [lacking[begin : begin + batch_size] for begin in range(0, len(lacking), batch_size)][share[0] :: share[1]]
    loader = DataLoader(
        wanted.images,
        sampler=own,
        batch_size=None,
        num_workers=min(num_workers, len(own)),
        generator=torch.Generator(),  # nothing is drawn from the global random state
    )
    device, precision = next(backbone.parameters()).device, trainer.precision_plugin

    def batches() -> Iterator[tuple[Digests, Tensor]]:
        for digests, images in loader:
            yield digests, precision.convert_input(images.to(device))
            advance(len(images))

    fill(backbone, wanted.columns, batches(), context=precision.forward_context)


@contextmanager
def _bar(images: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal that shows none already; gives what moves it on by so many images."""
    progress = Progress(transient=True, disable=not (shown and images and sys.stdout.isatty()))
    try:
        progress.start()
    except LiveError:
        progress.disable = True
    task = progress.add_task("codes", total=images)
    try:
        yield lambda done: progress.advance(task, done)
    finally:
        progress.stop()
