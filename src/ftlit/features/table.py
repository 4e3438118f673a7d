"""Columns: the features of one kind of any number of images, written and read row by row."""

import math
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftlit.errors import UserError
from ftlit.features.shard import Damaged, Shard, read_shard, write_shard
from ftlit.features.spec import DIGEST, Digests

Places = np.ndarray[Any, np.dtype[np.int64]]  # (N,)
SHARD_BYTES = 64 << 20
MERGED_ROW = 1 << 16  # bytes; of larger rows a read is long enough as it is
MERGED_SHARDS = 4  # so many may stay apart
SHARD_SECONDS = 10.0  # of computing that a kill may lose


@dataclass(frozen=True)
class FeatureKey:
    """What a column holds.

    Args:
        key: of all that decides its rows but the images.
        dtype: as stored.
        shape: of one row.
        about: what it is, in words.
    """

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    about: dict[str, Any]


class FeatureTable:
    """The features of one kind.

    Args:
        folder: of its shards.
        kind: what they are.
    """

    def __init__(self, folder: Path, kind: FeatureKey) -> None:
        self.folder, self.dtype, self.shape, self.about = folder, kind.dtype, kind.shape, kind.about
        self.shards: list[Shard] = []
        self._sorted: tuple[Digests, Places, Places, Places] | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.shape)

    def look(self, *, check: bool = True) -> None:
        """Take up the shards that have come since the last look, and leave those that went. A damaged one is removed, with a warning: its
        rows are missing again.

        Args:
            check: compare checksums; once is enough where several processes look.
        """
        known = {shard.path: shard for shard in self.shards}
        self.shards, self._sorted = [], None
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in known:
                self.shards.append(known[path])
                continue
            try:
                shard = read_shard(path, check=check)
                if shard.features.dtype != self.dtype or shard.features.shape[1:] != self.shape:
                    raise Damaged(f"its rows are {tuple(shard.features.shape[1:])} of {shard.features.dtype}")
                self.shards.append(shard)
            except FileNotFoundError:  # merged or removed by another process
                continue
            except Damaged as reason:
                warnings.warn(
                    f"stored features are damaged and removed, to be computed when they are wanted: {path} ({reason})", stacklevel=2
                )
                path.unlink(missing_ok=True)

    def merge(self) -> None:
        """Make one shard of many small ones, since rows in one file are read as fast as memory gives them. Only under `Store.locked`."""
        if self.row_bytes > MERGED_ROW or len(self.shards) <= MERGED_SHARDS:
            return
        total = sum(shard.features.nbytes for shard in self.shards)
        small = [shard for shard in self.shards if shard.features.nbytes <= total / 2]
        if shutil.disk_usage(self.folder).free < 2 * total:
            return
        parts, seen = [], np.empty(0, DIGEST)
        for shard in small:  # each row once: a merge that was killed may have left rows in two shards
            new = np.flatnonzero(~np.isin(shard.images, seen))
            parts.append((shard.images[new], shard.features if len(new) == len(shard.images) else shard.features[torch.from_numpy(new)]))
            seen = np.concatenate([seen, shard.images])
        try:
            merged = write_shard(self.folder, np.concatenate([images for images, _ in parts]), [features for _, features in parts])
        except UserError:  # no room for both: they stay apart
            return
        for shard in small:
            if shard.path != merged:  # that of a merge that was killed before it removed the others
                shard.path.unlink(missing_ok=True)
        self.look(check=False)

    def find(self, images: Digests) -> tuple[Places, Places]:
        """Shard and row of each image, (N,) each; -1 where it is missing."""
        held, order, shards, rows = self._index
        if not len(held):
            nowhere = np.full(len(images), -1)
            return nowhere, nowhere
        place = order[np.minimum(np.searchsorted(held, images, sorter=order), len(held) - 1)]
        found = held[place] == images
        return np.where(found, shards[place], -1), np.where(found, rows[place], -1)

    @property
    def _index(self) -> tuple[Digests, Places, Places, Places]:
        """The digest of each row, the order that sorts them, and shard and row of each."""
        if self._sorted is None:
            sizes = [len(shard.images) for shard in self.shards]
            held = np.concatenate([np.empty(0, DIGEST), *(shard.images for shard in self.shards)])
            rows = np.concatenate([np.empty(0, np.int64), *map(np.arange, sizes)])
            self._sorted = held, np.argsort(held, kind="stable"), np.repeat(np.arange(len(sizes)), sizes), rows
        return self._sorted

    def missing(self, images: Digests) -> Places:
        """Places of the images whose features are not there, each image once."""
        places = np.flatnonzero(self.find(images)[0] < 0)
        return places[np.sort(np.unique(images[places], return_index=True)[1])]


class Rows:
    """The features of certain images, in their order, read from disk as they are asked for.

    Args:
        column: where they are.
        images: their digests (N,); none may be missing.
    """

    def __init__(self, column: FeatureTable, images: Digests) -> None:
        self._features = [shard.features for shard in column.shards]
        self._shard, self._row = column.find(images)
        self.shape, self.dtype, self.row_bytes = column.shape, column.dtype, column.row_bytes
        assert len(images) == 0 or self._shard.min() >= 0

    def __len__(self) -> int:
        return len(self._row)

    def __repr__(self) -> str:
        return f"Rows({len(self)} x {self.shape} {str(self.dtype).removeprefix('torch.')})"

    def read(self, places: Sequence[int] | np.ndarray[Any, Any]) -> Tensor:
        """The features (n, *shape) at these places, copied."""
        at = np.asarray(places, np.int64)
        shards, rows = self._shard[at], torch.from_numpy(self._row[at])
        used = np.unique(shards).tolist()
        if len(used) == 1:
            return torch.index_select(self._features[used[0]], 0, rows)
        by_shard = np.argsort(shards, kind="stable")
        ends = np.searchsorted(shards, [*used, used[-1] + 1] if used else [], sorter=by_shard).tolist()
        grouped, order = torch.empty((len(at), *self.shape), dtype=self.dtype), torch.from_numpy(by_shard)
        for shard, begin, end in zip(used, ends, ends[1:], strict=False):
            torch.index_select(self._features[shard], 0, rows[order[begin:end]], out=grouped[begin:end])
        return grouped.index_select(0, torch.argsort(order))


class Writer:
    """Gathers rows and writes a shard whenever there is enough of them, and the rest at `flush`.

    Raises:
        UserError: the disk is full; what was written before stays.
    """

    def __init__(self, column: FeatureTable) -> None:
        self._column = column
        self._most = max(1, SHARD_BYTES // column.row_bytes)
        self._features = torch.empty(0)
        self._images: list[bytes] = []
        self._since = time.monotonic()

    def add(self, images: Digests, features: Tensor) -> None:
        """Rows (n, *shape), of any device and dtype, of these images."""
        if len(self._images) + len(features) > len(self._features) and self._images:
            self.flush()
        if not self._images:
            self._features = torch.empty((max(len(features), self._most), *self._column.shape), dtype=self._column.dtype)
        self._features[len(self._images) : len(self._images) + len(features)].copy_(features)
        if (
            not self._column.dtype == features.dtype
            and torch.isinf(self._features[len(self._images) : len(self._images) + len(features)]).any()
        ):
            raise UserError(f"features up to {features.abs().max():.3g} do not fit in {self._column.dtype}: take bfloat16 or float32")
        self._images += images.tolist()
        if time.monotonic() - self._since > SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what there is."""
        self._since = time.monotonic()
        if not self._images:
            return
        write_shard(self._column.folder, np.array(self._images, DIGEST), [self._features[: len(self._images)]])
        self._images = []
