"""Extract features at any number of cuts in one pass over images, and store them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ftlit.data.dataset import Examples
from ftlit.data.loading import in_shared_memory
from ftlit.data.pixels import SplitView
from ftlit.data.transforms import Transform
from ftlit.errors import UserError, unknown
from ftlit.features.batch_parts import BatchParts
from ftlit.features.fill import fill
from ftlit.features.keys import VALUES, feature_keys, stored_dtype
from ftlit.features.spec import HASH_DTYPE, FeatureSpec, ImageHashes
from ftlit.features.store import Store
from ftlit.features.submodules import OUTPUT, Submodules
from ftlit.features.table import Rows
from ftlit.identity.fingerprint import of_tensor
from ftlit.models.backbone import Backbone
from ftlit.seeding import derived_seed, kept_random_state

DATASET_BATCH = 64  # images of a data set that is given in place of a loader


@dataclass(frozen=True, repr=False)
class Features:
    """The features of images at several cuts, on disk, in the order of the images.

    Args:
        rows: cut -> features (N, C), or (N, *shape) if they are not pooled; `features["layer4"].read([0, 1])` is a tensor.
        targets: the loader's targets (N, ...); `None` if it gave images only.
        groups: name of the group of each image (patient, video), which cross-validation holds out together; `None`: no groups.
    """

    rows: Mapping[str, Rows]
    targets: Tensor | None
    groups: Sequence[str | None] | None = None

    @property
    def cuts(self) -> tuple[str, ...]:
        """The cuts, in the order in which they were given."""
        return tuple(self.rows)

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"Features({', '.join(f'{cut}: {rows}' for cut, rows in self.rows.items())})"

    def __getitem__(self, cut: str) -> Rows:
        if cut not in self.rows:
            raise unknown("cut", cut, self.rows)
        return self.rows[cut]


@kept_random_state()  # a DataLoader changes it
def extract_features(
    module: nn.Module,
    loader: Iterable[Any],
    cuts: str | int | Sequence[str | int] = -1,
    *,
    cache: str | Path | Store | None = None,
    pooled: bool = True,
    dtype: str | None = None,
) -> Features:
    """Extract the features of every image of `loader` at each cut, in evaluation mode and in one pass, and store them.

    Features that the store holds already are not computed again: images are identified by their values, the module by its weights,
    buffers and hyperparameters. Runs on the module's device under the current autocast; modes and random state do not change.

    Args:
        module: a `Backbone`, of which the layers above the highest cut do not run; or any module that takes the images, or holds one that
            does, such as a LightningModule: see `ftlit.features.submodules`.
        loader: batches (images (N, 3, H, W) or token ids (N, T), targets, ...), mappings with one tensor of images (N, C, H, W), or images
            only; all of one size. Or a data set of such items. A loader that augments gives other images, and so other features, each time.
        cuts: names of layers, or of any submodules (`encoder.layer3`), or positions of layers; -1 for the last layer, or the output.
        cache: folder of the store; `None`: the environment variable `FTLIT_CACHE`, or else `~/.cache/ftlit`.
        pooled: store vectors (N, C), pooled as the backbone pools (maps and tokens of another module: their mean); otherwise the features
            in their full shape.
        dtype: of the stored features: float32, float64, float16 or bfloat16; `None`: the dtype of the weights.

    Returns:
        The features, with rows and targets in the order of this pass.

    Raises:
        UserError: not a loader, no such cut or dtype, a cut whose output cannot be stored (several calls, tensors, results), no image, or
            not enough space on the disk.
    """
    names = [cuts] if isinstance(cuts, str | int) else list(cuts)
    if not names:
        raise UserError("cuts is empty: give the name of at least one layer")
    if not isinstance(loader, Iterable | Dataset):
        raise UserError(f"extract_features reads a loader or a data set, not {type(loader).__name__}: give a DataLoader")
    store = cache if isinstance(cache, Store) else Store(cache)
    batches = iter(DataLoader(loader, batch_size=DATASET_BATCH) if isinstance(loader, Dataset) else loader)
    first = next(batches, None)
    if first is None:
        raise UserError("the loader is empty: give at least one image")
    network = source_of(module, names, BatchParts.of(first).images)
    found = [network.cuts[network.index(name)] for name in names] if isinstance(network, Backbone) else network.cuts
    specs = [FeatureSpec(cut, "average" if pooled else None) for cut in found]
    extracted = extract(network, specs, chain([first], batches), store, dtype=dtype)
    targets = [part.targets for part in extracted.parts if part.targets is not None]
    return Features({spec.cut: rows for spec, rows in extracted.rows.items()}, torch.cat(targets) if targets else None)


def source_of(module: nn.Module, names: Sequence[str | int], images: Tensor) -> Backbone | Submodules:
    """The module as a source of features at these cuts: itself, if it is a backbone.

    Args:
        module: see `extract_features`.
        names: of the cuts.
        images: of a batch.

    Raises:
        UserError: not a module, or no such cut.
    """
    if isinstance(module, Backbone):
        return module
    if not isinstance(module, nn.Module):
        raise UserError(f"the first argument has the type {type(module).__name__}: give a Backbone, or any nn.Module")
    if numbers := [name for name in names if not isinstance(name, str) and name != -1]:
        raise UserError(
            f"cuts={numbers[0]} is only for a Backbone, not for {type(module).__name__}: give the name of a submodule, or -1 for the output"
        )
    if "" in names:
        raise UserError(f"cuts='' names no submodule of {type(module).__name__}: give the name of one, or -1 for the output")
    if -1 in names and OUTPUT in dict(module.named_modules()):
        raise UserError(
            f"cuts=-1 is ambiguous, because {type(module).__name__} has a submodule {OUTPUT!r}: give cuts={OUTPUT!r} for this submodule, "
            "or pass nn.Sequential(module) as the first argument for the output of the whole module"
        )
    return Submodules(module, [name if isinstance(name, str) else OUTPUT for name in names], _on_device(images, module))


@dataclass(frozen=True)
class Extracted:
    """The features of all batches of a loader, and what else the batches hold.

    Args:
        rows: spec -> features in the order of the loader.
        parts: of each batch, with empty images.
        computed: number of images that were not stored before.
    """

    rows: Mapping[FeatureSpec, Rows]
    parts: Sequence[BatchParts]
    computed: int


def extract(
    network: Backbone | Submodules,
    specs: Sequence[FeatureSpec],
    batches: Iterable[Any],
    store: Store,
    *,
    dtype: str | None = None,
    context: Callable[[], Any] = nullcontext,
) -> Extracted:
    """Extract and store the features of all batches.

    Args:
        network: on its device.
        specs: the features.
        batches: at least one; see `BatchParts`.
        store: of the features.
        dtype: see `extract_features`.
        context: see `fill`; the features belong to the precision in it.
    """
    batches = iter(batches)
    first = next(batches)
    weights = next(network.parameters(), torch.empty(0))
    form = BatchParts.of(first)
    with context():
        size = form.images.shape[1:]
        keys = feature_keys(network, specs, view=VALUES, size=size, dtype=stored_dtype(dtype, weights.dtype))
    tables = {spec: store.table(key) for spec, key in keys.items()}
    hashes: list[ImageHashes] = []
    parts: list[BatchParts] = []

    def hashed() -> Iterator[tuple[ImageHashes, Tensor]]:
        for batch in chain([first], batches):
            own = BatchParts.of(batch)
            if own.others.keys() != form.others.keys():
                raise UserError(
                    "the batches do not all have the same entries (some have targets or keys that others lack): give all the same"
                )
            hashes.append(np.array([of_tensor(image) for image in own.images], HASH_DTYPE))
            parts.append(replace(own, images=own.images[:0]))
            yield hashes[-1], _on_device(own.images, network)

    with store.locked(list(tables.values())):
        for table in tables.values():
            table.refresh()
        computed = fill(network, tables, hashed(), context=context)
        for table in tables.values():
            table.refresh(check=False)
            table.merge()
    images = np.concatenate(hashes)
    return Extracted({spec: Rows(table, images) for spec, table in tables.items()}, parts, computed)


def _on_device(images: Tensor, module: nn.Module) -> Tensor:
    """Images on the device of a module, and in the dtype of its weights."""
    weights = next(module.parameters(), torch.empty(0))
    return images.to(weights.device, weights.dtype if images.is_floating_point() else None, non_blocking=True)


class ImageViews(Dataset[tuple[ImageHashes, Tensor]]):
    """Images in one view: a list of places gives their hashes (n,) and tensors (n, 3, S, S), which `normalized` completes.

    Random augmentation is a function of (seed, number of the view, image).

    Args:
        examples: the images.
        hashes: of the images (N,).
        transform: image -> tensor.
        seed: seed, and number of the view.
    """

    def __init__(self, examples: Examples, hashes: ImageHashes, transform: Transform, seed: tuple[int, int] = (0, 0)) -> None:
        self.examples, self.hashes, self.seed = examples, hashes, seed
        view = SplitView.of(transform)
        self.transform = view.pixels if view else transform
        self.normalization = view.normalization if view else None

    def __getitem__(self, places: Sequence[int]) -> tuple[ImageHashes, Tensor]:
        with kept_random_state():
            images = [self._tensor(place) for place in places]
        return self.hashes[places], in_shared_memory(torch.stack(self.normalization.of_one_type(images) if self.normalization else images))

    def normalized(self, images: Tensor) -> Tensor:
        """Normalise a batch of these images on its device, unless it is normalised."""
        return self.normalization.of_pixels(images) if self.normalization else images

    def _tensor(self, place: int) -> Tensor:
        torch.default_generator.manual_seed(derived_seed(*self.seed, int(self.hashes[place], 16)))
        return self.transform(self.examples.load(self.examples.sources[place]))
