"""Feature tables: the features of any number of images under one key, written and read row by row."""

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
from ftlit.features.shard import Damaged, Shard, read_shard, unusable, write_shard
from ftlit.features.spec import HASH_DTYPE, ImageHashes
from ftlit.files import is_foreign

Places = np.ndarray[Any, np.dtype[np.int64]]  # (N,)
SHARD_BYTES = 64 << 20
MAX_MERGED_ROW_BYTES = 1 << 16  # larger rows are read as fast from many shards
MAX_SHARDS = 4  # more than these are merged
NOTED: set[Path] = set()  # stores with features of other users, of which this process has printed a note
SHARD_SECONDS = 10.0  # of computation that is lost at most when the process is killed


@dataclass(frozen=True)
class FeatureKey:
    """The content of a feature table.

    Args:
        digest: of everything that decides the rows, except the images.
        dtype: of the stored features.
        shape: of one row.
        about: a description for users.
    """

    digest: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    about: dict[str, Any]


class FeatureTable:
    """The features of one key, on disk.

    Args:
        folder: of its shards.
        key: what the table holds.
        trust: use shards of other users too.
    """

    def __init__(self, folder: Path, key: FeatureKey, *, trust: bool = False) -> None:
        self.trust = trust
        self.folder, self.dtype, self.shape, self.about = folder, key.dtype, key.shape, key.about
        self.shards: list[Shard] = []
        self._sorted: tuple[ImageHashes, Places, Places, Places] | None = None

    @property
    def row_bytes(self) -> int:
        """Size of one row in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)

    def refresh(self, *, check: bool = True) -> None:
        """Update the list of shards from the folder. A damaged shard is removed, with a warning, and its rows are missing again.

        Args:
            check: compare the checksums of new shards; one of several processes is enough.

        Raises:
            UserError: a shard cannot be read.
        """
        known = {shard.path: shard for shard in self.shards}
        self.shards, self._sorted = [], None
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                shard = known.get(path) or self._open(path, check)
            except FileNotFoundError:  # merged or removed by another process
                continue
            except OSError as error:
                raise unusable(f"cannot read {path}", error) from error
            if shard:
                self.shards.append(shard)

    def _open(self, path: Path, check: bool) -> Shard | None:
        """The shard in a file; `None` for one of another user, or a damaged one, which is removed."""
        if not self.trust and is_foreign(path):
            self._note(path.parent.parent, check)
            return None
        try:
            shard = read_shard(path, check=check)
            if shard.features.dtype != self.dtype or shard.features.shape[1:] != self.shape:
                raise Damaged(f"its rows are {tuple(shard.features.shape[1:])} of {shard.features.dtype}")
            return shard
        except Damaged as reason:
            path.unlink(missing_ok=True)
            warnings.warn(f"removed damaged features, which are computed again when needed: {path} ({reason})", stacklevel=3)
            return None

    @staticmethod
    def _note(store: Path, first: bool) -> None:
        """Print once, by one process, that there are features which are not used."""
        if first and store not in NOTED:
            NOTED.add(store)
            print(
                f"note      features in {store} belong to another user, so they are not used; if you trust that user, give "
                "cache.trust=true",
                flush=True,
            )

    def merge(self) -> None:
        """Merge many small shards into one, which is read at the speed of memory. Call it under `Store.locked` only."""
        if self.row_bytes > MAX_MERGED_ROW_BYTES or len(self.shards) <= MAX_SHARDS:
            return
        total = sum(shard.features.nbytes for shard in self.shards)
        small = [shard for shard in self.shards if shard.features.nbytes <= total / 2]
        if shutil.disk_usage(self.folder).free < 2 * total:
            return
        parts, seen = [], np.empty(0, HASH_DTYPE)
        for shard in small:  # a merge that was killed may have left a row in two shards: take each row once
            new = np.flatnonzero(~np.isin(shard.images, seen))
            parts.append((shard.images[new], shard.features if len(new) == len(shard.images) else shard.features[torch.from_numpy(new)]))
            seen = np.concatenate([seen, shard.images])
        try:
            merged = write_shard(self.folder, np.concatenate([images for images, _ in parts]), [features for _, features in parts])
        except UserError:  # no space for both: do not merge
            return
        for shard in small:
            if shard.path != merged:  # equal if an earlier merge was killed before it removed the others
                shard.path.unlink(missing_ok=True)
        self.refresh(check=False)

    def find(self, images: ImageHashes) -> tuple[Places, Places]:
        """Return shard and row of each image, (N,) each; -1 for an image that is missing."""
        held, order, shards, rows = self._index
        if not len(held):
            missing = np.full(len(images), -1)
            return missing, missing
        place = order[np.minimum(np.searchsorted(held, images, sorter=order), len(held) - 1)]
        found = held[place] == images
        return np.where(found, shards[place], -1), np.where(found, rows[place], -1)

    @property
    def _index(self) -> tuple[ImageHashes, Places, Places, Places]:
        """The hash of each row, the order that sorts the hashes, and shard and row of each."""
        if self._sorted is None:
            sizes = [len(shard.images) for shard in self.shards]
            held = np.concatenate([np.empty(0, HASH_DTYPE), *(shard.images for shard in self.shards)])
            rows = np.concatenate([np.empty(0, np.int64), *map(np.arange, sizes)])
            self._sorted = held, np.argsort(held, kind="stable"), np.repeat(np.arange(len(sizes)), sizes), rows
        return self._sorted

    def missing(self, images: ImageHashes) -> Places:
        """Return the places of the images that the table lacks, each image once."""
        places = np.flatnonzero(self.find(images)[0] < 0)
        return places[np.sort(np.unique(images[places], return_index=True)[1])]


class Rows:
    """The features of some images, in their order, read from disk on demand.

    Args:
        table: holds the features.
        images: hashes of the images (N,); none may be missing in the table.
    """

    def __init__(self, table: FeatureTable, images: ImageHashes) -> None:
        self._features = [shard.features for shard in table.shards]
        self._paths = [shard.path for shard in table.shards]
        self._shard, self._row = table.find(images)
        self.shape, self.dtype, self.row_bytes = table.shape, table.dtype, table.row_bytes
        assert len(images) == 0 or self._shard.min() >= 0

    def __len__(self) -> int:
        return len(self._row)

    def __repr__(self) -> str:
        return f"Rows({len(self)} x {self.shape} {str(self.dtype).removeprefix('torch.')})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_features": None}  # worker processes that are not forked map the shards again

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _features=[read_shard(path, check=False).features for path in state["_paths"]])

    def view(self, place: int) -> Tensor:
        """Return the features at a place, (*shape), without a copy; they must not be changed."""
        row: Tensor = self._features[self._shard[place]][self._row[place]]
        return row

    def read(self, places: Sequence[int] | np.ndarray[Any, Any]) -> Tensor:
        """Return a copy of the features at these places, (n, *shape)."""
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
    """Collects rows, and writes them in shards of `SHARD_BYTES`, the last one at `flush`.

    Args:
        table: the rows go there.

    Raises:
        UserError: the disk is full; earlier shards stay.
    """

    def __init__(self, table: FeatureTable) -> None:
        self._table = table
        self._shard_rows = max(1, SHARD_BYTES // table.row_bytes)
        self._features = torch.empty(0)
        self._images: list[bytes] = []
        self._last_write = time.monotonic()

    def add(self, images: ImageHashes, features: Tensor) -> None:
        """Add rows (n, *shape), of any device and dtype, of these images (n,)."""
        if len(self._images) + len(features) > len(self._features) and self._images:
            self.flush()
        if not self._images:
            self._features = torch.empty((max(len(features), self._shard_rows), *self._table.shape), dtype=self._table.dtype)
        rows = self._features[len(self._images) : len(self._images) + len(features)].copy_(features)
        if self._table.dtype != features.dtype and bool(torch.isinf(rows).any()):
            most = features.abs().max()
            raise UserError(f"feature values up to {most:.3g} do not fit in {self._table.dtype}: give cache.dtype=bfloat16 or float32")
        self._images += images.tolist()
        if time.monotonic() - self._last_write > SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows collected so far."""
        self._last_write = time.monotonic()
        if not self._images:
            return
        write_shard(self._table.folder, np.array(self._images, HASH_DTYPE), [self._features[: len(self._images)]])
        self._images = []
