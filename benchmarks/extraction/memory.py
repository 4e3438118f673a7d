"""Large cached features: memory of a training epoch and reading speed of shuffled batches.

python benchmarks/extraction/memory.py FOLDER ROWS: one epoch of a linear head, run by `feature_extraction.py --only memory`.
"""

import argparse
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
import torch
from _measure import Row, compared, in_turn
from torch import Tensor, nn
from torch.optim import SGD

from ftlit.data.samplers import BatchIndices, TrainOrder
from ftlit.features.batches import read_batches
from ftlit.features.spec import HASH_DTYPE, ImageHashes
from ftlit.features.store import Store
from ftlit.features.table import FeatureKey, FeatureTable, Rows, Writer

WIDTH, CLASSES, BLOCK = 2048, 10, 8192


def memory(given: argparse.Namespace, folder: Path) -> list[Row]:
    """Memory of an epoch in a child process, then reading speed compared with numpy on one plain file."""
    kept, plain = folder / "memory", folder / "memory.bin"
    write(kept, plain, given.rows)
    command = [sys.executable, __file__, str(kept), str(given.rows)]
    peaks = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(min(given.rounds, 2))]
    size = f"{given.rows:,} x {WIDTH:,} float32"
    worst = max(peaks, key=lambda peak: peak["peak"])
    found = [
        Row(
            f"memory: peak RssAnon, an epoch over {size}; compared with: before the store is opened",
            worst["peak"],
            worst["before"],
            None,
            "< 1.5 GB",
            "GB",
            f"memory: the epoch took {worst['seconds']:.1f} s, including {worst['opening']:.1f} s to open the store.",
            {"peak": [peak["peak"] for peak in peaks]},
        )
    ]
    rows, targets = opened(kept, given.rows)
    array = np.memmap(plain, np.float32, "r", shape=(given.rows, WIDTH))
    for size_of_batch in (256, 32):
        batches = list(itertools.islice(TrainOrder(range(given.rows), size_of_batch), given.batches))
        places = [np.array([index for _, index in batch]) for batch in batches]
        assert torch.equal(next(read_batches(batches, {"top": rows}, targets, torch.float32))[0].values, torch.from_numpy(array[places[0]]))
        sides = {
            "read_batches": lambda batches=batches: rate(batches, rows, targets),
            "numpy": lambda places=places: numpy_rate(places, array),
        }
        in_turn(sides, 1)  # warm-up: now the page cache holds these batches for both sides
        note = "memory: both sides read the same batches, from the page cache."
        measure = f"memory: {len(batches)} shuffled batches of {size_of_batch}, read_batches / numpy on one file"
        samples = in_turn(sides, given.rounds)
        found.append(compared(measure, samples, "read_batches", "numpy", ">= 0.8", unit="GB/s", note=note))
    return found


def write(folder: Path, plain: Path, count: int) -> None:
    """Write the same random rows to a feature table and to one plain file."""
    table, names = table_of(folder), digests(count)
    writer = Writer(table)
    with plain.open("wb") as file:
        for begin in range(0, count, BLOCK):
            own = names[begin : begin + BLOCK]
            values = np.random.default_rng(begin).random((len(own), WIDTH), np.float32)
            writer.add(own, torch.from_numpy(values))
            file.write(values.data)
    writer.flush()
    with Store(folder).locked([table]):
        table.refresh(check=False)
        table.merge()  # as at the end of every extraction pass


def opened(folder: Path, count: int) -> tuple[Rows, Tensor]:
    """The rows in the order of the images, and targets."""
    table = table_of(folder)
    table.refresh()
    return Rows(table, digests(count)), torch.arange(count) % CLASSES


def table_of(folder: Path) -> FeatureTable:
    return Store(folder).table(FeatureKey("0" * 32, torch.float32, (WIDTH,), {"cut": "top"}))


def digests(count: int) -> ImageHashes:
    return np.array([f"{number * 2654435761 % 2**32:032x}" for number in range(count)], HASH_DTYPE)  # unsorted, like hashes of images


def rate(batches: Sequence[BatchIndices], rows: Rows, targets: Tensor) -> float:
    """GB/s of `read_batches`."""
    begin = perf_counter()
    for _ in read_batches(batches, {"top": rows}, targets, torch.float32):
        pass
    return sum(map(len, batches)) * rows.row_bytes / 1e9 / (perf_counter() - begin)


def numpy_rate(places: Sequence[np.ndarray], array: np.ndarray) -> float:
    """GB/s of numpy."""
    begin = perf_counter()
    for own in places:
        array[own]
    return sum(map(len, places)) * array[0].nbytes / 1e9 / (perf_counter() - begin)


def rss_anon() -> float:
    """GB of anonymous memory of this process (not backed by files)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024 / 1e9


def epoch(folder: Path, count: int) -> None:
    """Train a linear head for an epoch and print the peak RssAnon."""
    before = peak = rss_anon()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, rss_anon())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = perf_counter()
    rows, targets = opened(folder, count)
    opening = perf_counter() - begin
    head = nn.Linear(WIDTH, CLASSES)
    optimizer = SGD(head.parameters(), 1e-3)
    for features, target in read_batches(TrainOrder(range(count), 256), {"top": rows}, targets, torch.float32):
        loss = nn.functional.cross_entropy(head(features.values), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = perf_counter() - begin
    done.set()
    watcher.join()
    print(json.dumps({"before": before, "peak": peak, "seconds": seconds, "opening": opening}))


if __name__ == "__main__":
    epoch(Path(sys.argv[1]), int(sys.argv[2]))
