"""Extract features at any number of cuts in one pass over images, and store them."""

import warnings
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
from ftlit.data.pixels import SplitView
from ftlit.data.transforms import Transform
from ftlit.errors import UserError, unknown
from ftlit.features.keys import VALUES, feature_keys, stored_dtype
from ftlit.features.spec import HASH_DTYPE, FeatureSpec, ImageHashes
from ftlit.features.store import Store
from ftlit.features.table import FeatureTable, Rows, Writer
from ftlit.finetuning.freeze import set_modes
from ftlit.fingerprint import of_tensor
from ftlit.formatting import count
from ftlit.models.backbone import Backbone
from ftlit.seeding import derived_seed, kept_random_state


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

    def __repr__(self) -> str:
        return f"Features({', '.join(f'{cut}: {rows}' for cut, rows in self.rows.items())})"

    def __getitem__(self, cut: str) -> Rows:
        if cut not in self.rows:
            raise unknown("cut", cut, self.rows)
        return self.rows[cut]


@kept_random_state()  # a DataLoader changes it
def extract_features(
    backbone: Backbone,
    loader: Iterable[Any],
    cuts: str | int | Sequence[str | int] = -1,
    *,
    cache: str | Path | Store | None = None,
    pooled: bool = True,
    dtype: str | None = None,
) -> Features:
    """Extract the features of every image of `loader` at each cut, in evaluation mode and in one pass, and store them.

    Features that the store holds already are not computed again: images are identified by their values, the backbone by its weights,
    buffers and hyperparameters. Runs on the backbone's device under the current autocast; modes and random state do not change.

    Args:
        backbone: named layers; those above the highest cut do not run.
        loader: batches (images (N, 3, H, W) or token ids (N, T), targets, ...), or images only; all of one size. A loader that augments
            gives other images, and so other features, each time.
        cuts: names of layers, or positions, -1 for the last layer.
        cache: folder of the store; `None`: the environment variable `FTLIT_CACHE`, or else `~/.cache/ftlit`.
        pooled: store vectors (N, C), pooled as the network pools; otherwise the features in their full shape.
        dtype: of the stored features: float32, float64, float16 or bfloat16; `None`: the dtype of the weights.

    Returns:
        The features, with rows and targets in the order of this pass.

    Raises:
        UserError: not a backbone, no such cut or dtype, no image, or not enough space on the disk.
    """
    if not isinstance(backbone, Backbone):
        raise UserError(
            f"extract_features needs a Backbone, not {type(backbone).__name__}: use ftlit.load_backbone, "
            "or ftlit.Backbone({name: layer, ...}, InputSpec(...)) for layers of your own"
        )
    names = [cuts] if isinstance(cuts, str | int) else list(cuts)
    specs = [FeatureSpec(backbone.cuts[backbone.index(cut)], "average" if pooled else None) for cut in names]
    if not specs:
        raise UserError("cuts=[]: name at least one layer")
    store = cache if isinstance(cache, Store) else Store(cache)
    batches = iter(loader)
    first = next(batches, None)
    if first is None:
        raise UserError("there are no images: the loader is empty")
    weights = next(backbone.parameters(), torch.empty(0))
    keys = feature_keys(backbone, specs, view=VALUES, size=_parts(first)[0].shape[1:], dtype=stored_dtype(dtype, weights.dtype))
    tables = {spec: store.table(key) for spec, key in keys.items()}
    seen: list[tuple[ImageHashes, Tensor | None]] = []
    with store.locked(list(tables.values())):
        for table in tables.values():
            table.refresh()
        fill(backbone, tables, _hashed(chain([first], batches), weights, seen))
        for table in tables.values():
            table.refresh(check=False)
            table.merge()
    images = np.concatenate([hashes for hashes, _ in seen])
    targets = [target for _, target in seen if target is not None]
    return Features({spec.cut: Rows(table, images) for spec, table in tables.items()}, torch.cat(targets) if targets else None)


def _hashed(batches: Iterable[Any], weights: Tensor, seen: list[tuple[ImageHashes, Tensor | None]]) -> Iterator[tuple[ImageHashes, Tensor]]:
    """Yield hashes and images of each batch, on the device and in the dtype of `weights`; add hashes and targets to `seen`."""
    for batch in batches:
        images, target = _parts(batch)
        hashes = np.array([of_tensor(image) for image in images], HASH_DTYPE)
        seen.append((hashes, target))
        yield hashes, images.to(weights.device, weights.dtype if images.is_floating_point() else None, non_blocking=True)


def fill(
    backbone: Backbone,
    tables: Mapping[FeatureSpec, FeatureTable],
    batches: Iterable[tuple[ImageHashes, Tensor]],
    *,
    context: Callable[[], Any] = nullcontext,
) -> None:
    """Compute and write the features of these images that the tables lack. A batch of which nothing is missing does not run.

    Args:
        backbone: on the device of the images.
        tables: refreshed before.
        batches: hashes (N,) and images (N, 3, H, W).
        context: makes the context in which the backbone runs, besides `inference_mode`; for instance autocast.
    """
    new: dict[FeatureSpec, set[bytes]] = {spec: set() for spec in tables}  # images written since the tables were refreshed
    writers = {spec: Writer(table) for spec, table in tables.items()}
    with evaluating(backbone), torch.inference_mode():
        for hashes, images in batches:
            missing = {spec: _missing(table, hashes, new[spec]) for spec, table in tables.items()}
            needed = sorted(set().union(*missing.values()))
            if not needed:
                continue
            chosen = images if len(needed) == len(images) else images[needed]
            asked = [spec for spec in tables if missing[spec]]
            with context():
                features = run(backbone, chosen, asked)
                if torch.is_autocast_enabled(chosen.device.type) and torch.get_autocast_dtype(chosen.device.type) == torch.float16:
                    _repeat_in_float32(backbone, chosen, features)
            for spec, values in features.items():
                rows = [needed.index(place) for place in missing[spec]] if len(missing[spec]) < len(needed) else slice(None)
                writers[spec].add(hashes[missing[spec]], values[rows])
        for writer in writers.values():
            writer.flush()


def run(backbone: Backbone, images: Tensor, specs: Sequence[FeatureSpec]) -> dict[FeatureSpec, Tensor]:
    """Return the features of a batch for each spec, from one pass up to the highest cut."""
    highest = max(backbone.index(spec.cut) for spec in specs)
    found = {}
    features = images
    for name, layer in list(backbone.items())[: highest + 1]:
        features = layer(features)
        for spec in specs:
            if spec.cut == name:
                values = backbone.pool(features, spec.pooling) if spec.pooling else features
                found[spec] = values if name == backbone.cuts[highest] else values.clone()  # the layer above may work in place
    return found


def _repeat_in_float32(backbone: Backbone, images: Tensor, features: dict[FeatureSpec, Tensor]) -> None:
    """Compute the features of images that are too large for float16 again, without autocast, in place."""
    bad = torch.stack([~values.flatten(1).isfinite().all(1) for values in features.values()]).any(0)
    if not bad.any():
        return
    with torch.autocast(images.device.type, enabled=False):
        again = run(backbone, images[bad], list(features))
    for spec, values in again.items():
        features[spec] = features[spec].to(values.dtype)  # a map is float16 until here
        features[spec][bad] = values
    warnings.warn(
        f"the features of {count(int(bad.sum()), 'image')} are too large for float16, so they are computed again in float32", stacklevel=2
    )


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
        return self.hashes[places], torch.stack(self.normalization.of_one_type(images) if self.normalization else images)

    def normalized(self, images: Tensor) -> Tensor:
        """Normalise a batch of these images on its device, unless it is normalised."""
        return self.normalization.of_pixels(images) if self.normalization else images

    def _tensor(self, place: int) -> Tensor:
        torch.default_generator.manual_seed(derived_seed(*self.seed, int(self.hashes[place], 16)))
        return self.transform(self.examples.load(self.examples.sources[place]))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set all of `module` to evaluation mode, and restore the modes afterwards."""
    modes = {part: part.training for part in module.modules()}
    set_modes(dict.fromkeys(modes, False))
    try:
        yield
    finally:
        set_modes(modes)


def _missing(table: FeatureTable, hashes: ImageHashes, new: set[bytes]) -> list[int]:
    """Return the places of the images that are neither in the table nor in `new`, each image once, and add them to `new`."""
    places = [int(place) for place in table.missing(hashes) if bytes(hashes[place]) not in new]
    new.update(hashes[places].tolist())
    return places


def _parts(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Return images and targets of a batch. Raises `UserError` for a batch of another form."""
    parts = [batch] if isinstance(batch, Tensor) else list(batch) if isinstance(batch, list | tuple) else []
    images, target, *_ = [*parts, None, None]
    if not isinstance(images, Tensor) or not isinstance(target, Tensor | None):
        raise UserError(f"a batch must be a tensor of images, or a tuple (images, targets, ...) of tensors, not {type(batch).__name__}")
    return images, target
