"""Which features are stored: cut and pooling; and the digests of the images that they are of."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ftlit.models.pooling import Pooling

ImageHashes = np.ndarray[Any, np.dtype[np.bytes_]]  # (N,) of 32 hexadecimal digits


HASH_DTYPE = "S32"


@dataclass(frozen=True)
class FeatureSpec:
    """What is kept of the features at a cut: vectors, pooled as `ftlit.models.pooling.pool` says, or, without pooling, all of them."""

    cut: str
    pooling: Pooling | None
