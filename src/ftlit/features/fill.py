"""Compute the features that feature tables lack, from batches of images."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ftlit.features.spec import FeatureSpec, ImageHashes
from ftlit.features.submodules import Submodules
from ftlit.features.table import FeatureTable, Writer
from ftlit.finetuning.freeze import set_modes
from ftlit.formatting import count
from ftlit.models.backbone import Backbone


def fill(
    backbone: Backbone | Submodules,
    tables: Mapping[FeatureSpec, FeatureTable],
    batches: Iterable[tuple[ImageHashes, Tensor]],
    *,
    context: Callable[[], Any] = nullcontext,
) -> int:
    """Compute and write the features of these images that the tables lack. A batch of which nothing is missing does not run.

    Args:
        backbone: on the device of the images.
        tables: refreshed before.
        batches: hashes (N,) and images (N, 3, H, W).
        context: makes the context in which the backbone runs, besides `inference_mode`; for instance autocast.

    Returns:
        The number of images on which it ran.
    """
    ran = 0
    new: dict[FeatureSpec, set[bytes]] = {spec: set() for spec in tables}  # images written since the tables were refreshed
    writers = {spec: Writer(table) for spec, table in tables.items()}
    with evaluating(backbone), torch.inference_mode():
        for hashes, images in batches:
            missing = {spec: _missing(table, hashes, new[spec]) for spec, table in tables.items()}
            needed = sorted(set().union(*missing.values()))
            if not needed:
                continue
            ran += len(needed)
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
    return ran


def run(backbone: Backbone | Submodules, images: Tensor, specs: Sequence[FeatureSpec]) -> dict[FeatureSpec, Tensor]:
    """Return the features of a batch for each spec, from one pass up to the highest cut."""
    if isinstance(backbone, Submodules):
        outputs = backbone.outputs(images, list(dict.fromkeys(spec.cut for spec in specs)))
        return {spec: backbone.pool(outputs[spec.cut], spec.pooling) if spec.pooling else outputs[spec.cut] for spec in specs}
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


def _repeat_in_float32(backbone: Backbone | Submodules, images: Tensor, features: dict[FeatureSpec, Tensor]) -> None:
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
