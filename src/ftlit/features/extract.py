"""Features once: a pass over images that writes what comes out at any number of cuts to a store, and reads it from there ever after."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ftlit.data.dataset import Examples
from ftlit.data.transforms import Transform
from ftlit.errors import UserError, unknown
from ftlit.features.keys import feature_keys, stored_dtype
from ftlit.features.spec import DIGEST, Digests, FeatureSpec
from ftlit.features.store import Store
from ftlit.features.table import FeatureTable, Rows, Writer
from ftlit.finetuning.freeze import set_modes
from ftlit.fingerprint import of_tensor
from ftlit.models.backbone import Backbone, FeatureBatch
from ftlit.seeding import derived_seed, kept_random_state

BLOCK_BYTES = 8 << 20  # read at once; memory that is asked for in larger pieces comes from the kernel, page by page


@dataclass(frozen=True, repr=False)
class Features:
    """The features of images at several cuts, on disk, in the order of the images.

    Args:
        rows: cut -> features (N, C), or (N, *shape) where they are not pooled; `features["layer4"].read([0, 1])` is a tensor.
        targets: what the loader gave beside the images, (N, ...); `None` where it gave images only.
    """

    rows: Mapping[str, Rows]
    targets: Tensor | None

    @property
    def cuts(self) -> tuple[str, ...]:
        """The cuts, in the order asked for."""
        return tuple(self.rows)

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def __repr__(self) -> str:
        return f"Features({', '.join(f'{cut}: {rows}' for cut, rows in self.rows.items())})"

    def __getitem__(self, cut: str) -> Rows:
        if cut not in self.rows:
            raise unknown("cut", cut, self.rows)
        return self.rows[cut]


@kept_random_state()  # a DataLoader draws from it
def extract_features(
    backbone: Backbone,
    loader: Iterable[Any],
    cuts: str | int | Sequence[str | int] = -1,
    *,
    cache: str | Path | Store | None = None,
    pooled: bool = True,
    dtype: str | None = None,
) -> Features:
    """The features of every image that `loader` gives, at each cut, in evaluation mode, computed in one pass and only where the store lacks
    them: an image is known by its values, the backbone by its weights, buffers and parameters. Runs where the backbone is, under the
    autocast in force; modes and random state stay as they were. Rows and targets are in the order in which this pass met the images.

    Args:
        backbone: named layers; those above the highest cut do not run.
        loader: batches (images (N, 3, H, W), or token ids (N, T), targets, ...) or images alone; all of one size. A loader that augments
            gives other images, and so other features, each time.
        cuts: names of layers, or places counted from the top, -1 for the last.
        cache: folder of the store; `None`: what the environment variable `FTLIT_CACHE` says, else `~/.cache/ftlit`.
        pooled: vectors (N, C), pooled as the network pools; else all of the features.
        dtype: float32, float64, float16 or bfloat16, as stored and read; `None`: that of the weights.

    Raises:
        UserError: no backbone, no such cut or dtype, no image, or a disk without room.
    """
    if not isinstance(backbone, Backbone):
        raise UserError(f"extract_features takes a Backbone, and this is {type(backbone).__name__}: load_backbone gives one")
    names = [cuts] if isinstance(cuts, str | int) else list(cuts)
    forms = [FeatureSpec(backbone.cuts[backbone.index(cut)], "average" if pooled else None) for cut in names]
    if not forms:
        raise UserError("cuts=[]: name at least one layer")
    store = cache if isinstance(cache, Store) else Store(cache)
    batches = iter(loader)
    first = next(batches, None)
    if first is None:
        raise UserError("there are no images: the loader is empty")
    where = next(backbone.parameters(), torch.empty(0))
    kinds = feature_keys(backbone, forms, view="values", size=_parts(first)[0].shape[1:], dtype=stored_dtype(dtype, where.dtype))
    columns = {form: store.column(kind) for form, kind in kinds.items()}
    passed: list[tuple[Digests, Tensor | None]] = []
    with store.locked(list(columns.values())):
        for column in columns.values():
            column.look()
        fill(backbone, columns, _named(chain([first], batches), where, passed))
        for column in columns.values():
            column.look(check=False)
            column.merge()
    images = np.concatenate([digests for digests, _ in passed])
    targets = [target for _, target in passed if target is not None]
    return Features({form.cut: Rows(column, images) for form, column in columns.items()}, torch.cat(targets) if targets else None)


def _named(batches: Iterable[Any], where: Tensor, passed: list[tuple[Digests, Tensor | None]]) -> Iterator[tuple[Digests, Tensor]]:
    """Digests and images of each batch, these as `where` is; digests and targets are added to `passed`."""
    for batch in batches:
        images, target = _parts(batch)
        passed.append((np.array([of_tensor(image) for image in images], DIGEST), target))
        yield passed[-1][0], images.to(where.device, where.dtype if images.is_floating_point() else None, non_blocking=True)


def fill(
    backbone: Backbone,
    columns: Mapping[FeatureSpec, FeatureTable],
    batches: Iterable[tuple[Digests, Tensor]],
    *,
    context: Callable[[], Any] = nullcontext,
) -> None:
    """Compute and write what each column lacks of these images; a batch of which nothing is lacking is not run.

    Args:
        backbone: where it is, the images are.
        columns: whose shards have been looked at.
        batches: digests (N,) and images (N, 3, H, W).
        context: what the backbone runs under besides `inference_mode`, autocast for instance.
    """
    new: dict[FeatureSpec, set[bytes]] = {form: set() for form in columns}  # written since the columns were looked at
    writers = {form: Writer(column) for form, column in columns.items()}
    with evaluating(backbone), torch.inference_mode():
        for names, images in batches:
            lacking = {form: _lacking(column, names, new[form]) for form, column in columns.items()}
            wanted = sorted(set().union(*lacking.values()))
            if not wanted:
                continue
            chosen = images if len(wanted) == len(images) else images[wanted]
            with context():
                features = run(backbone, chosen, [form for form in columns if lacking[form]])
            for form, values in features.items():
                own = [wanted.index(place) for place in lacking[form]] if len(lacking[form]) < len(wanted) else slice(None)
                writers[form].add(names[lacking[form]], values[own])
        for writer in writers.values():
            writer.flush()


def run(backbone: Backbone, images: Tensor, forms: Sequence[FeatureSpec]) -> dict[FeatureSpec, Tensor]:
    """The features of a batch in each form, from one pass up to the highest cut."""
    highest = max(backbone.index(form.cut) for form in forms)
    found = {}
    features = images
    for name, layer in list(backbone.items())[: highest + 1]:
        features = layer(features)
        for form in forms:
            if form.cut == name:
                values = backbone.pool(features, form.pooling) if form.pooling else features
                found[form] = values if name == backbone.cuts[highest] else values.clone()  # the layer above may work in place
    return found


class Views(Dataset[tuple[Digests, Tensor]]):
    """Batches of images by their places: (digests (n,), tensors (n, 3, S, S)). What a view draws comes from (seed, view, content).

    Args:
        examples: the images.
        digests: of their contents.
        transform: content -> tensor.
        drawn: seed and number of the view.
    """

    def __init__(self, examples: Examples, digests: Digests, transform: Transform, drawn: tuple[int, int] = (0, 0)) -> None:
        self.examples, self.digests, self.transform, self.drawn = examples, digests, transform, drawn

    def __getitem__(self, places: Sequence[int]) -> tuple[Digests, Tensor]:
        with kept_random_state():
            return self.digests[places], torch.stack([self._view(place) for place in places])

    def _view(self, place: int) -> Tensor:
        torch.default_generator.manual_seed(derived_seed(*self.drawn, int(self.digests[place], 16)))
        return self.transform(self.examples.load(self.examples.sources[place]))


def read_batches(
    order: Iterable[Sequence[tuple[int, int]]], rows: Rows, targets: Tensor, cut: str, dtype: torch.dtype
) -> Iterator[tuple[FeatureBatch, Tensor]]:
    """The batches of an order from stored features, read some megabytes at a time: what lies together is then read together.

    Args:
        order: batches of (epoch, index); see `ftlit.data.samplers`.
        rows: the features.
        targets: of all images.
        cut: that the features are of.
        dtype: that they are wanted in.
    """
    most = max(1, BLOCK_BYTES // max(1, rows.row_bytes))
    block: list[Sequence[tuple[int, int]]] = []
    for batch in order:
        if block and sum(map(len, block)) + len(batch) > most:
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


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """All of `module` in evaluation mode, and afterwards as it was."""
    modes = {part: part.training for part in module.modules()}
    set_modes(dict.fromkeys(modes, False))
    try:
        yield
    finally:
        set_modes(modes)


def _lacking(column: FeatureTable, names: Digests, new: set[bytes]) -> list[int]:
    """Places of the images that are neither in the column nor among the new ones, each image once; they are new from now on."""
    places = [int(place) for place in column.missing(names) if bytes(names[place]) not in new]
    new.update(names[places].tolist())
    return places


def _parts(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Images and targets of a batch. Raises `UserError` for one of another form."""
    parts = [batch] if isinstance(batch, Tensor) else list(batch) if isinstance(batch, list | tuple) else []
    images, target, *_ = [*parts, None, None]
    if not isinstance(images, Tensor) or not isinstance(target, Tensor | None):
        raise UserError(f"a batch is images, or (images, targets, ...), tensors both: here it is {type(batch).__name__}")
    return images, target
