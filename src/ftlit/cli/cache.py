"""What `ftlit cache` does: show, check and remove stored features."""

import sys
import time

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ftlit.features.shard import Damaged, read_shard
from ftlit.features.store import Store, StoredTable
from ftlit.formatting import size_in_words

DAY = 86400.0


def show(folder: str | None) -> None:
    """Print a row for each column that holds something, the last used first, and the total."""
    store = Store(folder)
    kept = [column for column in store.kept() if column.shards]
    table = Table("key", "cut", "features", "view", "weights", "images", "size", "last used", box=SIMPLE_HEAD)
    for column in kept:
        about = column.about
        shape = "x".join(map(str, about.get("shape", "?"))) + f" {about.get('dtype', '')}"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(column.used))
        row = (column.key[:8], about.get("cut", "?"), shape, about.get("view", "?"), about.get("weights", "?"))
        table.add_row(*row, f"{column.images:,}", size_in_words(column.bytes), used)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if kept:
        console.print(table)
    size = size_in_words(sum(column.bytes for column in kept))
    console.print(f"{_count(len(kept), 'column')}, {size}: {store.folder}", soft_wrap=True)


def verify(folder: str | None) -> int:
    """Read every shard and remove what is damaged, a line each. Returns 1 where something was, else 0."""
    store, damaged, sound = Store(folder), 0, 0
    for column in store.kept():
        for path in column.shards:
            try:
                read_shard(path)
                sound += 1
            except FileNotFoundError:  # merged or removed by another process
                continue
            except Damaged as reason:
                damaged += 1
                print(f"damaged and removed: {path} ({reason})")
                path.unlink(missing_ok=True)
    print(f"{_count(sound, 'sound shard')}, {damaged} damaged: {store.folder}")
    return min(damaged, 1)


def prune(folder: str | None, *, unused: float | None, max_gb: float | None) -> None:
    """Remove columns, a line each; those in use by a process stay.

    Args:
        folder: of the store.
        unused: all that were not used for so many days.
        max_gb: then those that were not used for longest, until no more than so much is left.
    """
    store = Store(folder)
    left, freed = sum(column.bytes for column in store.kept()), 0
    for column in reversed(store.kept()):
        old = unused is not None and time.time() - column.used >= unused * DAY
        if old or (max_gb is not None and left > max_gb * 1e9):
            if not store.remove(column.key):
                print(f"in use, kept: {_line(column)}")
                continue
            if column.shards:
                print(f"removed: {_line(column)}")
            left, freed = left - column.bytes, freed + column.bytes
    print(f"{size_in_words(freed)} freed, {size_in_words(left)} left: {store.folder}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _line(column: StoredTable) -> str:
    about = column.about
    return (
        f"{column.key[:8]}, {about.get('cut', '?')} of {about.get('weights', '?')}, {column.images:,} images, {size_in_words(column.bytes)}"
    )
