"""What identifies stored features. A feature table is found by its key, a row in it by the hash of its image.

The key is the fingerprint of these components (`KeyComponents`); `ftlit.identity.code_identity` describes how code counts: ftlit's own by a
name and a version number, a package's by its version, a user's by bytecode and constants.

- format: `FORMAT`, the number of everything that is not a component, such as how views are seeded.
- layers: of the backbone up to the cut: classes, attributes, hooks, parameters and buffers (`ftlit.identity.fingerprint.prefixes`);
  of any other module the same, without the parts that are first called after the cut (`ftlit.features.submodules`).
- pooling, token_pool and pool (the function, by its version): none of them where features are stored whole.
- view: how an image becomes a tensor: the function that reads it, the transform, and of an augmented view its seed and number.
- shape and dtype: of a row as it is stored.
- computed_in: device and precision, and whether layers are compiled.
- software: versions of torch, torchvision, Pillow and numpy.

The hash of an image (`ftlit.features.image_hashes`) is of the bytes of its file, or of the values of its array. Paths, names of data sets,
labels and the settings of a run do not count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ftlit.errors import invalid
from ftlit.features.shard import DTYPES
from ftlit.features.spec import FeatureSpec
from ftlit.features.submodules import Submodules
from ftlit.features.table import FeatureKey
from ftlit.identity.fingerprint import fingerprint, prefixes, software
from ftlit.models.backbone import Backbone, compiled_parts
from ftlit.models.pooling import Pooling, TokenPool, pool, pooled_size
from ftlit.models.precision import describe_float32

FORMAT = 1  # raised when stored features can no longer be used although no component changed
VALUES = "values"  # view of images that are known by the values of their tensors
DTYPE_OF = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES if dtype.is_floating_point}


@dataclass(frozen=True)
class KeyComponents:
    """Everything besides the image that its features depend on; see the module."""

    layers: str
    pooling: Pooling | None
    token_pool: TokenPool | None
    view: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    computed_in: str
    software: str
    pool: Any = None
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """32 hexadecimal digits, the name of the feature table."""
        return fingerprint(vars(self))


def view_digest(transform: Any, load: Any, seed_and_number: tuple[int, int] | None = None) -> str:
    """The component `view`.

    Args:
        transform: image -> tensor.
        load: source -> image.
        seed_and_number: of an augmented view; `None` for the evaluation view.
    """
    return fingerprint(transform, load, seed_and_number)


def feature_keys(
    backbone: Backbone | Submodules,
    specs: Sequence[FeatureSpec],
    *,
    view: str,
    size: Sequence[int],
    dtype: torch.dtype,
    about: Mapping[str, Any] | None = None,
) -> dict[FeatureSpec, FeatureKey]:
    """The key of each spec, under the precision in force.

    Args:
        backbone: its weights and buffers as they are now; or submodules of any module.
        specs: the features to be stored.
        view: `view_digest`, or `VALUES`.
        size: shape of the tensor of one image.
        dtype: as stored.
        about: more lines of the table's description.
    """
    layers = backbone.digests() if isinstance(backbone, Submodules) else prefixes(dict(backbone.items()))
    shapes, computed = backbone.on_meta(size), _computed_in(backbone)
    found = {}
    for spec in specs:
        shape = tuple(shapes[spec.cut][0])
        if spec.pooling:
            shape = (pooled_size(shape, backbone.token_pool, spec.pooling),)
        token_pool = backbone.token_pool if spec.pooling else None
        components = KeyComponents(
            layers[spec.cut], spec.pooling, token_pool, view, shape, dtype, computed, software(), pool if spec.pooling else None
        )
        found[spec] = FeatureKey(components.digest, dtype, shape, _described(spec, components, backbone, about or {}))
    return found


def _described(spec: FeatureSpec, components: KeyComponents, backbone: Backbone | Submodules, about: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a table for `ftlit cache`."""
    stored = {"shape": list(components.shape), "dtype": str(components.dtype).removeprefix("torch.")}
    computed = {"weights": backbone.origin.describe(), "computed in": components.computed_in, "software": components.software}
    return {"cut": spec.cut, "pooling": spec.pooling, **stored, **about, **computed}


def stored_dtype(name: str | None, computed: torch.dtype) -> torch.dtype:
    """The dtype with this name; `computed` for `None`. Raises `UserError` for an unknown one."""
    if name is None:
        return computed
    if name not in DTYPE_OF:
        raise invalid("dtype", name, DTYPE_OF)
    return DTYPE_OF[name]


def _computed_in(backbone: nn.Module) -> str:
    """Device and precision in force: the same weights give other values in another one."""
    where = next(backbone.parameters(), torch.empty(0))
    device = where.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else where.dtype
    compiled = ", compiled" if compiled_parts(backbone) else ""
    return f"{str(dtype).removeprefix('torch.')}, {describe_float32(device)} on {device}{compiled}"
