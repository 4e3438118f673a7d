"""Test accuracy of training on stored pixels against training on files: runs of `scenario=large_similar` in pairs of one seed.

python benchmarks/hardware/pixel_accuracy.py --data DATA --work FOLDER [--seeds 5] [--size 96] [--epochs 6]

DATA holds `images` with hymenoptera, cats_dogs and sign_digits, and `weights` with SqueezeNet 1.1. After an interruption the same command
continues. The difference shall be at least -0.005 on average, with a half-width of the 95 % interval of at most 0.01.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from _ledger import Ledger, interval
from _options import count, existing

TRAIN = Path(__file__).parents[2] / "train.py"
SETS = {"hymenoptera": (), "cats_dogs": ("data.per_class=200",), "sign_digits": ("data.per_class=20",)}
WEIGHTS = "squeezenet1_1_imagenet_torchvision.pth"


def accuracy(python: str, data: Path, work: Path, key: tuple[str, int, bool], settings: Sequence[str]) -> dict[str, float]:
    """Test accuracy and duration of one run."""
    name, seed, pixels = key
    folder = work / f"{name}-{seed}-{pixels}"
    values = ["scenario=large_similar", "backbone=squeezenet1_1", f"backbone.weights={data / 'weights' / WEIGHTS}", "data=folder"]
    values += [f"data.root={data / 'images' / name}", f"seed={seed}", f"cache.pixels={str(pixels).lower()}", "report=false", *SETS[name]]
    begin = time.perf_counter()
    command = [python, str(TRAIN), *values, *settings, f"cache.folder={work / 'cache'}", f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {"accuracy": json.loads((folder / "result.json").read_text())["test/accuracy"], "seconds": time.perf_counter() - begin}


def differences(ledger: Ledger, seeds: int) -> str:
    """The table: mean of the differences of each data set and of all, over the seeds that are done."""
    lines, every = ["| data set | seeds | difference of test accuracy | half-width of the 95 % interval |", "|---|---|---|---|"], []
    for name in SETS:
        pairs = [[ledger.runs.get((name, seed, pixels), {}).get("accuracy") for pixels in (True, False)] for seed in range(seeds)]
        found = [stored - files for stored, files in pairs if stored is not None and files is not None]
        every += found
        lines += [_line(name, found)] if found else []
    return "\n".join([*lines, *([_line("all", every)] if every else [])])


def _line(name: str, found: Sequence[float]) -> str:
    mean, half = interval(found)
    return f"| {name} | {len(found)} | {mean:+.4f} | {'' if half is None else f'{half:.4f}'} |"


def main(arguments: Any = None) -> None:
    """Do the runs that are missing, and print the table after each pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=existing, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=count, default=5)
    parser.add_argument("--size", type=count, default=96)
    parser.add_argument("--epochs", type=count, default=6)
    parser.add_argument("--python", default=sys.executable, help="program that runs Python files")
    given = parser.parse_args(arguments)
    settings = [f"backbone.input_spec.size={given.size}", f"trainer.max_epochs={given.epochs}"]
    ledger = Ledger(given.work.resolve() / "runs.jsonl", ("data", "seed", "pixels"), {"size": given.size, "epochs": given.epochs})
    for seed in range(given.seeds):
        for name in SETS:
            for pixels in (True, False):
                if ledger.is_missing((name, seed, pixels)):
                    ledger.add(
                        (name, seed, pixels), accuracy(given.python, given.data, given.work.resolve(), (name, seed, pixels), settings)
                    )
        print(differences(ledger, given.seeds), flush=True)


if __name__ == "__main__":
    main()
