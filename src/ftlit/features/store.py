"""Features on disk: a folder of feature tables, with their locks.

A feature table holds the features of any number of images under one key (weights, cut, pooling, view, dtype). A row is found by the hash
of its image. The rows are in shards: safetensors files, each written beside, checksummed, renamed, and mapped into memory to be read.
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
from ftlit.formats import NewerFormat, read_json, with_format
from ftlit.plain_arguments import plain_arguments

DIGEST = re.compile("[0-9a-f]{32}")


class Store:
    """A folder of feature tables, shared by runs, jobs and processes.

    Args:
        folder: made when something is stored. `None`: the environment variable `FTLIT_CACHE`, or else `~/.cache/ftlit`.
        trust: use the files of other users too. Who can write features can decide what a network learns.
    """

    @plain_arguments
    def __init__(self, folder: str | Path | None = None, *, trust: bool = False) -> None:
        self.folder = Path(folder or os.environ.get("FTLIT_CACHE") or "~/.cache/ftlit").expanduser().absolute()
        self.trust = trust

    def check(self) -> None:
        """Raise `UserError` if nothing can be stored here. Makes the folder."""
        with _usable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self._locks()):
                pass

    def table(self, key: FeatureKey) -> FeatureTable:
        """Return the feature table of this key; make it if it does not exist yet."""
        table = FeatureTable(self.folder / key.digest, key, trust=self.trust)
        with _usable(self.folder):
            _make(table)
        with suppress(OSError):  # a table of another user, which can be read
            os.utime(table.folder)  # the time of the last use
        return table

    @contextmanager
    def locked(self, tables: Sequence[FeatureTable]) -> Iterator[None]:
        """Keep other processes from writing to these tables. These are kernel locks: they end with the process that holds them."""
        locks = self.try_lock(tables, seconds=0)
        if locks is None:
            print(f"ftlit: waiting for another process that is computing these features in {self.folder}", flush=True)
            locks = self.try_lock(tables, seconds=-1)
        assert locks is not None
        with locks:
            yield

    def try_lock(self, tables: Sequence[FeatureTable], seconds: float) -> ExitStack | None:
        """Return the locks of `locked`, to be closed; `None` if they are not free within `seconds` (-1: wait without limit)."""
        with ExitStack() as stack, _usable(self.folder):
            unique = {table.folder: table for table in tables}
            for folder, table in sorted(unique.items()):  # always in one order, so that two processes never wait for each other
                try:
                    stack.enter_context(self._lock(folder.name).acquire(timeout=seconds))
                except Timeout:
                    return None
                _make(table)  # it may have been removed while this process waited
                for part in folder.glob("*.part"):  # left by a process that was killed
                    with suppress(PermissionError):  # another user's
                        part.unlink(missing_ok=True)
            return stack.pop_all()

    def tables(self) -> list["StoredTable"]:
        """List the feature tables in the folder, the last used first."""
        folders = self.folder.iterdir() if self.folder.is_dir() else ()
        found = (StoredTable.of(folder) for folder in folders if DIGEST.fullmatch(folder.name))
        return sorted(filter(None, found), key=lambda table: -table.used)

    def remove(self, digest: str) -> bool:
        """Remove the table with this digest, unless a process writes to it. Mapped files stay readable."""
        try:
            with self._lock(digest).acquire(timeout=0):
                shutil.rmtree(self.folder / digest)
            return True
        except Timeout:
            return False

    def _lock(self, digest: str) -> FileLock:
        return FileLock(self._locks() / f"{digest}.lock")  # the file is never removed: two processes could then hold two locks

    def _locks(self) -> Path:
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass(frozen=True)
class StoredTable:
    """A feature table on disk.

    Args:
        digest: of its key; the name of its folder.
        about: what it holds, as `about.json` describes it.
        shards: its files.
        images: number of images in the shards whose headers are whole.
        bytes: size of the shards.
        used: time of the last use, in seconds since 1970.
    """

    digest: str
    about: dict[str, Any]
    shards: list[Path]
    images: int
    bytes: int
    used: float

    @classmethod
    def of(cls, folder: Path) -> "StoredTable | None":
        """Read names, sizes and headers, but no features. `None` if another process has removed the table."""
        shards = sorted(folder.glob("*.safetensors"))
        try:
            about = read_json(folder / "about.json")
        except NewerFormat:  # a store may be shared with a newer version
            about = {"weights": "written by a newer ftlit"}
        except UserError:
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


def _make(table: FeatureTable) -> None:
    """Make the folder of a table and its description, if they do not exist."""
    description = table.folder / "about.json"
    table.folder.mkdir(parents=True, exist_ok=True)
    if not description.is_file():
        beside = description.with_suffix(f".{os.getpid()}.new")  # not .part: the process that holds the lock removes those
        beside.write_text(json.dumps(with_format(table.about), indent=1, ensure_ascii=False))
        beside.replace(description)


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot store features in {folder} ({error.strerror or one_line(error)}): use another folder (cache.folder=...), or store no "
            "features (cache=none)"
        ) from error
