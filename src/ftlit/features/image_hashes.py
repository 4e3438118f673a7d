"""The digest of each image's content: what its features are found by.

The digests of files are remembered by path, size and times, so that a second run reads none of them.
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
from ftlit.data.images import BadImage, shown
from ftlit.errors import one_line
from ftlit.features.spec import DIGEST, Digests
from ftlit.fingerprint import fingerprint, of_array, of_bytes

ASKED = 500  # paths at once: SQLite takes 999 in its older versions
RACY = 2_000_000_000  # ns: a file changed so short a time ago may be changed again without another time


class HashCache:
    """The digests of files, in one SQLite file. It may be removed at any time, and what cannot be read of it counts as nothing.

    Args:
        folder: where `images.sqlite` is.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "images.sqlite"

    def recall(self, paths: Sequence[Path]) -> dict[Path, str]:
        """The digests of those files that are as they were when they were remembered."""
        names = [os.fsencode(path) for path in paths]
        parts = [names[i : i + ASKED] for i in range(0, len(names), ASKED)]
        held = {row[0]: row[1:] for row in self._do(lambda db: (row for part in parts for row in _rows(db, part)))}
        found = {}
        for path in paths:
            seal, digest = held.get(os.fsencode(path), ("", ""))
            if digest and seal == _seal(path, _state(path), digest):
                found[path] = digest
        return found

    def remember(self, found: Mapping[Path, tuple[str, str]]) -> None:
        """Take up state and digest of each file."""
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
        except (sqlite3.Error, OSError) as error:  # only a memory: without it every file is read
            warnings.warn(f"{self.path} cannot be used, every image is read: {one_line(error)}", stacklevel=2)
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                self.path.unlink(missing_ok=True)  # damaged
            return []


def _rows(db: sqlite3.Connection, names: Sequence[bytes]) -> list[tuple[bytes, str, str]]:
    places = ",".join("?" * len(names))
    return db.execute(f"SELECT path, seal, digest FROM digests WHERE path IN ({places})", names).fetchall()


def digests_of(examples: Examples, memory: HashCache) -> Digests:
    """The digest of each image: of its file's bytes or of its array's values; where neither can be told, of its pixels."""
    if examples.contents is None:
        pixels = (np.asarray(examples.load(source)) for source in examples.sources)
        return np.array([of_array(array) for array in pixels], DIGEST)
    files = Counter(Path(content).absolute() for content in examples.contents if isinstance(content, str | Path))
    known = _of_files(list(files), memory)
    found = []
    for source, content in zip(examples.sources, examples.contents, strict=True):
        path = Path(content).absolute() if isinstance(content, str | Path) else None
        digest = known[path] if path else of_array(content)  # type: ignore[arg-type]
        found.append(digest if _says_no_more(source, path, files) else fingerprint(digest, source))
    return np.array(found, DIGEST)


def _says_no_more(source: Any, path: Path | None, files: Mapping[Path, int]) -> bool:
    """Whether the content alone decides the picture; a source may be a part of a file as well: a page, a frame, a box."""
    if path is None or isinstance(source, int):
        return isinstance(source, int | np.ndarray) and (path is None or files[path] == 1)
    return isinstance(source, str | Path) and Path(source).absolute() == path


def _of_files(paths: Sequence[Path], memory: HashCache) -> dict[Path, str]:
    known = memory.recall(paths) if paths else {}
    unknown = [path for path in paths if path not in known]
    if not unknown:
        return known
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:  # reading and hashing let go of Python's lock
        read = dict(zip(unknown, pool.map(_read, unknown), strict=True))
    memory.remember({path: pair for path, pair in read.items() if pair[0]})
    return known | {path: digest for path, (_, digest) in read.items()}


def _read(path: Path) -> tuple[str, str]:
    """(state, digest); the state is empty where a later change could go unnoticed."""
    before = _state(path)
    try:
        digest = of_bytes(path.read_bytes())
        racy = time.time_ns() - max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) < RACY
    except OSError as error:
        raise BadImage(f"{shown(path)} cannot be read as an image: {one_line(error)}") from error
    return ("" if racy or _state(path) != before else before), digest


def _seal(path: Path, state: str, digest: str) -> str:
    """What tells a row of the memory that is true from one that is not: the file is another now, or the memory is damaged."""
    return of_bytes(os.fsencode(path) + f" {state} {digest}".encode())


def _state(path: Path) -> str:
    """What changes with a file: size, time of its content, time of its inode (which `touch -d` cannot set)."""
    try:
        stat = os.stat(path)
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
