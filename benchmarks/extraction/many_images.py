"""Time and memory of each part of a run on many images: python benchmarks/extraction/many_images.py

python benchmarks/extraction/many_images.py [--images 10000,100000,1000000] [--rows 100000] [--out benchmarks/results/many_images.json]

Writes small JPEG files (16 pixels; 4 GB on a disk with blocks of 4 KiB for a million) of 1,000 classes to `--work`, and starts
`train.py` on them twice with `backbone=glyph`: `head=linear` for one epoch on cached features, after a pass over all images; then
`scenario=small_similar`, a fitted head and a report, whose first part is the second start on this folder. A part ends with a line that the
program prints. Memory is the largest anonymous memory (RssAnon) of the process and its workers together, measured ten times a second. CPU
seconds are those of the process and its workers. Growth is the exponent g of CPU seconds = c * images^g between two numbers of images.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
from _measure import machine, written
from _options import count
from PIL import Image

CLASSES, SIDE, PATCHES, NOISE = 1000, 16, 4, 80
TRAIN = Path(__file__).parents[2] / "train.py"
GATE = 1.1  # of the growth
FIRST, SECOND = "first start", "second start"
COMMANDS = {  # -> words, and name of a part -> beginning of the line with which it ends
    FIRST: (
        ["scenario=large_similar", "schedule=head_only", "head=linear", "trainer.max_epochs=1", "report=false"],
        {
            "list, check, digests, split, plan": "resume",
            "one pass over the images of train and val": "features of",
            "an epoch of the head on cached features; val; a pass over test": "trained in",
        },
    ),
    SECOND: (
        ["scenario=small_similar"],
        {
            "second start: list, check, digests, split, plan": "resume",
            "read the features, fit the linear probe": "fitted",
            "features and scores of test, report": "report:",
        },
    ),
}


def write_images(folder: Path, number: int) -> None:
    """JPEG files in a folder for each class: its own 4x4 colours with noise."""
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 216, (CLASSES, PATCHES, PATCHES, 3))
    for place in range(number):
        label, times = place % CLASSES, SIDE // PATCHES
        if place < CLASSES:
            (folder / f"{label:03}").mkdir(parents=True)
        noisy = np.clip(colours[label] + rng.normal(0, NOISE, colours[label].shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy.repeat(times, 0).repeat(times, 1)).save(folder / f"{label:03}" / f"{place:07}.jpg", quality=75)


class Memory(threading.Thread):
    """The largest anonymous memory, in bytes, of a process and its children since `take` was called."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.process, self.most, self.ended = process, 0, False

    def run(self) -> None:
        """Measure until `ended`."""
        while not self.ended:
            self.most = max(self.most, sum(map(_anonymous, [self.process, *_children(self.process)])))
            time.sleep(0.1)

    def take(self) -> int:
        """The most so far; begin again."""
        most, self.most = self.most, 0
        return most


def _cpu_seconds(process: int) -> float:
    """User and system time of a process, its children and those that have ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # a child that has ended, whose time its parent has
        return 0.0
    own = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return own + sum(_cpu_seconds(child) for child in _children(process))


def _anonymous(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def _children(process: int) -> list[int]:
    try:
        own = [int(text) for text in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
    return own + [other for child in own for other in _children(child)]


def parts_of(command: str, images: Path, work: Path, rows: int) -> Iterator[dict[str, Any]]:
    """Run a command; seconds and bytes of each of its parts."""
    words, parts = COMMANDS[command]
    folder = work / command.replace(" ", "_")
    options = ["backbone=glyph", "data=folder", f"data.root={images}", "trainer=cpu", f"probe.rows={rows}", f"hydra.run.dir={folder}"]
    environment = {**os.environ, "FTLIT_CACHE": str(work / "cache"), "PYTHONUNBUFFERED": "1"}
    begun, before = time.perf_counter(), 0.0
    with subprocess.Popen([sys.executable, str(TRAIN), *options, *words], stdout=subprocess.PIPE, text=True, env=environment) as process:
        memory = Memory(process.pid)
        memory.start()
        left = dict(parts)
        for line in process.stdout or ():
            ended = [name for name, end in left.items() if line.startswith(end)][:1]
            for name in ended:
                now, cpu = time.perf_counter(), _cpu_seconds(process.pid)
                yield {"part": name, "seconds": now - begun, "cpu_seconds": cpu - before, "bytes": memory.take()}
                begun, before = now, cpu
                del left[name]
        memory.ended = True
    if process.returncode or left:
        sys.exit(f"{command}: exit status {process.returncode}, not seen: {', '.join(left)}")


def measured(numbers: Sequence[int], work: Path, probe_rows: int) -> Iterator[dict[str, Any]]:
    """A row for each number of images and part."""
    for number in sorted(numbers):
        own = work / str(number)
        images = own / "images"
        if not images.is_dir():
            write_images(images, number)
        for command in COMMANDS:
            for row in parts_of(command, images, own, probe_rows):
                yield {"images": number, "command": command, **row}
                print(f"{number:,}, {row['part']}: {_cell(row)}", file=sys.stderr, flush=True)


def _cell(row: dict[str, Any]) -> str:
    return f"{row['seconds']:.1f} s ({row['cpu_seconds']:.1f} CPU s), {row['bytes'] / 2**30:.2f} GiB"


def growth(seconds: dict[int, float]) -> float | None:
    """The exponent of CPU seconds between the two largest numbers of images."""
    *_, few, many = [None, None, *sorted(seconds)]
    return None if few is None or many is None else math.log(seconds[many] / seconds[few]) / math.log(many / few)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Time and memory of each part by the number of images, and its growth."""
    numbers = sorted({row["images"] for row in rows})
    lines = ["| part | " + " | ".join(f"{number:,} images" for number in numbers) + " | growth |", "|---" * (len(numbers) + 2) + "|"]
    for name in dict.fromkeys(row["part"] for row in rows):
        own = {row["images"]: row for row in rows if row["part"] == name}
        cells = [_cell(own[n]) if n in own else "" for n in numbers]
        exponent = growth({number: row["cpu_seconds"] for number, row in own.items()})
        lines.append(f"| {name} | {' | '.join(cells)} | {'' if exponent is None else f'{exponent:.2f}'} |")
    return "\n".join(lines)


def main(arguments: Any = None) -> None:
    """Measure, print the table, and write it if `--out` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="10000,100000,1000000")
    parser.add_argument("--rows", type=count, default=100_000, help="images that the probe is fitted on (probe.rows)")
    parser.add_argument("--work", type=Path, help="folder of images and features, which stay; default: a temporary one")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args(arguments)
    numbers = [count(text) for text in given.images.split(",")]
    with tempfile.TemporaryDirectory() as own:
        rows = []
        for row in measured(numbers, given.work or Path(own), given.rows):
            rows.append(row)
            if given.out:  # now: a part may take hours
                written(given.out, machine(), {"images": given.images, "classes": CLASSES, "rows": given.rows}, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
