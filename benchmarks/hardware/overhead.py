"""Overhead of ftlit: time and memory of a training step compared with a PyTorch loop and BackboneFinetuning, and start-up time.

python benchmarks/hardware/overhead.py [--rounds 5] [--steps 8] [--accelerator cpu|gpu] [--out FILE.json]

resnet18 (step time also of efficientnet_b0) with random weights, batches of 32 random images of 224 pixels, AdamW. Steps of a PyTorch loop
and of ftlit alternate in one process; the other sides run in separate processes, in turn. The first steps are not counted. A step lasts
until the next one begins. Memory is the peak of the process, on a GPU the peak of the allocated memory; memory added by training is that
beyond modules, network and data. The PyTorch loop is measured with the default memory format, and with weights and images in
channels-last order, as in ftlit.

`--accelerator gpu` (or `--accelerated`, which runs the same on a CPU as a check) adds resnet50 in bfloat16: `extract_features` compared
with a plain loop; a stage that trains all layers after a head stage, plain and compiled, with DDP and with FSDP2 on all devices. A side
whose weights do not change after unfreezing fails; the values of a failed side are nan.
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

sys.path.insert(0, str(Path(__file__).parents[1]))
from _measure import Row, compared, in_turn, machine, median, table, timed, written
from _options import count
from hardware.sides import ACCELERATED, PAIRS, SIDES, Work

ROOT = Path(__file__).parents[2]


def side(name: str, work: Work) -> None:
    """Run one side, or a pair, in this process and print seconds per step and memory in bytes as JSON."""
    found = (SIDES | ACCELERATED | PAIRS)[name](work)
    seconds = found if isinstance(found, dict) else {name: found}
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        print(json.dumps({"seconds": seconds, "peak": work.peak(), "baseline": work.baseline}))


def start_up(rounds: int) -> list[Row]:
    """Compare `import ftlit` and `train.py --help` with `import torch`."""
    commands = {
        "import torch": ["-c", "import torch"],
        "import ftlit": ["-c", "import ftlit"],
        "torch, torchvision and Lightning": ["-c", "import torch, torchvision, lightning.pytorch"],
        "FineTuner and load_backbone": ["-c", "from ftlit import FineTuner, StagedFinetuning, load_backbone"],
        "train.py --help": [str(ROOT / "train.py"), "--help"],
    }
    runs = {
        name: partial(subprocess.run, [sys.executable, *arguments], check=True, capture_output=True) for name, arguments in commands.items()
    }
    sides = {name: partial(timed, run) for name, run in runs.items()}
    in_turn(sides, 1)  # warm-up: fills the page cache
    samples = in_turn(sides, rounds)
    compared_with = {
        "import ftlit": "import torch",  # ftlit imports its modules lazily
        "FineTuner and load_backbone": "torch, torchvision and Lightning",
        "train.py --help": "import torch",
    }
    return [compared(f"start-up: {name} / {other}", samples, name, other, "") for name, other in compared_with.items()]


def main() -> None:
    """Run all sides, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number, what in (
        ("rounds", 5, "number of runs of each side"),
        ("steps", 8, "measured steps of a run"),
        ("batch", 32, "images per step"),
        ("size", 224, "image height and width in pixels"),
    ):
        parser.add_argument(f"--{name}", type=count, default=number, help=f"{what}; default {number}")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--accelerated", action="store_true", help="the GPU rows on a CPU, except fsdp")
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
        sys.exit("some sides failed; their errors are printed above")


def plain(work: Work, rounds: int) -> list[Row]:
    """Measure full fine-tuning and a head stage."""
    all_rounds = [{name: run_side(name, work)["seconds"] for name in PAIRS} for _ in range(rounds)]
    rows = [
        in_pairs(f"full fine-tuning: step time, ftlit / PyTorch loop, {name}", [one[name] for one in all_rounds], "<= 1.03")
        for name in PAIRS
    ]
    whole = ("ftlit", "PyTorch loop")
    held = measured(whole, replace(work, steps=2), rounds)  # their step times are measured in pairs
    for what, less in (("peak memory", 0), ("memory added by training", 1)):
        samples = {name: [(one["peak"] - less * one["baseline"]) / 1e9 for one in held[name]] for name in whole}
        rows.append(compared(f"full fine-tuning: {what}, ftlit / PyTorch loop, resnet18", samples, *whole, "<= 1.03", unit="GB"))
    ours, *others = (name for name in SIDES if name not in whole)
    found = measured([ours, *others], work, rounds)
    peaks = {name: [one["peak"] / 1e9 for one in found[name]] for name in found}
    for other in others:
        for what, samples, unit in (("step time", medians(found), "s"), ("peak memory", peaks, "GB")):
            measure = f"head stage: {what}, ftlit / {other.removesuffix(', head stage')}, resnet18"
            rows.append(compared(measure, samples, ours, other, "", unit=unit))
    return rows


def in_pairs(measure: str, rounds: Sequence[dict[str, list[float]]], target: str) -> Row:
    """A row of alternating steps: the ratio is the median over the rounds of the median ratio of two consecutive steps."""
    ratios = [median([ours / other for ours, other in zip(one["ftlit"], one["PyTorch loop"], strict=True)]) for one in rounds]
    samples = {name: [median(one[name]) for one in rounds] for name in ("ftlit", "PyTorch loop")}
    both = (median(samples[name]) for name in samples)
    return Row(measure, *both, median(ratios), target, samples=samples, ratios=(min(ratios), max(ratios)))


def accelerated(work: Work, rounds: int) -> list[Row]:
    """Measure extraction, compilation and several devices with resnet50."""
    names = [name for name in ACCELERATED if work.accelerator == "gpu" or "fsdp" not in name]
    seconds = medians(measured(names, work, rounds))
    rows = [compared("features of a batch, extract_features / plain loop", seconds, "extract_features", "plain extraction", "")]
    whole = "head, then all"
    for name in (name for name in names if name.startswith(f"{whole}, ")):
        rows.append(compared(f"step time after unfreezing, {name.removeprefix(f'{whole}, ')} / plain", seconds, name, whole, ""))
    return rows


def measured(names: Sequence[str], work: Work, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Results of each side in each round."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}

    def run(name: str) -> float:
        found[name].append(run_side(name, work))
        return median(found[name][-1]["seconds"][name])

    in_turn({name: partial(run, name) for name in names}, rounds)
    return found


def medians(found: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Median step time of each side in each round, in seconds."""
    return {name: [median(one["seconds"][name]) for one in every] for name, every in found.items()}


def run_side(name: str, work: Work) -> dict[str, Any]:
    """Run a side in a separate process; its values are nan if it fails."""
    options = [f"--{option}={getattr(work, option)}" for option in ("accelerator", "steps", "batch", "size")]
    done = subprocess.run([sys.executable, __file__, "--side", name, *options], capture_output=True, text=True)
    if done.returncode:
        print(f"{name}: {done.stderr[-2000:]}", file=sys.stderr)
        return {"seconds": defaultdict(lambda: [nan]), "peak": nan, "baseline": nan}
    print(f"{name}: {done.stdout.splitlines()[-1]}", file=sys.stderr, flush=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
