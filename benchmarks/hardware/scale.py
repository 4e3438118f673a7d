"""Many files and many classes: the second start on a folder, the memory of its images, the metrics of a step, and a long prediction.

python benchmarks/hardware/scale.py [--files 100000] [--classes 10000] [--rounds 3] [--out benchmarks/results/scale.json]

The files are small PNG images, each with other pixels. The first start reads them, and stores their headers and hashes; each further one
runs in a process of its own. CPU seconds are user + system.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from _measure import Row, compared, in_turn, machine, median, table, timed, written
from _options import count
from PIL import Image
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from ftlit.lit.metrics import SplitMetrics

START = """
import gc, os, resource, sys, tracemalloc
from ftlit.data.input_spec import InputSpec
from ftlit.features.image_hashes import HashCache, image_hashes
from ftlit.features.store import Store
from ftlit.lit.datamodules.image_sources import folder_data

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def cpu():
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])

gc.collect()
if sys.argv[2] == "objects":
    tracemalloc.start()
begin, before = cpu(), resident()
data = folder_data(InputSpec(), root=sys.argv[1])
hashes = {split: image_hashes(examples, HashCache(Store().folder)) for split, examples in data.collection.splits.items()}
seconds = cpu() - begin
gc.collect()
print(seconds, resident() - before, tracemalloc.get_traced_memory()[0])
"""


def write_images(folder: Path, number: int) -> None:
    """PNG files of 8x8 pixels in ten folders, one for each class."""
    for place in range(number):
        path = folder / str(place % 10) / f"{place:06}.png"
        if place < 10:
            path.parent.mkdir(parents=True)
        Image.frombytes("RGB", (8, 8), place.to_bytes(4, "little") * 48).save(path, compress_level=0)


def python(arguments: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    """Run Python, with a cache of its own and one thread."""
    environment = {**os.environ, "FTLIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr.strip())
    return done


def starts(files: int, rounds: int, folder: Path) -> list[Row]:
    """CPU time and memory of the second start."""
    write_images(folder / "images", files)
    found: dict[str, list[float]] = {"seconds": [], "process": [], "objects": []}
    for turn in range(rounds + 1):
        seconds, process, _ = map(float, python(["-c", START, str(folder / "images"), "time"], folder / "cache").stdout.split())
        print(f"start {turn + 1}: {seconds:.1f} s", file=sys.stderr, flush=True)
        if turn:
            found["seconds"].append(seconds)
            found["process"].append(process / files)
    found["objects"].append(float(python(["-c", START, str(folder / "images"), "objects"], folder / "cache").stdout.split()[2]) / files)
    names = {
        "seconds": (f"second start on {files:,} files: CPU time of their list, headers and hashes", "<= 5 s", "s"),
        "objects": ("memory of an image: objects of Python", "<= 400 B", "B"),
        "process": ("memory of an image: growth of the process", "<= 400 B", "B"),
    }
    return [
        Row(name, median(found[key]), None, None, limit, unit, samples={"ftlit": found[key]}) for key, (name, limit, unit) in names.items()
    ]


def metrics(classes: int, rounds: int) -> Row:
    """Seconds of the metrics of a step with many classes, against those of torchmetrics."""
    logits, targets, loss = torch.randn(32, classes), torch.randint(classes, (32,)), torch.tensor(1.0)
    ours = SplitMetrics(classes)
    theirs = MetricCollection([MulticlassAccuracy(classes, average="micro"), MulticlassF1Score(classes, average="macro")])
    sides: dict[str, Callable[[], float]] = {
        "ftlit": lambda: timed(lambda: ours.update(logits, targets, loss)),
        "torchmetrics": lambda: timed(lambda: theirs.update(logits, targets)),
    }
    in_turn(sides, 1)
    measure = f"metrics of a step with {classes:,} classes: ftlit / torchmetrics"
    return compared(measure, in_turn(sides, rounds), "ftlit", "torchmetrics", "")


PREDICT = """
import sys
from ftlit.cli.main import main

sys.argv[0] = "ftlit"
main()
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # getrusage counts the parent's memory too
print(peak.split()[1], file=sys.stderr)
"""


def predictions(files: int, folder: Path) -> Row:
    """Peak memory of `ftlit predict` on many images against that on a tenth of them."""
    cache, run = folder / "cache", folder / "run"
    python(["-m", "ftlit.cli.train", f"paths.run={run}", "report=false"], cache)
    images, peaks = sorted((folder / "images").glob("*/*.png")), {}
    for name, number in {"few": files // 10, "many": files}.items():
        inputs = folder / name
        inputs.mkdir()
        for path in images[:number]:
            os.link(path, inputs / path.name)
        words = ["predict", str(run), str(inputs), "--workers", "0"]
        peaks[name] = [1024 * float(python(["-c", PREDICT, *words], cache).stderr.split()[-1])]
    return compared(f"peak memory of ftlit predict: {files:,} images / {files // 10:,}", peaks, "many", "few", "<= 1.05", unit="B")


def main(arguments: Any = None) -> None:
    """Measure, print the table, and write it if `--out` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=count, default=100_000)
    parser.add_argument("--classes", type=count, default=10_000)
    parser.add_argument("--predicted", type=count, default=20_000)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        found = starts(given.files, given.rounds, Path(name))
        found += [metrics(given.classes, given.rounds), predictions(given.predicted, Path(name))]
    print(table(found))
    if given.out:
        written(given.out, machine(), {name: value for name, value in vars(given).items() if name != "out"}, found)


if __name__ == "__main__":
    main()
