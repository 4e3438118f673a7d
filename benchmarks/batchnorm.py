"""Which policy of batch norm to take: test accuracy against the size of the batch, and on images that look unlike the pretraining's.

python benchmarks/batchnorm.py --data DATA --work FOLDER [--quick] [--out benchmarks/results/batchnorm.json]

`scenario=large_similar` (a solved head, then everything trains for 5 epochs) with `batchnorm=live|frozen_stats|frozen|affine` at the same
rate: digits with the glyph, photos of DATA/images with ImageNet's mobilenet_v2. Shifted images are so in train, val and test. Runs that
FOLDER/batchnorm.jsonl holds are not run again.
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _ledger import Ledger, best_of, cell, days, difference, summary
from _measure import machine, stamp, written
from _options import count, ended, existing, stoppable
from PIL import Image, ImageFilter, ImageOps
from quality import digits, split
from systems.ours import run
from systems.task import Task

POLICIES = ("live", "frozen_stats", "frozen", "affine")
PLAIN = "as they are"
SHIFTS = {
    "inverted": ImageOps.invert,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(max(image.size) / 16)),
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
}


@dataclass(frozen=True)
class Set:
    """Images: of which folder, how many a class, changed how, and in batches of how many."""

    source: str
    per_class: int
    shifts: Sequence[str] = (PLAIN,)
    batches: Sequence[int] = (8, 32)


SETS = {
    "digits, 20 a class": Set("digits", 20, (PLAIN, "inverted", "blurred"), (2, 4, 8, 32)),
    "hymenoptera, 20 a class": Set("hymenoptera", 20, (PLAIN, "grey"), (2, 4, 8, 32)),
    "digits, 100 a class": Set("digits", 100),
    "malaria, 100 a class": Set("malaria", 100),
}
NAMES = ("data", "shift", "batch", "batchnorm", "seed")
EPOCHS, LOG = 5, "log.txt"
PHOTOS = {"backbone": "mobilenet_v2", "weights": "weights/mobilenetv2_imagenet_torchvision.pth"}
# these weights were trained on images from -1 to 1, unlike torchvision's own
HALVES = ("backbone.input_spec.mean=[0.5,0.5,0.5]", "backbone.input_spec.std=[0.5,0.5,0.5]")
Key = tuple[str, str, int, str, int]


def keys(names: Sequence[str], seeds: int) -> Iterator[Key]:
    """Every run that is wanted."""
    for seed in range(seeds):
        for name in names:
            for shift in SETS[name].shifts:
                for batch in SETS[name].batches:
                    for policy in POLICIES:
                        yield name, shift, batch, policy, seed


def shifted(source: Path, target: Path, shift: str) -> Path:
    """Copies of all images below `source`, changed."""
    for file in (path for path in source.rglob("*") if path.is_file()):
        place = target / f"{file.relative_to(source)}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        SHIFTS[shift](Image.open(file).convert("RGB")).save(place)
    return target


def measured(key: Key, data: Path, work: Path) -> dict[str, Any]:
    """One run: accuracy and seconds."""
    name, shift, batch, policy, seed = key
    photos = SETS[name].source != "digits"
    source = data / "images" / SETS[name].source if photos else digits(work / "digits")
    with tempfile.TemporaryDirectory(dir=work) as place, (work / LOG).open("a") as log:
        root = split(source, Path(place, "plain"), SETS[name].per_class, seed)
        if shift != PLAIN:
            root = shifted(root, Path(place, "shifted"), shift)
        backbone = PHOTOS["backbone"] if photos else "glyph"
        weights = str(data / PHOTOS["weights"]) if photos else None
        task = Task(str(root), backbone, weights, EPOCHS, seed, flips=photos)
        words = ["scenario=large_similar", f"batchnorm={policy}", f"data.batch_size={batch}", *(HALVES if weights else ())]
        begun = time.perf_counter()
        try:
            with redirect_stdout(log), redirect_stderr(log):
                return {"accuracy": run(task, *words), "seconds": time.perf_counter() - begun}
        except (Exception, SystemExit) as error:
            traceback.print_exc(file=log)
            return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a set and policy, a column a size of the batch: the mean, the best of a set in bold, and for `live` its interval; for the
    others the mean difference to it, over the same seeds, with its interval.
    """
    batches = sorted({row["batch"] for row in rows})
    lines = [f"| data | batchnorm | {' | '.join(f'batches of {batch}' for batch in batches)} |", "|---" * (len(batches) + 2) + "|"]
    for name, shift in dict.fromkeys((row["data"], row["shift"]) for row in rows):
        group = [row for row in rows if (row["data"], row["shift"]) == (name, shift)]
        columns = [{row["batchnorm"]: row for row in group if row["batch"] == batch} for batch in batches]
        for policy in POLICIES:
            lines.append(f"| {name}, {shift} | `{policy}` | {' | '.join(beside_live(column, policy) for column in columns)} |")
    return "\n".join(lines)


def beside_live(column: dict[str, dict[str, Any]], policy: str) -> str:
    """A cell: see `table`."""
    row, live, best = column.get(policy), column.get("live"), best_of(list(column.values()))
    if policy == "live" or not (row and live) or "failed" in row or row["accuracies"].keys() != live.get("accuracies", {}).keys():
        return cell(row, best)
    return f"{cell({**row, 'half': None}, best)} ({difference(row, live)})"


def main() -> None:
    """Run what is lacking, then write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=existing, default=os.environ.get("FTLIT_TEST_DATA"), help="FTLIT_TEST_DATA unless said")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs that have ended; the same command goes on from them")
    parser.add_argument("--only", choices=SETS, action="append", help="may be given several times")
    parser.add_argument("--seeds", type=count, help="how many, from 0 on; 5 unless said, --quick: 2")
    parser.add_argument("--quick", action="store_true", help="2 seeds of the first set")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    names, seeds = given.only or list(SETS)[: 1 if given.quick else None], given.seeds or (2 if given.quick else 5)
    if given.data is None:
        parser.error("--data DATA, or FTLIT_TEST_DATA, is needed")
    given.work.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(given.work / "batchnorm.jsonl", NAMES, stamp(Path(__file__), data=given.data))
    wanted = list(dict.fromkeys(keys(names, seeds)))
    with stoppable():
        for place, key in enumerate(wanted):
            if ledger.lacks(key):
                ledger.add(key, measured(key, given.data, given.work))
                print(f"{place + 1}/{len(wanted)} {ledger.runs[key]}", file=sys.stderr, flush=True)
    runs = [ledger.runs[key] for key in wanted]
    rows = summary(runs, NAMES[:-1])
    if given.out:
        written(given.out, machine(), {"seeds": seeds, "days": days(runs)}, rows)
    print(table(rows))
    ended(runs, given.work / LOG)


if __name__ == "__main__":
    main()
