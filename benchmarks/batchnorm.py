"""Comparison of batch-norm policies: test accuracy by batch size, and on images that differ from the pretraining data.

python benchmarks/batchnorm.py --data DATA --work FOLDER [--quick] [--out benchmarks/results/batchnorm.json]

`scenario=large_similar` (a linear probe, then all layers train for 5 epochs) with `batchnorm=live|frozen_stats|frozen|affine` at the same
learning rate: digits with the shipped glyph, photos of DATA/images with ImageNet's mobilenet_v2. Changed images are changed in train, val
and test. Runs that exist in FOLDER/batchnorm.jsonl are not repeated.
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
from _options import count, existing, exit_if_failed, interruptible
from PIL import Image, ImageFilter, ImageOps
from quality import digits, split
from systems.task import Task
from systems.with_ftlit import run

POLICIES = ("live", "frozen_stats", "frozen", "affine")
PLAIN = "unchanged"
SHIFTS = {
    "inverted": ImageOps.invert,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(max(image.size) / 16)),
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
}


@dataclass(frozen=True)
class ImageSet:
    """Images of a folder: number per class, changes, and batch sizes."""

    source: str
    per_class: int
    shifts: Sequence[str] = (PLAIN,)
    batches: Sequence[int] = (8, 32)


SETS = {
    "digits, 20 per class": ImageSet("digits", 20, (PLAIN, "inverted", "blurred"), (2, 4, 8, 32)),
    "hymenoptera, 20 per class": ImageSet("hymenoptera", 20, (PLAIN, "grey"), (2, 4, 8, 32)),
    "digits, 100 per class": ImageSet("digits", 100),
    "malaria, 100 per class": ImageSet("malaria", 100),
}
NAMES = ("data", "shift", "batch", "batchnorm", "seed")
EPOCHS, LOG = 5, "log.txt"
PHOTOS = {"backbone": "mobilenet_v2", "weights": "weights/mobilenetv2_imagenet_torchvision.pth"}
# these weights were trained on images in [-1, 1], unlike torchvision's own weights
HALVES = ("backbone.input_spec.mean=[0.5,0.5,0.5]", "backbone.input_spec.std=[0.5,0.5,0.5]")
Key = tuple[str, str, int, str, int]


def keys(names: Sequence[str], seeds: int) -> Iterator[Key]:
    """The keys of all runs."""
    for seed in range(seeds):
        for name in names:
            for shift in SETS[name].shifts:
                for batch in SETS[name].batches:
                    for policy in POLICIES:
                        yield name, shift, batch, policy, seed


def shifted(source: Path, target: Path, shift: str) -> Path:
    """Write changed copies of all images below `source`."""
    for file in (path for path in source.rglob("*") if path.is_file()):
        place = target / f"{file.relative_to(source)}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        SHIFTS[shift](Image.open(file).convert("RGB")).save(place)
    return target


def measured(key: Key, data: Path, work: Path) -> dict[str, Any]:
    """Run once; return accuracy and seconds, or the error."""
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
        overrides = ["scenario=large_similar", f"batchnorm={policy}", f"data.batch_size={batch}", *(HALVES if weights else ())]
        begun = time.perf_counter()
        try:
            with redirect_stdout(log), redirect_stderr(log):
                return {"accuracy": run(task, *overrides), "seconds": time.perf_counter() - begun}
        except (Exception, SystemExit) as error:
            traceback.print_exc(file=log)
            return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A row per data set and policy, a column per batch size: the mean accuracy, in bold if it is the best of the set; for `live` its
    interval, for the others the mean difference to `live`, over the same seeds, with its interval.
    """
    batches = sorted({row["batch"] for row in rows})
    lines = [f"| data | batchnorm | {' | '.join(f'batches of {batch}' for batch in batches)} |", "|---" * (len(batches) + 2) + "|"]
    for name, shift in dict.fromkeys((row["data"], row["shift"]) for row in rows):
        group = [row for row in rows if (row["data"], row["shift"]) == (name, shift)]
        columns = [{row["batchnorm"]: row for row in group if row["batch"] == batch} for batch in batches]
        for policy in POLICIES:
            lines.append(f"| {name}, {shift} | `{policy}` | {' | '.join(compared_with_live(column, policy) for column in columns)} |")
    return "\n".join(lines)


def compared_with_live(column: dict[str, dict[str, Any]], policy: str) -> str:
    """A cell of `table`."""
    row, live, best = column.get(policy), column.get("live"), best_of(list(column.values()))
    if policy == "live" or not (row and live) or "failed" in row or row["accuracies"].keys() != live.get("accuracies", {}).keys():
        return cell(row, best)
    return f"{cell({**row, 'half': None}, best)} ({difference(row, live)})"


def main() -> None:
    """Run the missing runs, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=existing, default=os.environ.get("FTLIT_TEST_DATA"), help="default: FTLIT_TEST_DATA")
    parser.add_argument("--work", type=Path, required=True, help="folder of finished runs, which are not repeated")
    parser.add_argument("--only", choices=SETS, action="append", help="one data set; may be repeated")
    parser.add_argument("--seeds", type=count, help="number of seeds, starting at 0; default 5, with --quick 2")
    parser.add_argument("--quick", action="store_true", help="2 seeds of the first data set")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    names, seeds = given.only or list(SETS)[: 1 if given.quick else None], given.seeds or (2 if given.quick else 5)
    if given.data is None:
        parser.error("--data DATA, or FTLIT_TEST_DATA, is required")
    given.work.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(given.work / "batchnorm.jsonl", NAMES, stamp(Path(__file__), data=given.data))
    wanted = list(dict.fromkeys(keys(names, seeds)))
    with interruptible():
        for place, key in enumerate(wanted):
            if ledger.is_missing(key):
                ledger.add(key, measured(key, given.data, given.work))
                print(f"{place + 1}/{len(wanted)} {ledger.runs[key]}", file=sys.stderr, flush=True)
    runs = [ledger.runs[key] for key in wanted]
    rows = summary(runs, NAMES[:-1])
    if given.out:
        written(given.out, machine(), {"seeds": seeds, "days": days(runs)}, rows)
    print(table(rows))
    exit_if_failed(runs, given.work / LOG)


if __name__ == "__main__":
    main()
