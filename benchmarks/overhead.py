"""What ftlit adds to training: time and memory of a step beside a loop written by hand, and beside BackboneFinetuning; start-up.

python benchmarks/overhead.py [--rounds 5] [--steps 8] [--accelerator cpu|gpu] [--out FILE.json]

resnet18 (a step also of efficientnet_b0) with random weights, batches of 32 random images of 224 pixels, AdamW. Steps by hand and steps of
ftlit alternate in one process; else each side runs in a process of its own, all sides in turn. The first steps are not counted. A step
lasts until the next one begins. Memory is the most that the process has held, on a GPU the most that was allocated there; training adds
what goes beyond modules, network and data. "By hand" is the usual loop, once as weights are loaded and once with weights and images
channels last, as ftlit lays them.

With `--accelerator gpu` (or `--accelerated`, which shows on a CPU that all of it runs) also resnet50 in bfloat16: `extract_features` beside a
bare loop; a stage that trains all after one of the head, plain and compiled, by DDP and by FSDP on all devices. A side in which the
weights do not move after unfreezing fails, and what fails is nan.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

from _measure import Row, compared, in_turn, machine, median, table, timed, written
from _options import count
from _sides import ACCELERATED, PAIRS, SIDES, Work

ROOT = Path(__file__).parents[1]


def side(name: str, work: Work) -> None:
    """One side, or a pair of them, in this process: seconds a step and bytes, as JSON."""
    found = (SIDES | ACCELERATED | PAIRS)[name](work)
    seconds = found if isinstance(found, dict) else {name: found}
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        print(json.dumps({"seconds": seconds, "peak": work.peak(), "baseline": work.baseline}))


def start_up(rounds: int) -> list[Row]:
    """`import ftlit`, and the help, beside `import torch`."""
    commands = {
        "import torch": ["-c", "import torch"],
        "import ftlit": ["-c", "import ftlit"],
        "what Lightning's user imports": ["-c", "import torch, torchvision, lightning.pytorch"],
        "FineTuner and load_backbone": ["-c", "from ftlit import FineTuner, StagedFinetuning, load_backbone"],
        "train.py --help": [str(ROOT / "train.py"), "--help"],
    }
    runs = {name: partial(subprocess.run, [sys.executable, *words], check=True, capture_output=True) for name, words in commands.items()}
    sides = {name: partial(timed, run) for name, run in runs.items()}
    in_turn(sides, 1)  # what lies on the disk is read once
    samples = in_turn(sides, rounds)
    beside = {
        "import ftlit": "import torch",  # nothing is loaded before it is asked for
        "FineTuner and load_backbone": "what Lightning's user imports",
        "train.py --help": "import torch",
    }
    return [compared(f"start-up: {name}, over {other}", samples, name, other, "") for name, other in beside.items()]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number, what in (
        ("rounds", 5, "times that each side runs"),
        ("steps", 8, "steps of a run that are counted"),
        ("batch", 32, "images a step"),
        ("size", 224, "pixels a side of an image"),
    ):
        parser.add_argument(f"--{name}", type=count, default=number, help=f"{what}; {number} unless said")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--accelerated", action="store_true", help="the rows of a GPU on a CPU, but for fsdp, which needs one")
    parser.add_argument("--out", type=Path, help="JSON file, written after each part")
    parser.add_argument("--side", choices=[*SIDES, *ACCELERATED, *PAIRS], help=argparse.SUPPRESS)
    given = parser.parse_args()
    work = Work(given.accelerator, given.steps, given.batch, given.size)
    if given.side:
        return side(given.side, work)
    options = {name: getattr(given, name) for name in ("rounds", "steps", "batch", "size", "accelerator")}
    parts = [partial(plain, work), *([partial(accelerated, work)] if given.accelerator == "gpu" or given.accelerated else []), start_up]
    rows: list[Row] = []
    for part in parts:
        rows += part(given.rounds)
        if given.out:
            written(given.out, machine(), options, rows)
    print(table(rows))
    if any(row.ratio != row.ratio for row in rows):  # nan
        sys.exit("sides failed; what they said stands above")


def plain(work: Work, rounds: int) -> list[Row]:
    """Full fine-tuning and a stage of the head."""
    turns = [{name: said(name, work)["seconds"] for name in PAIRS} for _ in range(rounds)]
    rows = [in_pairs(f"all trains: a step, ftlit over by hand, {name}", [turn[name] for turn in turns], "<= 1.03") for name in PAIRS]
    whole = ("ftlit", "by hand")
    held = measured(whole, replace(work, steps=2), rounds)  # their steps are timed in pairs
    for what, less in (("memory at its peak", 0), ("memory that training adds", 1)):
        samples = {name: [(one["peak"] - less * one["baseline"]) / 1e9 for one in held[name]] for name in whole}
        rows.append(compared(f"all trains: {what}, ftlit over by hand, resnet18", samples, *whole, "<= 1.03", unit="GB"))
    ours, *others = (name for name in SIDES if name not in whole)
    found = measured([ours, *others], work, rounds)
    peaks = {name: [one["peak"] / 1e9 for one in found[name]] for name in found}
    for other in others:
        for what, samples, unit in (("a step", medians(found), "s"), ("memory at its peak", peaks, "GB")):
            measure = f"the head trains: {what}, ftlit over {other.removesuffix(', head stage')}, resnet18"
            rows.append(compared(measure, samples, ours, other, "", unit=unit))
    return rows


def in_pairs(measure: str, turns: Sequence[dict[str, list[float]]], aim: str) -> Row:
    """Steps that alternated: the ratio is the median of each round's median ratio of a step to the one before it."""
    ratios = [median([ours / other for ours, other in zip(turn["ftlit"], turn["by hand"], strict=True)]) for turn in turns]
    samples = {name: [median(turn[name]) for turn in turns] for name in ("ftlit", "by hand")}
    both = (median(samples[name]) for name in samples)
    return Row(measure, *both, median(ratios), aim, samples=samples, ratios=(min(ratios), max(ratios)))


def accelerated(work: Work, rounds: int) -> list[Row]:
    """Extraction, compiling, and several devices, with resnet50."""
    names = [name for name in ACCELERATED if work.accelerator == "gpu" or "fsdp" not in name]
    seconds = medians(measured(names, work, rounds))
    rows = [compared("a batch of features, extract_features over a bare loop", seconds, "extract_features", "bare extraction", "")]
    whole = "head, then all"
    for name in (name for name in names if name.startswith(f"{whole}, ")):
        rows.append(compared(f"a step after unfreezing, {name.removeprefix(f'{whole}, ')} over plain", seconds, name, whole, ""))
    return rows


def measured(names: Sequence[str], work: Work, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """What each side told in each round."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}

    def run(name: str) -> float:
        found[name].append(said(name, work))
        return median(found[name][-1]["seconds"][name])

    in_turn({name: partial(run, name) for name in names}, rounds)
    return found


def medians(found: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Seconds of a step of each side in each round."""
    return {name: [median(one["seconds"][name]) for one in every] for name, every in found.items()}


def said(name: str, work: Work) -> dict[str, Any]:
    """What a side tells, run in a process of its own; nan where it fails."""
    words = [f"--{option}={getattr(work, option)}" for option in ("accelerator", "steps", "batch", "size")]
    done = subprocess.run([sys.executable, __file__, "--side", name, *words], capture_output=True, text=True)
    if done.returncode:
        print(f"{name}: {done.stderr[-2000:]}", file=sys.stderr)
        return {"seconds": defaultdict(lambda: [nan]), "peak": nan, "baseline": nan}
    print(f"{name}: {done.stdout.splitlines()[-1]}", file=sys.stderr, flush=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
