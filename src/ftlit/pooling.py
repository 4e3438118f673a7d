"""How codes of any shape become vectors."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ftlit.errors import UserError

TokenPool = Literal["mean", "class_token"]
Pooling = Literal["average", "max", "2x2"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def pool(codes: Tensor, token_pool: TokenPool = "mean", pooling: Pooling = "average") -> Tensor:
    """Codes of any shape -> vectors (N, C): `average` as the original network pools before its classifier, else as `pooling` says.

    A map is averaged over its places, tokens are averaged or give their first one (`class_token`), a vector stays as it is. `max` takes
    the largest value over places, or tokens; `2x2` the average of each quarter of a map, (N, 4 C).

    Raises:
        UserError: codes that have nothing to pool so; see `poolings_of`.
    """
    if pooling not in poolings_of(codes.shape[1:]):
        raise UserError(f"codes of shape {tuple(codes.shape[1:])} are not pooled by {pooling!r}: {', '.join(poolings_of(codes.shape[1:]))}")
    if pooling == "max":
        return codes.flatten(2).amax(dim=2) if codes.ndim == 4 else codes.amax(dim=1)
    if pooling == "2x2":
        return torch.nn.functional.adaptive_avg_pool2d(codes, 2).flatten(1)
    if codes.ndim == 4:
        return codes.mean(dim=(2, 3))
    if codes.ndim == 3:
        return codes[:, 0] if token_pool == "class_token" else codes.mean(dim=1)
    return codes


def poolings_of(shape: Sequence[int]) -> tuple[Pooling, ...]:
    """What gives different vectors for codes of this shape (of one image): a map of 2 x 2 places or more, tokens, vectors."""
    if len(shape) == 3:
        return POOLINGS if min(shape[1:]) > 1 else POOLINGS[:1]
    return POOLINGS[:2] if len(shape) == 2 else POOLINGS[:1]


def pooled_size(shape: Sequence[int], pooling: Pooling = "average") -> int:
    """The length of the vectors that `pool` makes of codes of this shape (of one image)."""
    return (shape[-1] if len(shape) == 2 else shape[0]) * (4 if pooling == "2x2" else 1)
