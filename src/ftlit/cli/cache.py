"""Show, check and remove stored features: the commands of `ftlit cache`."""

import time

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ftlit.errors import one_line
from ftlit.features.shard import Damaged, read_shard
from ftlit.features.store import Store, StoredTable
from ftlit.formatting import size_in_words
from ftlit.printing import print_line
from ftlit.printing import show as show_table

SECONDS_PER_DAY = 86400.0


def show(folder: str | None) -> None:
    """Print a row for each feature table that holds something, the last used first, and the total."""
    store = Store(folder)
    stored = [table for table in store.tables() if table.shards]
    rows = Table("key", "cut", "features", "view", "weights", "images", "size", "last used", box=SIMPLE_HEAD)
    for table in stored:
        about = table.about
        shape = "x".join(map(str, about.get("shape", "?"))) + f" {about.get('dtype', '')}"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(table.used))
        row = (table.digest[:8], about.get("cut", "?"), shape, about.get("view", "?"), about.get("weights", "?"))
        rows.add_row(*row, f"{table.images:,}", size_in_words(table.bytes), used)
    if stored:
        show_table(rows)
    size = size_in_words(sum(table.bytes for table in stored))
    print_line(f"{_count(len(stored), 'feature table')}, {size}: {store.folder}")


def verify(folder: str | None) -> int:
    """Read every shard and remove damaged ones, a line each. Returns 1 where one was damaged, else 0."""
    store, damaged, sound = Store(folder), 0, 0
    for table in store.tables():
        for path in table.shards:
            try:
                read_shard(path)
                sound += 1
            except FileNotFoundError:  # merged or removed by another process
                continue
            except OSError as error:
                damaged += 1
                print(f"cannot be read: {path} ({one_line(error)})")
            except Damaged as reason:
                damaged += 1
                print(f"damaged and removed: {path} ({reason})")
                path.unlink(missing_ok=True)
    print(f"{_count(sound, 'intact shard')}, {damaged} damaged: {store.folder}")
    return min(damaged, 1)


def prune(folder: str | None, *, unused: float | None, max_gb: float | None) -> None:
    """Remove feature tables, a line each; those in use by a process stay.

    Args:
        folder: of the store; `None` for the default one.
        unused: remove tables that were not used for this number of days.
        max_gb: then remove those not used for the longest time, until at most this many GB are left.
    """
    store = Store(folder)
    left, freed = sum(table.bytes for table in store.tables()), 0
    for table in reversed(store.tables()):
        old = unused is not None and time.time() - table.used >= unused * SECONDS_PER_DAY
        if old or (max_gb is not None and left > max_gb * 1e9):
            if not store.remove(table.digest):
                print(f"in use, kept: {_line(table)}")
                continue
            if table.shards:
                print(f"removed: {_line(table)}")
            left, freed = left - table.bytes, freed + table.bytes
    print(f"{size_in_words(freed)} freed, {size_in_words(left)} left: {store.folder}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _line(table: StoredTable) -> str:
    about = table.about
    cut, weights = about.get("cut", "?"), about.get("weights", "?")
    return f"{table.digest[:8]}, {cut} of {weights}, {table.images:,} images, {size_in_words(table.bytes)}"
