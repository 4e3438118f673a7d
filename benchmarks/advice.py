"""Regret of `scenario=auto` and of three simple rules compared with the best of the four scenarios, as a markdown table.

python benchmarks/advice.py --data DATA --work FOLDER [--cells hymenoptera:20,digits:5] [--seeds 0]

A cell is a data set with a number of training images per class. The images are sampled with a fixed seed and linked into FOLDER. A quarter
as many (at least 10 per class) are the validation images; the test images are those of the data set, at most 300 per class. Photos use
squeezenet1_1 with ImageNet weights, digits the shipped glyph. Runs that exist in FOLDER are not repeated.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCENARIOS = ("small_similar", "small_different", "large_similar", "large_different")
CELLS = "hymenoptera:20,cats_dogs:20,malaria:20,sign_digits:10,digits:5,digits:80,hymenoptera:90,cats_dogs:100,sign_digits:50,malaria:200"
FEW = 30  # images per class; below, the rule "by size only" fits a linear probe
MAX_TEST_IMAGES = 300


def linked(images: Path, work: Path, name: str, per_class: int) -> Path:
    """Create a folder with links to the images of a cell, by split."""
    cell = work / f"{name}-{per_class}"
    own = {folder.name: folder for folder in (images / name).iterdir()}
    for label in sorted(folder.name for folder in own.get("train", images / name).iterdir() if folder.is_dir()):
        files = sorted((own.get("train", images / name) / label).iterdir())
        random.Random(0).shuffle(files)
        valid = max(10, per_class // 4)
        parts = {"train": files[:per_class], "val": files[per_class : per_class + valid]}
        rest = sorted((own["test"] / label).iterdir()) if "test" in own else files[-60:]
        random.Random(0).shuffle(rest)
        for split, chosen in {**parts, "test": rest[:MAX_TEST_IMAGES]}.items():
            (cell / split / label).mkdir(parents=True, exist_ok=True)
            for file in chosen:
                link = cell / split / label / file.name
                if not link.exists():
                    link.symlink_to(file.resolve())
    return cell


def arguments(data: Path, work: Path, cell: str) -> list[str]:
    """Arguments of `train.py` for a cell."""
    name, per_class = cell.split(":")
    if name == "digits":
        return ["backbone=glyph", "data=digits", f"data.per_class={per_class}"]
    weights = data / "weights/squeezenet1_1_imagenet_torchvision.pth"
    folder = linked(data / "images", work, name, int(per_class))
    return ["backbone=squeezenet1_1", f"backbone.weights={weights}", "data=folder", f"data.root={folder}"]


def accuracy(data: Path, work: Path, cell: str, scenario: str, seed: int) -> float:
    """Test accuracy of a full run."""
    folder = work / "runs" / f"{cell.replace(':', '-')}-{scenario}-{seed}"
    if not (folder / "result.json").is_file():
        command = [sys.executable, ROOT / "train.py", *arguments(data, work, cell), f"scenario={scenario}", f"seed={seed}"]
        begun = time.perf_counter()
        subprocess.run([*command, f"hydra.run.dir={folder}", f"cache.folder={work}/cache"], check=True, stdout=subprocess.DEVNULL)
        print(f"{cell} {scenario} {seed}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    return float(json.loads((folder / "result.json").read_text())["test/accuracy"])


def advised(work: Path, cell: str, seed: int) -> str:
    """The scenario that a run with `scenario=auto` chose."""
    found = json.loads((work / "runs" / f"{cell.replace(':', '-')}-auto-{seed}" / "advice.json").read_text())["advice"]
    return f"{found['scenario']} at {found['cut']}" if found["scenario"] == "small_different" else str(found["scenario"])


def table(found: Mapping[str, Mapping[str, float]], advice: Mapping[str, str]) -> list[str]:
    """Lines of a markdown table: accuracies, the advised scenario, regrets, and their means."""
    lines = [f"| data | {' | '.join(SCENARIOS)} | auto | regret | by size only | always all layers | always linear |", "|---" * 10 + "|"]
    regrets: list[Sequence[float]] = []
    for cell, accuracies in found.items():
        by_size = "small_similar" if int(cell.split(":")[1]) < FEW else "large_similar"
        best = max(accuracies[scenario] for scenario in SCENARIOS)
        regrets.append([best - accuracies[chosen] for chosen in ("auto", by_size, "large_similar", "small_similar")])
        cells = [f"{accuracies[scenario]:.3f}" for scenario in SCENARIOS] + [f"{accuracies['auto']:.3f}, {advice[cell]}"]
        lines.append(f"| {cell.replace(':', ', ')} per class | {' | '.join([*cells, *(f'{regret:.3f}' for regret in regrets[-1])])} |")
    means = [f"{sum(column) / len(column):.3f}" for column in zip(*regrets, strict=True)]
    return [*lines, f"| mean | | | | | | {' | '.join(means)} |"]


def main() -> None:
    """Run the missing runs, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("FTLIT_TEST_DATA"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cells", default=CELLS)
    parser.add_argument("--seeds", default="0")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    found = {}
    for cell in given.cells.split(","):
        tried = (*SCENARIOS, "auto")
        runs = {scenario: [accuracy(given.data, given.work, cell, scenario, seed) for seed in seeds] for scenario in tried}
        found[cell] = {scenario: sum(values) / len(values) for scenario, values in runs.items()}
        print(cell, found[cell], file=sys.stderr, flush=True)
    print("\n".join(table(found, {cell: advised(given.work, cell, seeds[0]) for cell in found})))


if __name__ == "__main__":
    main()
