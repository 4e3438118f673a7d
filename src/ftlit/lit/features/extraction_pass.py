"""The pass over images that computes missing features, by all processes of a trainer together."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from ftlit.data.dataset import Split
from ftlit.features.extract import ImageViews
from ftlit.features.fill import fill
from ftlit.features.shard import no_space
from ftlit.features.spec import FeatureSpec, ImageHashes
from ftlit.features.store import Store
from ftlit.features.stored_pixels import PIXELS, write_pixels
from ftlit.features.table import FeatureTable
from ftlit.formatting import count, size_in_words
from ftlit.lit.features.exchange import copy_between_machines, missing_everywhere
from ftlit.lit.features.extraction_progress import progress_of_features
from ftlit.lit.rank_store import TURNS, meet, turn_of
from ftlit.lit.shared_errors import raised_in_all
from ftlit.models.backbone import Backbone

# Pixels of a batch, independent of the batch size of training, so that the features are equal to the bit in every run. A CPU is fastest
# if the feature maps of a batch fit in its caches.
BATCH_PIXELS = {"cpu": 8 * 224**2}
OTHER_BATCH_PIXELS = 64 * 224**2  # on a device that is not in the table
MAX_BATCH_IMAGES = 256
LOCK_SECONDS = 20.0  # the first process waits so long for a lock before it answers the others


class View(NamedTuple):
    """The images of a split, in the evaluation view (number 0) or an augmented one (numbers from 1)."""

    split: Split
    number: int


EVALUATION = 0


@dataclass(frozen=True)
class ExtractionRequest:
    """Features that are needed: images in one view, at some cuts.

    Args:
        view: split, and number of the view.
        images: the images of the split, in this view.
        pixels: of one image.
        tables: spec -> feature table that the features belong to.
    """

    view: View
    images: ImageViews
    pixels: int
    tables: dict[FeatureSpec, FeatureTable]

    def missing(self) -> tuple[list[int], int]:
        """Return the places of the images that some table lacks, in order, and the size in bytes of all missing features."""
        missing = [(table.missing(self.images.hashes), table.row_bytes) for table in self.tables.values()]
        places = sorted({int(place) for places, _ in missing for place in places})
        return places, sum(len(places) * size for places, size in missing)


def extract_requested(store: Store, backbone: Backbone, requests: Sequence[ExtractionRequest], trainer: Trainer, num_workers: int) -> None:
    """Compute and write the missing features. Afterwards all tables are refreshed and complete.

    Batches are fixed ranges of the missing images, and each of W processes takes every W-th batch, so that one process and W processes
    compute the same features. Machines with disks of their own compute what none of them has, and copy it to each other.

    Args:
        store: of the tables.
        backbone: in evaluation mode.
        requests: the needed features.
        trainer: its processes share the work.
        num_workers: processes that load images, for each process of the trainer.

    Raises:
        UserError: the disk has less space than the features need; nothing has been computed then.
    """
    tables = list({table.folder: table for request in requests for table in request.tables.values()}.values())
    first, started = trainer.is_global_zero, time.perf_counter()
    with _locked(store, tables, trainer):
        _refresh(tables, trainer, check=True)
        missing = [request.missing() for request in requests]
        size = sum(size for _, size in missing)
        own = [places for places, _ in missing] if trainer.num_nodes == 1 else missing_everywhere(requests, trainer)
        images = sum(map(len, own))
        with together(trainer):
            if size > shutil.disk_usage(store.folder).free:
                raise no_space(store.folder, size)
        progress = progress_of_features(images, backbone.input_spec.noun, _cuts(requests), shown=first, processes=trainer.world_size)
        with together(trainer), progress as advance:
            for request, places in zip(requests, own, strict=True):
                _compute(backbone, request, places, (trainer.global_rank, trainer.world_size), trainer, num_workers, advance)
        _refresh(tables, trainer, check=False)
        if trainer.num_nodes > 1:
            with together(trainer):
                copy_between_machines(requests, trainer)
            for table in tables:
                table.refresh(check=False)
    if first:
        verb = "decoded" if _are_pixels(requests) else "computed"
        new = f"{images:,} {verb} in {time.perf_counter() - started:.1f} s, {size_in_words(size)}"
        computed = new if images else "all read from the cache"
        print(f"{_description(requests, backbone.input_spec.noun)}: {computed}", flush=True)


def _description(requests: Sequence[ExtractionRequest], noun: str) -> str:
    if _are_pixels(requests):
        return f"pixels of {sum(len(request.images.hashes) for request in requests):,} {noun}"
    sizes = {request.view.split: len(request.images.hashes) for request in requests}
    views = {request.view for request in requests if request.view.number != EVALUATION}
    whose = "each" if {view.split for view in views} == set(sizes) else f"training {noun}"
    augmented = f", {whose} in {count(len({view.number for view in views}), 'augmented view')}," if views else ""
    return f"features of {sum(sizes.values()):,} {noun}{augmented} at {_cuts(requests)}"


def _are_pixels(requests: Sequence[ExtractionRequest]) -> bool:
    return all(PIXELS in request.tables for request in requests)


def _cuts(requests: Sequence[ExtractionRequest]) -> str:
    return ", ".join(dict.fromkeys(spec.cut for request in requests for spec in request.tables if spec != PIXELS))


def _refresh(tables: Sequence[FeatureTable], trainer: Trainer, *, check: bool) -> None:
    """Refresh the tables in all processes: in the first one, then in the first of each other machine, which remove damaged shards, then in
    the others, which check nothing. The first one also merges small shards, where it does not check.
    """
    own = turn_of(trainer)
    for turn in range(TURNS):
        for table in tables if turn == own else ():
            table.refresh(check=check and trainer.local_rank == 0)
            if trainer.is_global_zero and not check:
                table.merge()
        meet(trainer)


def together(trainer: Trainer) -> AbstractContextManager[None]:
    """End all processes with the error of any one of them; otherwise the others would wait for it. Without an error, wait for all."""
    return raised_in_all(trainer.strategy, lambda: meet(trainer))


@contextmanager
def _locked(store: Store, tables: Sequence[FeatureTable], trainer: Trainer) -> Iterator[None]:
    """Hold the locks of the tables in the first process, for all. While it waits for them it answers the others regularly: otherwise they
    would time out.
    """
    if trainer.world_size == 1:
        with store.locked(tables):
            yield
        return
    locks = None
    while True:
        locks = store.try_lock(tables, LOCK_SECONDS) if trainer.is_global_zero else None
        if trainer.strategy.broadcast(locks is not None):
            break
    with locks or nullcontext():
        yield


def _compute(
    backbone: Backbone,
    request: ExtractionRequest,
    missing: Sequence[int],
    part: tuple[int, int],
    trainer: Trainer,
    num_workers: int,
    advance: Callable[[int], object],
) -> None:
    """Compute this process's share of the missing features, batches `part[0]`, `part[0] + part[1]`, ...; report images to `advance`."""
    device, precision = next(backbone.parameters(), torch.empty(0)).device, trainer.precision_plugin
    size = min(max(1, BATCH_PIXELS.get(device.type, OTHER_BATCH_PIXELS) // request.pixels), MAX_BATCH_IMAGES)
    batches = [missing[begin : begin + size] for begin in range(0, len(missing), size)]
    share = batches[part[0] :: part[1]]
    loader = DataLoader(
        request.images,
        sampler=share,
        batch_size=None,
        num_workers=min(num_workers, len(share)) if len(share) > 1 else 0,  # starting a process takes longer than one batch
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # leaves the global random state as it is
    )

    def loaded() -> Iterator[tuple[ImageHashes, Tensor]]:
        for hashes, images in loader:
            yield hashes, images
            advance(len(images))

    def on_device() -> Iterator[tuple[ImageHashes, Tensor]]:
        for hashes, images in loaded():
            yield hashes, precision.convert_input(request.images.normalized(images.to(device, non_blocking=True)))

    if share and PIXELS in request.tables:
        write_pixels(request.tables[PIXELS], loaded())
    elif share:
        fill(backbone, request.tables, on_device(), context=precision.forward_context)
