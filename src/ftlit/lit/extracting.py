"""Codes of a data module's images: from memory, from the store, or computed now, once, by all processes of a trainer together."""

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
from ftlit.codes import Views, fill
from ftlit.column import Column, Kind, Rows
from ftlit.dataset import Split
from ftlit.digests import Memory, digests_of
from ftlit.fingerprint import fingerprint
from ftlit.kinds import kinds_of, stored_dtype
from ftlit.lit.images import ImageData
from ftlit.shard import Digests, no_room, size_in_words
from ftlit.sources import Form
from ftlit.store import Store
from ftlit.transform import Transform

# Pixels that run together, whatever the batches of training: the same codes to the bit in any run. A CPU is fastest while a batch's
# maps stay in its caches.
PIXELS = {"cpu": 8 * 224**2}
PIXELS_ELSEWHERE = 64 * 224**2
MOST_IMAGES = 256
WAIT = 20.0  # seconds that the first of several processes waits for a lock before it tells the others
EVALUATION = 0  # the number of the evaluation view; augmented ones count from 1


class Extraction:
    """The codes of `data`'s images by split, view and form. Rows are kept as long as the weights below them are the same.

    Args:
        data: the images.
        store: where codes are.
        dtype: as stored; `None`: that of the weights.
        views: of each training image: 1 is the evaluation view, more are augmented.
        seed: of what is drawn for these.
    """

    def __init__(self, data: ImageData, store: Store, *, dtype: str | None, views: int, seed: int) -> None:
        self.data, self.store, self.dtype, self.seed = data, store, dtype, seed
        self.views: dict[Split, list[int]] = {"train": list(range(1, views + 1)) if views > 1 else [EVALUATION]}
        self._digests: dict[Split, Digests] = {}
        self._columns: dict[str, Column] = {}  # by key: one for all splits, so that no shard is checked twice
        self.forget()

    def forget(self) -> None:
        """Begin anew, with weights that may be others."""
        self._kinds: dict[tuple[int | None, Split, int, Form], Kind] = {}  # by stage, split, view and form
        self._rows: dict[tuple[Split, str], Rows] = {}  # by split and key
        self._known: dict[Form, str] = {}  # key of the evaluation view

    def rows(
        self, trainer: Trainer, backbone: Backbone, splits: Sequence[Split], forms: Sequence[Form], stage: int | None
    ) -> dict[Split, list[dict[Form, Rows]]]:
        """The codes of each split, view by view.

        Args:
            trainer: whose processes share the work.
            backbone: as it is now.
            splits: whose images.
            forms: of the codes.
            stage: in which frozen weights do not change, so that they are looked at once; `None`: they may have.
        """
        jobs = [(split, view) for split in splits for view in self.views.get(split, [EVALUATION])]
        for split, view in jobs:
            if stage is None or any((stage, split, view, form) not in self._kinds for form in forms):
                kinds = self._kinds_now(trainer, backbone, split, view, forms)
                self._kinds |= {(stage, split, view, form): kind for form, kind in kinds.items()}
        kinds_of_job = {(split, view): {form: self._kinds[stage, split, view, form] for form in forms} for split, view in jobs}
        new = [job for job, kinds in kinds_of_job.items() if any((job[0], kind.key) not in self._rows for kind in kinds.values())]
        if new:
            self._look_at_files(trainer, splits)
            wanted = [self._wanted(split, view, kinds_of_job[split, view]) for split, view in new]
            _extract(self.store, backbone, wanted, trainer, self.data.num_workers)
            for job, one in zip(new, wanted, strict=True):
                for form, column in one.columns.items():
                    self._rows[job[0], kinds_of_job[job][form].key] = Rows(column, one.digests)
        if trainer.state.fn == "fit":
            self._known |= {
                form: kind.key for (_, view), kinds in kinds_of_job.items() if view == EVALUATION for form, kind in kinds.items()
            }
        found: dict[Split, list[dict[Form, Rows]]] = {split: [] for split in splits}
        for (split, _), kinds in kinds_of_job.items():
            found[split].append({form: self._rows[split, kind.key] for form, kind in kinds.items()})
        return found

    def is_known(self, trainer: Trainer, backbone: Backbone, form: Form) -> bool:
        """Whether codes in the evaluation view that were asked for in a stage are still those of the weights."""
        return form in self._known and self._kinds_now(trainer, backbone, "val", EVALUATION, [form])[form].key == self._known[form]

    def _look_at_files(self, trainer: Trainer, splits: Sequence[Split]) -> None:
        """Digests of all images; the first process reads the files, the others what it remembers of them."""
        for first in (True, False):
            if trainer.is_global_zero is first:
                for split in splits:
                    if split not in self._digests:
                        self._digests[split] = digests_of(self.data.collection.splits[split], Memory(self.store.folder))
            trainer.strategy.barrier("codes: digests")

    def _wanted(self, split: Split, view: int, kinds: dict[Form, Kind]) -> "Wanted":
        images = Views(self.data.collection.splits[split], self._digests[split], self._transform(view), (self.seed, view))
        for kind in kinds.values():
            self._columns.setdefault(kind.key, self.store.column(kind))
        return Wanted(images, {form: self._columns[kind.key] for form, kind in kinds.items()})

    def _transform(self, view: int) -> Transform:
        return self.data.transforms["val" if view == EVALUATION else "train"]

    def _kinds_now(self, trainer: Trainer, backbone: Backbone, split: Split, view: int, forms: Sequence[Form]) -> dict[Form, Kind]:
        """What the store keeps for a view, with the weights as they are."""
        size = backbone.input_spec.size
        drawn = None if view == EVALUATION else (self.seed, view)
        with trainer.precision_plugin.forward_context():
            return kinds_of(
                backbone,
                forms,
                view=fingerprint(self._transform(view), self.data.collection.splits[split].load, drawn),
                size=(size, size),
                dtype=stored_dtype(self.dtype, next(backbone.parameters(), torch.empty(0)).dtype),
                about={"view": f"augmented {view}" if view else "evaluation", "input": f"{size}x{size}"},
            )


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


def _extract(store: Store, backbone: Backbone, wanted: Sequence[Wanted], trainer: Trainer, num_workers: int) -> None:
    """Compute and write what the columns lack. Batches are fixed ranges of what is lacking, and each process takes every W-th, so that
    one process and W compute the same. Afterwards all columns have been looked at and lack nothing.

    Raises:
        UserError: the disk has less room than the codes need, before anything is computed.
    """
    columns = [column for one in wanted for column in one.columns.values()]
    first, barrier = trainer.is_global_zero, trainer.strategy.barrier
    started = time.perf_counter()
    with _locked(store, columns, trainer):
        for turn in (True, False):  # the first process before the others
            for column in columns if first is turn else ():
                column.look(check=first)  # what is damaged goes
            barrier("codes: looked")
        lacking = sum(len(one.lacking) for one in wanted)
        needed = sum(one.bytes_lacking for one in wanted)
        if needed > shutil.disk_usage(store.folder).free:
            raise no_room(store.folder, needed)
        share = (trainer.global_rank, trainer.world_size)
        with _bar(lacking // share[1], shown=first) as advance:
            for one in wanted:
                _compute(backbone, one, trainer, num_workers, share, advance)
        barrier("codes: written")
        for turn in (True, False):
            for column in columns if first is turn else ():
                column.look(check=False)
                if first:
                    column.merge()
            barrier("codes: merged")
        for one in wanted:
            if one.lacking:  # another machine's, whose disk is not this one's
                _compute(backbone, one, trainer, num_workers, (0, 1), lambda images: None)
                for column in one.columns.values():
                    column.look(check=False)
    if first:
        images, cuts = sum(len(one.digests) for one in wanted), dict.fromkeys(form.cut for one in wanted for form in one.columns)
        done = f"{lacking:,} computed in {time.perf_counter() - started:.1f} s, {size_in_words(needed)}" if lacking else "all stored"
        print(f"codes of {images:,} images at {', '.join(cuts)}: {done}", flush=True)


@contextmanager
def _locked(store: Store, columns: Sequence[Column], trainer: Trainer) -> Iterator[None]:
    """The first process holds the locks for all. While it waits for them the others hear of it every now and then: they would give it up
    for lost otherwise.
    """
    if trainer.world_size == 1:
        with store.locked(columns):
            yield
        return
    held = None
    while True:
        held = store.try_lock(columns, WAIT) if trainer.is_global_zero else None
        if trainer.strategy.broadcast(held is not None):
            break
    with held or nullcontext():
        yield


def _compute(
    backbone: Backbone,
    wanted: Wanted,
    trainer: Trainer,
    num_workers: int,
    share: tuple[int, int],
    advance: Callable[[int], None],
) -> None:
    """Compute what is lacking: the share (rank, processes) of one process."""
    if not wanted.lacking:
        return
    device, precision = next(backbone.parameters(), torch.empty(0)).device, trainer.precision_plugin
    pixels = PIXELS.get(device.type, PIXELS_ELSEWHERE)
    lacking, size = wanted.lacking, min(max(1, pixels // backbone.input_spec.size**2), MOST_IMAGES)
    own = [lacking[begin : begin + size] for begin in range(0, len(lacking), size)][share[0] :: share[1]]
    loader = DataLoader(
        wanted.images,
        sampler=own,
        batch_size=None,
        num_workers=min(num_workers, len(own)),
        generator=torch.Generator(),  # nothing is drawn from the global random state
    )

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
