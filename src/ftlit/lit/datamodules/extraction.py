"""Features of a data module's images: from memory, from the store, or computed now, once, by all processes of a trainer together."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftlit.data.dataset import Split
from ftlit.data.transforms import Transform
from ftlit.errors import UserError
from ftlit.features.extract import ImageViews, evaluating, fill
from ftlit.features.image_hashes import HashCache, image_hashes
from ftlit.features.keys import feature_keys, stored_dtype, view_digest
from ftlit.features.shard import no_space
from ftlit.features.spec import FeatureSpec, ImageHashes
from ftlit.features.store import Store
from ftlit.features.table import FeatureKey, FeatureTable, Rows
from ftlit.formatting import size_in_words
from ftlit.lit.datamodules.extraction_progress import progress_of_features
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.module_internals import version_of
from ftlit.models.backbone import Backbone

# Pixels that run together, whatever the batches of training: the same features to the bit in any run. A CPU is fastest while a batch's
# maps stay in its caches.
PIXELS = {"cpu": 8 * 224**2}
PIXELS_ELSEWHERE = 64 * 224**2
MOST_IMAGES = 256
WAIT = 20.0  # seconds that the first of several processes waits for a lock before it tells the others
EVALUATION = 0  # the number of the evaluation view; augmented ones count from 1
View = tuple[Split, int]  # the images of a split, and how they are shown
VALIDATION: View = ("val", EVALUATION)


class Extraction:
    """The features of `data`'s images by split, view and spec. Rows are kept as long as the weights below them are the same.

    Args:
        data: the images.
        store: where features are.
        dtype: as stored; `None`: that of the weights.
        seed: of what is drawn for augmented views.
    """

    def __init__(self, data: ImageData, store: Store, *, dtype: str | None, seed: int) -> None:
        self.data, self.store, self.dtype, self.seed = data, store, dtype, seed
        self._tables: dict[str, FeatureTable] = {}  # by key: one for all splits, so that no shard is checked twice
        self.forget()

    def forget(self) -> None:
        """Begin anew, with weights and files that may be others."""
        self._digests: dict[Split, ImageHashes] = {}
        self._keys: dict[tuple[View, FeatureSpec], tuple[object, FeatureKey]] = {}  # with what they rest on
        self._rows: dict[tuple[Split, str], Rows] = {}  # by split and key
        self._known: dict[FeatureSpec, str] = {}  # key of the evaluation view

    def rows(
        self, trainer: Trainer, backbone: Backbone, wanted: Mapping[View, Sequence[FeatureSpec]], stage: int | None
    ) -> dict[View, dict[FeatureSpec, Rows]]:
        """The features of some views in some specs.

        Args:
            trainer: whose processes share the work.
            backbone: as it is now.
            wanted: the specs of each.
            stage: in force; in another one weights may be others. Within one they are hashed again only where a tensor was replaced or
                changed in place (by `Tensor._version`). `None`: they are hashed each time.
        """
        keys = {view: self._keys_of_stage(trainer, backbone, view, specs, stage) for view, specs in wanted.items()}
        new = {view: own for view, own in keys.items() if any((view[0], key.digest) not in self._rows for key in own.values())}
        if new:
            self._look_at_files(trainer, list(dict.fromkeys(split for split, _ in new)))
            parts = {view: self._wanted(view, own) for view, own in new.items()}
            _extract(self.store, backbone, list(parts.values()), trainer, self.data.num_workers)
            for view, part in parts.items():
                for spec, table in part.tables.items():
                    self._rows[view[0], new[view][spec].digest] = Rows(table, part.images.hashes)
        if trainer.state.fn == "fit":
            evaluated = [own for (_, number), own in keys.items() if number == EVALUATION]
            self._known |= {spec: key.digest for own in evaluated for spec, key in own.items()}
        return {view: {spec: self._rows[view[0], key.digest] for spec, key in own.items()} for view, own in keys.items()}

    def is_known(self, trainer: Trainer, backbone: Backbone, spec: FeatureSpec) -> bool:
        """Whether features in the evaluation view that were asked for in a stage are still those of the weights."""
        return spec in self._known and self._keys_now(trainer, backbone, VALIDATION, [spec])[spec].digest == self._known[spec]

    def _look_at_files(self, trainer: Trainer, splits: Sequence[Split]) -> None:
        """ImageHashes of all images; the first process reads the files, the others what it remembers of them."""
        for first in (True, False):
            if trainer.is_global_zero is first:
                for split in splits:
                    if split not in self._digests:
                        self._digests[split] = image_hashes(self.data.collection.splits[split], HashCache(self.store.folder))
            trainer.strategy.barrier("features: digests")

    def _wanted(self, view: View, keys: dict[FeatureSpec, FeatureKey]) -> "Wanted":
        split, number = view
        images = ImageViews(self.data.collection.splits[split], self._digests[split], self._transform(number), (self.seed, number))
        for key in keys.values():
            self._tables.setdefault(key.digest, self.store.table(key))
        return Wanted(view, images, self.data.input_spec.pixels, {spec: self._tables[key.digest] for spec, key in keys.items()})

    def _transform(self, number: int) -> Transform:
        return self.data.transforms["val" if number == EVALUATION else "train"]

    def _keys_of_stage(
        self, trainer: Trainer, backbone: Backbone, view: View, specs: Sequence[FeatureSpec], stage: int | None
    ) -> dict[FeatureSpec, FeatureKey]:
        rests_on = {spec: (stage, *_tensors(backbone.upto(spec.cut))) for spec in specs}
        if stage is None or any((view, spec) not in self._keys or self._keys[view, spec][0] != rests_on[spec] for spec in specs):
            now = self._keys_now(trainer, backbone, view, specs)
            self._keys |= {(view, spec): (rests_on[spec], key) for spec, key in now.items()}
        return {spec: self._keys[view, spec][1] for spec in specs}

    def _keys_now(self, trainer: Trainer, backbone: Backbone, view: View, specs: Sequence[FeatureSpec]) -> dict[FeatureSpec, FeatureKey]:
        """What the store keeps for a view, with the weights as they are."""
        (split, number), size = view, self.data.input_spec.shape
        drawn = None if number == EVALUATION else (self.seed, number)
        with trainer.precision_plugin.forward_context():
            return feature_keys(
                backbone,
                specs,
                view=view_digest(self._transform(number), self.data.collection.splits[split].load, drawn),
                size=size,
                dtype=stored_dtype(self.dtype, next(backbone.parameters(), torch.empty(0)).dtype),
                about={"view": f"augmented {number}" if number else "evaluation", "input": "x".join(map(str, size[-2:]))},
            )


def evaluation_features(
    trainer: Trainer, store: Store, backbone: Backbone, data: ImageData, specs: Sequence[FeatureSpec], splits: Sequence[Split]
) -> dict[Split, dict[FeatureSpec, Rows]]:
    """The features of the evaluation view of each split outside of training. The backbone moves to the trainer's device, in its precision."""
    backbone.to(trainer.strategy.root_device)
    trainer.precision_plugin.convert_module(backbone)
    with evaluating(backbone):
        wanted = {(split, EVALUATION): specs for split in splits}
        rows = Extraction(data, store, dtype=None, seed=0).rows(trainer, backbone, wanted, None)
    return {split: rows[split, EVALUATION] for split in splits}


def _tensors(module: nn.Module) -> Iterator[object]:
    """What tells a tensor that nobody has touched since."""
    for tensor in (*module.parameters(), *module.buffers()):
        yield tensor.data_ptr(), version_of(tensor)


@dataclass(frozen=True)
class Wanted:
    """Images in one view, what each counts as in pixels, and the tables that their features belong in."""

    view: View
    images: ImageViews
    pixels: int
    tables: dict[FeatureSpec, FeatureTable]

    def lacking(self) -> tuple[list[int], int]:
        """Places of the images that a table lacks, in order, and the bytes that what it lacks takes."""
        missing = [(table.missing(self.images.hashes), table.row_bytes) for table in self.tables.values()]
        places = sorted({int(place) for places, _ in missing for place in places})
        return places, sum(len(places) * size for places, size in missing)


def _extract(store: Store, backbone: Backbone, wanted: Sequence[Wanted], trainer: Trainer, num_workers: int) -> None:
    """Compute and write what the tables lack. Batches are fixed ranges of what is lacking, and each process takes every W-th, so that
    one process and W compute the same. Afterwards all tables have been looked at and lack nothing.

    Raises:
        UserError: the disk has less room than the features need, before anything is computed.
    """
    tables = list({table.folder: table for one in wanted for table in one.tables.values()}.values())
    first, started = trainer.is_global_zero, time.perf_counter()
    noun = backbone.input_spec.noun
    with _locked(store, tables, trainer):
        _look(tables, trainer, check=True)
        lacking = [one.lacking() for one in wanted]
        images, needed = sum(len(places) for places, _ in lacking), sum(size for _, size in lacking)
        with together(trainer):
            if needed > shutil.disk_usage(store.folder).free:
                raise no_space(store.folder, needed)
        with together(trainer), progress_of_features(images, noun, _cuts(wanted), shown=first, processes=trainer.world_size) as advance:
            for one, (places, _) in zip(wanted, lacking, strict=True):
                _compute(backbone, one, places, trainer, num_workers, advance)
        _look(tables, trainer, check=False)
        if trainer.num_nodes > 1:  # what another machine computed, whose disk is not this one's
            with together(trainer):
                for one in wanted if trainer.local_rank == 0 else ():
                    _compute(backbone, one, one.lacking()[0], trainer, num_workers, None)
            for table in tables:
                table.refresh(check=False)
    if first:
        sizes = {one.view[0]: len(one.images.hashes) for one in wanted}
        views = sum(number != EVALUATION for _, number in (one.view for one in wanted))
        done = f"{images:,} computed in {time.perf_counter() - started:.1f} s, {size_in_words(needed)}" if images else "all stored"
        print(
            f"features of {sum(sizes.values()):,} {noun}{f', those of train in {views} views,' * (views > 0)} at {_cuts(wanted)}: {done}",
            flush=True,
        )


def _cuts(wanted: Sequence[Wanted]) -> str:
    return ", ".join(dict.fromkeys(spec.cut for one in wanted for spec in one.tables))


def _look(tables: Sequence[FeatureTable], trainer: Trainer, *, check: bool) -> None:
    """All processes look at the tables, the first one before the others: it removes what is damaged, or merges what is small."""
    for turn in (True, False):
        for table in tables if trainer.is_global_zero is turn else ():
            table.refresh(check=check and turn)
            if turn and not check:
                table.merge()
        trainer.strategy.barrier("features: looked")


@contextmanager
def together(trainer: Trainer) -> Iterator[None]:
    """An error of one process ends all of them, where the others would wait for it; without one they go on when the last is done."""
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if not trainer.strategy.reduce_boolean_decision(error is None, all=True):
        said = [trainer.strategy.broadcast(error and str(error), src=rank) for rank in range(trainer.world_size)]
        rank, text = next((rank, text) for rank, text in enumerate(said) if text is not None)
        raise error or UserError(f"process {rank}: {text}")


@contextmanager
def _locked(store: Store, tables: Sequence[FeatureTable], trainer: Trainer) -> Iterator[None]:
    """The first process holds the locks for all. While it waits for them the others hear of it every now and then: they would give it up
    for lost otherwise.
    """
    if trainer.world_size == 1:
        with store.locked(tables):
            yield
        return
    held = None
    while True:
        held = store.try_lock(tables, WAIT) if trainer.is_global_zero else None
        if trainer.strategy.broadcast(held is not None):
            break
    with held or nullcontext():
        yield


def _compute(
    backbone: Backbone, wanted: Wanted, lacking: Sequence[int], trainer: Trainer, num_workers: int, advance: Callable[[int], None] | None
) -> None:
    """Compute what is lacking: this process's share of it; without `advance` all of it, unseen."""
    device, precision = next(backbone.parameters(), torch.empty(0)).device, trainer.precision_plugin
    pixels = PIXELS.get(device.type, PIXELS_ELSEWHERE)
    size = min(max(1, pixels // wanted.pixels), MOST_IMAGES)
    batches = [lacking[begin : begin + size] for begin in range(0, len(lacking), size)]
    own = batches[trainer.global_rank :: trainer.world_size] if advance else batches
    loader = DataLoader(
        wanted.images,
        sampler=own,
        batch_size=None,
        num_workers=min(num_workers, len(own)) if len(own) > 1 else 0,  # one batch: to start a process takes longer than it saves
        generator=torch.Generator(),  # nothing is drawn from the global random state
    )

    def given() -> Iterator[tuple[ImageHashes, Tensor]]:
        for digests, images in loader:
            yield digests, precision.convert_input(images.to(device))
            if advance:
                advance(len(images))

    if own:
        fill(backbone, wanted.tables, given(), context=precision.forward_context)
