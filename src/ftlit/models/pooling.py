"""Pool features of any shape to vectors."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ftlit.errors import UserError
from ftlit.identity.code_identity import versioned

TokenPool = Literal["mean", "class_token", "class_token_mean", "masked_mean", "masked_class_token", "masked_class_token_mean"]
TokenPooling = Literal["class_token", "mean", "class_token_mean"]
TOKEN_POOLINGS: tuple[TokenPooling, ...] = get_args(TokenPooling)
Pooling = Literal["average", "max", "2x2"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


@versioned("pool", 1)
def pool(features: Tensor, token_pool: TokenPool = "mean", pooling: Pooling = "average") -> Tensor:
    """Pool features of any shape to vectors (N, C); of a half-precision format (bfloat16, float16) to float32.

    Args:
        features: a map (N, C, H, W), tokens (N, T, C) or vectors (N, C).
        token_pool: how tokens are pooled: their mean, the first one (`class_token`), or both, one after the other (`class_token_mean`).
            For texts `masked_...`: without padding, whose features are all zero.
        pooling: `average`: as the original network pools before its classifier: the mean over positions of a map, `token_pool` of
            tokens, vectors as they are. `max`: the maximum over positions or tokens; padding does not count. `2x2`: the average of each
            quarter of a map, (N, 4 C).

    Raises:
        UserError: features that this pooling does not apply to; see `poolings_of`.
    """
    if pooling not in (supported := poolings_of(features.shape[1:])):
        raise UserError(
            f"pooling={pooling!r} does not apply to features of shape {tuple(features.shape[1:])}; supported: {', '.join(supported)}"
        )
    if pooling == "max":
        if token_pool.startswith("masked_") and features.ndim == 3:
            real = real_tokens(features)
            largest = features.masked_fill(~real[..., None], torch.finfo(features.dtype).min).amax(dim=1)
            return _full(largest.masked_fill(~real.any(dim=1, keepdim=True), 0.0))  # a text without a token
        return _full(features.flatten(2).amax(dim=2) if features.ndim == 4 else features.amax(dim=1))
    if pooling == "2x2":
        return torch.nn.functional.adaptive_avg_pool2d(_full(features), 2).flatten(1)
    if features.ndim == 4:
        return features.mean(dim=(2, 3), dtype=_sum_dtype(features))
    if features.ndim == 3:
        return TOKEN_POOLS[token_pool](features)
    return _full(features)


def _sum_dtype(features: Tensor) -> torch.dtype:
    """In which features are averaged: a half-precision average would lose what many values have in common."""
    return torch.float32 if features.dtype in (torch.bfloat16, torch.float16) else features.dtype


def _full(features: Tensor) -> Tensor:
    return features.to(_sum_dtype(features))


def real_tokens(features: Tensor) -> Tensor:
    """Find the tokens of texts (N, T, C) that are not padding: bool (N, T). Features of padding are all zero."""
    return features.ne(0).any(dim=-1)


TOKEN_POOLS: dict[TokenPool, Callable[[Tensor], Tensor]] = {
    "mean": lambda features: features.mean(dim=1, dtype=_sum_dtype(features)),
    "class_token": lambda features: _full(features[:, 0]),
    "masked_mean": lambda features: (
        features.sum(dim=1, dtype=_sum_dtype(features)) / real_tokens(features).sum(dim=1, keepdim=True).clamp(min=1)
    ),
    "class_token_mean": lambda features: torch.cat([TOKEN_POOLS[way](features) for way in ("class_token", "mean")], dim=1),
    "masked_class_token": lambda features: TOKEN_POOLS["class_token"](features),
    "masked_class_token_mean": lambda features: torch.cat([TOKEN_POOLS[way](features) for way in ("class_token", "masked_mean")], dim=1),
}


def token_pool_of(own: TokenPool, pooling: TokenPooling) -> TokenPool:
    """The way to pool tokens by `pooling` in a network that pools them by `own`: padding stays left out."""
    masked: dict[TokenPooling, TokenPool] = {
        "mean": "masked_mean",
        "class_token": "masked_class_token",
        "class_token_mean": "masked_class_token_mean",
    }
    return masked[pooling] if own.startswith("masked_") else pooling


def poolings_of(shape: Sequence[int]) -> tuple[Pooling, ...]:
    """List the poolings that differ for features of this shape (of one image); of vectors there is one, `average`."""
    if len(shape) == 3:
        return POOLINGS if min(shape[1:]) > 1 else POOLINGS[:1]
    return POOLINGS[:2] if len(shape) == 2 else POOLINGS[:1]


def pooled_size(shape: Sequence[int], token_pool: TokenPool = "mean", pooling: Pooling = "average") -> int:
    """Return the length of the vectors that `pool` makes of features of this shape (of one image)."""
    if len(shape) == 2:
        return shape[-1] * (2 if pooling == "average" and token_pool.endswith("class_token_mean") else 1)
    return shape[0] * (4 if pooling == "2x2" else 1)
