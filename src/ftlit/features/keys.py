"""The key of stored features: all that decides them but the image."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ftlit.errors import unknown
from ftlit.features.shard import DTYPES
from ftlit.features.spec import FeatureSpec
from ftlit.features.table import FeatureKey
from ftlit.fingerprint import fingerprint, prefixes, software
from ftlit.models.backbone import Backbone
from ftlit.models.pooling import pooled_size

FORMAT = 1  # raised when stored features of before can no longer be used
CAST = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


def feature_keys(
    backbone: Backbone,
    forms: Sequence[FeatureSpec],
    *,
    view: str,
    size: Sequence[int],
    dtype: torch.dtype,
    about: Mapping[str, Any] | None = None,
) -> dict[FeatureSpec, FeatureKey]:
    """What the store keeps for each form.

    Args:
        backbone: its weights and buffers as they are now.
        forms: what is wanted.
        view: fingerprint of what makes an image's tensor from its content.
        size: shape of that tensor.
        dtype: as stored.
        about: what else a person may want to know of it.
    """
    digests = prefixes(dict(backbone.items()))
    shapes = backbone.on_meta(size)
    computed = _computed_in(backbone)
    found = {}
    for form in forms:
        shape = shapes[form.cut][0]
        token_pool = backbone.token_pool if form.pooling else None
        if form.pooling:
            shape = (pooled_size(shape, form.pooling),)
        key = fingerprint(FORMAT, digests[form.cut], form.pooling, token_pool, view, list(shape), dtype, computed, software())
        words = {"cut": form.cut, "pooling": form.pooling, "shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
        more = {"weights": backbone.origin.describe(), "computed in": computed, "software": software()}
        found[form] = FeatureKey(key, dtype, shape, {**words, **(about or {}), **more})
    return found


def stored_dtype(name: str | None, computed: torch.dtype) -> torch.dtype:
    """The dtype with this name; `computed` for `None`. Raises `UserError` for an unknown one."""
    if name is None:
        return computed
    if name not in CAST:
        raise unknown("dtype of stored features:", name, CAST)
    return CAST[name]


def _computed_in(backbone: Backbone) -> str:
    """Device and precision in force: what the same weights give in another differs."""
    where = next(backbone.parameters(), torch.empty(0))
    kind = where.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else where.dtype
    tf32 = torch.backends.cudnn.allow_tf32 and kind == "cuda"
    return f"{str(dtype).removeprefix('torch.')}, {torch.get_float32_matmul_precision()}{', tf32' * tf32} on {kind}"
