"""What was read from image files, remembered by path, size, times and inode, so that a second run reads no file."""

import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ftlit.data.file_paths import texts_of
from ftlit.errors import one_line
from ftlit.files import is_foreign
from ftlit.identity.fingerprint import of_bytes

PATHS_PER_QUERY = 500  # older versions of SQLite take 999 parameters
FILES_PER_TASK = 64  # of a thread
MIN_AGE_NS = 2_000_000_000  # a file that changed more recently may change again with the same time stamps


class FileCache:
    """A text for each file, in a table of one SQLite file. It may be removed at any time, and entries that cannot be read are ignored.

    Args:
        folder: holds `images.sqlite`.
        table: name of the table.
        trust: use the file of another user too; otherwise there is one beside it.
    """

    def __init__(self, folder: Path, table: str, *, trust: bool = False) -> None:
        self.table = table
        self.path = folder / "images.sqlite"
        if not trust and self.path.exists() and is_foreign(self.path):
            self.path = self.path.with_stem(f"images-{os.getuid()}")

    def texts(self, paths: Sequence[Path], read: Callable[[Path], str]) -> list[str]:
        """The text of each file: remembered where the file has not changed, else read in threads, and remembered.

        Args:
            paths: of the files.
            read: path -> text; an empty text is not remembered. What it raises ends the reading.
        """
        return self.completed(paths, self.recall(paths) if paths else [], read)

    def completed(self, paths: Sequence[Path], known: list[str], read: Callable[[Path], str]) -> list[str]:
        """The text of each file: the known one where it is not empty, else as in `texts`."""
        if all(known):
            return known
        unknown = list(dict.fromkeys(path for path, text in zip(paths, known, strict=True) if not text))
        parts = [unknown[i : i + FILES_PER_TASK] for i in range(0, len(unknown), FILES_PER_TASK)]
        with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:  # reading and hashing release Python's lock
            pairs = [pair for part in pool.map(lambda part: [_read(path, read) for path in part], parts) for pair in part]
        found = dict(zip(unknown, pairs, strict=True))
        self.remember({path: pair for path, pair in found.items() if all(pair)})
        return [text or found[path][1] for path, text in zip(paths, known, strict=True)]

    def recall(self, paths: Sequence[Path]) -> list[str]:
        """Return the text of each file that has not changed since it was added, and an empty text for the others."""
        return [text for text, _ in self._recalled(paths)]

    def recall_both(self, paths: Sequence[Path], other: str) -> list[tuple[str, str]]:
        """For each file its text, and the one that another table has too, as `recall` does, with one look at each file."""
        return self._recalled(paths, other)

    def _recalled(self, paths: Sequence[Path], other: str = "") -> list[tuple[str, str]]:
        columns, joined = ("b.seal, b.digest", f" LEFT JOIN {other} b ON a.path = b.path") if other else ("'', ''", "")

        def found(db: sqlite3.Connection) -> Iterator[tuple[str, str]]:
            if other:
                _create(db, other)
            last = ""
            for first in range(0, len(paths), PATHS_PER_QUERY):
                names = _names(paths[first : first + PATHS_PER_QUERY])
                marks = ",".join("?" * len(names))
                query = f"SELECT a.path, a.seal, a.digest, {columns} FROM {self.table} a{joined} WHERE a.path IN ({marks})"
                stored = {name: texts for name, *texts in db.execute(query, names)}
                for name in names:
                    seal, text, other_seal, other_text = stored.get(name, ("", "", "", ""))
                    state = _state(name) if text else ""
                    text = text if text and seal == _seal(name, state, text) else ""
                    other_text = other_text if other_text and other_seal == _seal(name, state, other_text) else ""
                    last = text if text != last else last  # most headers are equal: one text for all
                    yield last, other_text

        return self._do(found) or [("", "")] * len(paths)

    def remember(self, found: Mapping[Path, tuple[str, str]]) -> None:
        """Add files, path -> (state, text)."""
        rows = [(name, _seal(name, *pair), pair[1]) for name, pair in zip(_names(found), found.values(), strict=True)]
        self._do(lambda db: db.executemany(f"INSERT OR REPLACE INTO {self.table} VALUES (?, ?, ?)", rows).fetchall())

    def _do(self, work: Any) -> list[Any]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=60)
            try:
                with connection:
                    _create(connection, self.table)
                    return list(work(connection))
            finally:
                connection.close()
        except (sqlite3.Error, OSError) as error:  # without the cache every file is read
            warnings.warn(f"cannot use the file cache {self.path} ({one_line(error)}), so every image file is read again", stacklevel=2)
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                self.path.unlink(missing_ok=True)  # damaged
            return []


def _create(db: sqlite3.Connection, table: str) -> None:
    db.execute(f"CREATE TABLE IF NOT EXISTS {table} (path BLOB PRIMARY KEY, seal TEXT, digest TEXT)")


def _names(paths: Iterable[Path]) -> list[bytes]:
    """The absolute paths: folders of equal names in several projects share the cache."""
    here = os.path.join(os.getcwdb(), b"")
    return [name if name.startswith(b"/") else here + name for name in map(os.fsencode, texts_of(paths))]


def _read(path: Path, read: Callable[[Path], str]) -> tuple[str, str]:
    """Return (state, text) of a file. The state is empty if a later change could go unnoticed."""
    before = _state(path)
    text = read(path)
    return (before if before == _state(path) and not _is_recent(path) else ""), text


def _is_recent(path: Path) -> bool:
    try:
        stat = os.stat(path)
    except OSError:
        return True
    return time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) < MIN_AGE_NS


def _seal(name: bytes, state: str, text: str) -> str:
    """Checksum of an entry of the cache. It differs if the file has changed, or if the entry is damaged."""
    return of_bytes(name + f" {state} {text}".encode())


def _state(path: Path | bytes) -> str:
    """Size, modification time, inode change time (which `touch -d` cannot set) and inode; empty if there is no file."""
    try:
        stat = os.stat(path)
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
