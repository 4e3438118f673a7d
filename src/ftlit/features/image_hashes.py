"""Hashes of images, by which their features are found.

The hashes of files are cached by path, size and times, so that a second run reads no file.
"""

import os
import sqlite3
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ftlit.data.dataset import Examples
from ftlit.data.images import BadImage
from ftlit.data.splitting.duplicates import content_hashes
from ftlit.errors import one_line
from ftlit.features.spec import HASH_DTYPE, ImageHashes
from ftlit.features.store import Store
from ftlit.files import is_foreign
from ftlit.fingerprint import fingerprint, of_array, of_bytes
from ftlit.formatting import shown

PATHS_PER_QUERY = 500  # older versions of SQLite take 999 parameters
MIN_AGE_NS = 2_000_000_000  # a file that changed more recently may change again with the same time stamps


class HashCache:
    """The hashes of files, in one SQLite file. It may be removed at any time, and entries that cannot be read are ignored.

    Args:
        folder: holds `images.sqlite`.
        trust: use the file of another user too; otherwise there is one beside it.
    """

    def __init__(self, folder: Path, *, trust: bool = False) -> None:
        self.path = folder / "images.sqlite"
        if not trust and self.path.exists() and is_foreign(self.path):
            self.path = self.path.with_stem(f"images-{os.getuid()}")

    def recall(self, paths: Sequence[Path]) -> dict[Path, str]:
        """Return the hashes of those files that have not changed since they were added."""
        names = [os.fsencode(path) for path in paths]
        parts = [names[i : i + PATHS_PER_QUERY] for i in range(0, len(names), PATHS_PER_QUERY)]
        cached = {row[0]: row[1:] for row in self._do(lambda db: (row for part in parts for row in _rows(db, part)))}
        found = {}
        for path in paths:
            seal, image_hash = cached.get(os.fsencode(path), ("", ""))
            if image_hash and seal == _seal(path, _state(path), image_hash):
                found[path] = image_hash
        return found

    def remember(self, found: Mapping[Path, tuple[str, str]]) -> None:
        """Add files, path -> (state, hash)."""
        rows = [(os.fsencode(path), _seal(path, *pair), pair[1]) for path, pair in found.items()]
        self._do(lambda db: db.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows).fetchall())

    def _do(self, work: Any) -> list[Any]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=60)
            try:
                with connection:
                    connection.execute("CREATE TABLE IF NOT EXISTS digests (path BLOB PRIMARY KEY, seal TEXT, digest TEXT)")
                    return list(work(connection))
            finally:
                connection.close()
        except (sqlite3.Error, OSError) as error:  # without the cache every file is read
            warnings.warn(f"cannot use the hash cache {self.path}, so every image is read: {one_line(error)}", stacklevel=2)
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                self.path.unlink(missing_ok=True)  # damaged
            return []


def _rows(db: sqlite3.Connection, names: Sequence[bytes]) -> list[tuple[bytes, str, str]]:
    places = ",".join("?" * len(names))
    return db.execute(f"SELECT path, seal, digest FROM digests WHERE path IN ({places})", names).fetchall()


def image_hashes(examples: Examples, hash_cache: HashCache) -> ImageHashes:
    """Return the hash of each image (N,): of its file's bytes or its array's values, or if it has neither, of its pixels."""
    if examples.contents is None:
        pixels = (np.asarray(examples.load(source)) for source in examples.sources)
        return np.array([of_array(array) for array in pixels], HASH_DTYPE)
    files = Counter(Path(content).absolute() for content in examples.contents if isinstance(content, str | Path))
    file_hashes = _hash_files(list(files), hash_cache)
    found = []
    for source, content in zip(examples.sources, examples.contents, strict=True):
        path = Path(content).absolute() if isinstance(content, str | Path) else None
        content_hash = file_hashes[path] if path else of_array(content)  # type: ignore[arg-type]
        found.append(content_hash if _is_whole_content(source, path, files) else fingerprint(content_hash, source))
    return np.array(found, HASH_DTYPE)


def cached_hashes(examples: Examples) -> list[str]:
    """The hash of each image as `data.splitting.duplicates.content_hashes` gives it; of files, from the cache in the default store."""
    contents = examples.contents
    if contents is None or not all(isinstance(content, Path) for content in contents):
        return content_hashes(examples)
    paths = [Path(content).absolute() for content in contents if isinstance(content, Path)]
    found = _hash_files(list(dict.fromkeys(paths)), HashCache(Store().folder))
    return [found[path] for path in paths]


def _is_whole_content(source: Any, path: Path | None, files: Mapping[Path, int]) -> bool:
    """Whether the content alone decides the image. A source may also be a part of a file: a page, a frame, a box."""
    if path is None or isinstance(source, int):
        return isinstance(source, int | np.ndarray) and (path is None or files[path] == 1)
    return isinstance(source, str | Path) and Path(source).absolute() == path


def _hash_files(paths: Sequence[Path], hash_cache: HashCache) -> dict[Path, str]:
    known = hash_cache.recall(paths) if paths else {}
    unknown = [path for path in paths if path not in known]
    if not unknown:
        return known
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:  # reading and hashing release Python's lock
        read = dict(zip(unknown, pool.map(_read, unknown), strict=True))
    hash_cache.remember({path: pair for path, pair in read.items() if pair[0]})
    return known | {path: file_hash for path, (_, file_hash) in read.items()}


def _read(path: Path) -> tuple[str, str]:
    """Return (state, hash) of a file. The state is empty if a later change could go unnoticed."""
    before = _state(path)
    try:
        file_hash = of_bytes(path.read_bytes())
        recent = time.time_ns() - max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) < MIN_AGE_NS
    except OSError as error:
        raise BadImage(f"{shown(path)} cannot be read as an image: {one_line(error)}") from error
    return ("" if recent or _state(path) != before else before), file_hash


def _seal(path: Path, state: str, file_hash: str) -> str:
    """Checksum of an entry of the cache. It differs if the file has changed, or if the entry is damaged."""
    return of_bytes(os.fsencode(path) + f" {state} {file_hash}".encode())


def _state(path: Path) -> str:
    """Size, modification time, inode change time (which `touch -d` cannot set) and inode; empty if there is no file."""
    try:
        stat = os.stat(path)
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
