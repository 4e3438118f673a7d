"""How codes of any shape become vectors."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ftlit.errors import UserError

TokenPool = Literal["mean", "class_token", "masked_mean"]
Pooling = Literal["average", "max", "2x2"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def pool(codes: Tensor, token_pool: TokenPool = "mean", pooling: Pooling = "average") -> Tensor:
    """Codes of any shape -> vectors (N, C): `average` as the original network pools before its classifier, else as `pooling` says.

    A map is averaged over its places, tokens are averaged or give their first one (`class_token`), a vector stays as it is. `max` takes
    the largest value over places, or tokens; `2x2` the average of each quarter of a map, (N, 4 C). `masked_mean` is of texts: tokens
    whose codes are all zero are padding, and count for neither average nor maximum.

    Raises:
        UserError: codes that have nothing to pool so; see `poolings_of`.
    """
    if pooling not in poolings_of(codes.shape[1:]):
        raise UserError(f"codes of shape {tuple(codes.shape[1:])} are not pooled by {pooling!r}: {', '.join(poolings_of(codes.shape[1:]))}")
    if pooling == "max":
        if token_pool == "masked_mean" and codes.ndim == 3:
            real = real_tokens(codes)
            largest = codes.masked_fill(~real[..., None], torch.finfo(codes.dtype).min).amax(dim=1)
            return largest.masked_fill(~real.any(dim=1, keepdim=True), 0.0)  # a text without a token
        return codes.flatten(2).amax(dim=2) if codes.ndim == 4 else codes.amax(dim=1)
    if pooling == "2x2":
        return torch.nn.functional.adaptive_avg_pool2d(codes, 2).flatten(1)
    if codes.ndim == 4:
        return codes.mean(dim=(2, 3))
    if codes.ndim == 3:
        return TOKEN_POOLS[token_pool](codes)
    return codes


def real_tokens(codes: Tensor) -> Tensor:
    """Codes (N, T, C) of texts -> which of the tokens are no padding, bool (N, T): those of padding are all zero."""
    return codes.ne(0).any(dim=-1)


TOKEN_POOLS: dict[TokenPool, Callable[[Tensor], Tensor]] = {
    "mean": lambda codes: codes.mean(dim=1),
    "class_token": lambda codes: codes[:, 0],
    "masked_mean": lambda codes: codes.sum(dim=1) / real_tokens(codes).sum(dim=1, keepdim=True).clamp(min=1),
}


def poolings_of(shape: Sequence[int]) -> tuple[Pooling, ...]:
    """What gives different vectors for codes of this shape (of one image): a map of 2 x 2 places or more, tokens, vectors."""
    if len(shape) == 3:
        return POOLINGS if min(shape[1:]) > 1 else POOLINGS[:1]
    return POOLINGS[:2] if len(shape) == 2 else POOLINGS[:1]


def pooled_size(shape: Sequence[int], pooling: Pooling = "average") -> int:
    """The length of the vectors that `pool` makes of codes of this shape (of one image)."""
    return (shape[-1] if len(shape) == 2 else shape[0]) * (4 if pooling == "2x2" else 1)
