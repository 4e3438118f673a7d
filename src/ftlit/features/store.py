"""Features on disk: columns of rows, in shards that are whole or not there.

A column holds the features of one kind (weights, cut, view, dtype: its key) of any number of images; a row is found by the digest of
its image. A shard is a safetensors file with some rows, written beside, checksummed and renamed, and mapped into memory to be read.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from filelock import FileLock, Timeout

from ftlit.errors import UserError, one_line
from ftlit.features.shard import rows_of
from ftlit.features.table import FeatureKey, FeatureTable

KEY = re.compile("[0-9a-f]{32}")


class Store:
    """A folder of columns, shared by runs, jobs and processes.

    Args:
        folder: made when something is stored. `None`: what the environment variable `FTLIT_CACHE` says, else `~/.cache/ftlit`.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder or os.environ.get("FTLIT_CACHE") or "~/.cache/ftlit").expanduser().absolute()

    def check(self) -> None:
        """Raise `UserError` where nothing can be stored here. Makes the folder."""
        with _usable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self._locks()):
                pass

    def column(self, kind: FeatureKey) -> FeatureTable:
        """The column of this kind; it is made where it is not there yet."""
        column = FeatureTable(self.folder / kind.key, kind)
        with _usable(self.folder):
            _make(column)
        with suppress(OSError):  # somebody else's, to be read
            os.utime(column.folder)  # when it was last used
        return column

    @contextmanager
    def locked(self, columns: Sequence[FeatureTable]) -> Iterator[None]:
        """While this lasts, no other process writes to these columns. Kernel locks: they end with the process that holds them."""
        held = self.try_lock(columns, seconds=0)
        if held is None:
            print(f"ftlit: another process computes these features: waiting for {self.folder}", flush=True)
            held = self.try_lock(columns, seconds=-1)
        assert held is not None
        with held:
            yield

    def try_lock(self, columns: Sequence[FeatureTable], seconds: float) -> ExitStack | None:
        """The locks of `locked`, to be closed; `None` where they are not to be had in so many seconds (-1: waits as long as it takes)."""
        with ExitStack() as stack, _usable(self.folder):
            once = {column.folder: column for column in columns}
            for folder, column in sorted(once.items()):  # in one order, so that two never wait for each other
                try:
                    stack.enter_context(self._lock(folder.name).acquire(timeout=seconds))
                except Timeout:
                    return None
                _make(column)  # it may have been removed while this process waited
                for part in folder.glob("*.part"):  # of a process that was killed
                    part.unlink(missing_ok=True)
            return stack.pop_all()

    def kept(self) -> list["StoredTable"]:
        """The columns there are, the last used first."""
        folders = self.folder.iterdir() if self.folder.is_dir() else ()
        found = (StoredTable.of(folder) for folder in folders if KEY.fullmatch(folder.name))
        return sorted(filter(None, found), key=lambda kept: -kept.used)

    def remove(self, key: str) -> bool:
        """Remove a column, unless a process is writing to it. A process that reads it goes on: what it has mapped stays until it ends."""
        try:
            with self._lock(key).acquire(timeout=0):
                shutil.rmtree(self.folder / key)
            return True
        except Timeout:
            return False

    def _lock(self, key: str) -> FileLock:
        return FileLock(self._locks() / f"{key}.lock")  # the file stays: to remove it would open a gap between two that want it

    def _locks(self) -> Path:
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass(frozen=True)
class StoredTable:
    """A column on disk: its key, what it is, shards, images (of whole headers), bytes, and when it was last used (seconds since 1970)."""

    key: str
    about: dict[str, Any]
    shards: list[Path]
    images: int
    bytes: int
    used: float

    @classmethod
    def of(cls, folder: Path) -> "StoredTable | None":
        """Read names, sizes and headers; no features. `None` where another process has removed it."""
        shards = sorted(folder.glob("*.safetensors"))
        try:
            about = json.loads((folder / "about.json").read_text())
        except (OSError, ValueError):
            about = {}
        try:
            return cls(folder.name, about, shards, sum(map(rows_of, shards)), sum(_size(path) for path in shards), folder.stat().st_mtime)
        except FileNotFoundError:
            return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # removed by another process
        return 0


def _make(column: FeatureTable) -> None:
    """The folder of a column, and what it is in words, where they are not there."""
    note = column.folder / "about.json"
    column.folder.mkdir(parents=True, exist_ok=True)
    if not note.is_file():
        beside = note.with_suffix(f".{os.getpid()}.new")  # not .part: who holds the lock removes those
        beside.write_text(json.dumps(column.about, indent=1, ensure_ascii=False))
        beside.replace(note)


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """An error of the file system in one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder} cannot hold features ({one_line(error)}): give another folder (on the command line cache.folder=, or cache=none)"
        ) from error
