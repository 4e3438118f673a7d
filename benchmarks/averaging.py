"""Averaged weights (`average=ema`, `average=wise`) against those of the best epoch, on test photos as they are and shifted.

python benchmarks/averaging.py --data DATA --work FOLDER [--cells hymenoptera:110] [--out FILE]

Cells, splits and networks are those of advice.py. The linear probe does not compete, so that each run ends with a trained network. The
checkpoints of `average=wise` also give the two networks between which it interpolates: the fitted head on the pretrained backbone, and the
best epoch, which is the result of `average=none` (the training is the same). Runs that exist are not repeated.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from _ledger import interval
from advice import ROOT, backbone_words, data_words, run_cells
from heads import Example, examples
from PIL import Image, ImageFilter

import ftlit

CELLS = "hymenoptera:110,cats_dogs:100,sign_digits:60"
SCENARIOS = ("large_similar",)
TEST = 300  # photos at most
SIDE = 128  # pixels of the shorter side of a photo before it is shifted; the networks read 96
NO_BASELINE = (
    "from functools import partial; from ftlit.recipes import build_run, finetune; "
    "finetune.build = partial(build_run.build, compares=False); from ftlit.cli.train import main; main()"
)


def jpeg(image: Image.Image) -> Image.Image:
    """The image after JPEG compression of quality 10."""
    image.save(file := BytesIO(), "jpeg", quality=10)
    return Image.open(file).convert("RGB")


SHIFTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "unchanged": lambda image: image,
    "grey": lambda image: image.convert("L").convert("RGB"),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "JPEG quality 10": jpeg,
}
NETWORKS = {  # column -> average and checkpoint
    "fitted head": ("wise", "start"),
    "best epoch": ("wise", "end"),
    "ema": ("ema", "best"),
    "wise": ("wise", "best"),
}
COMPARED = ("fitted head", "ema", "wise")  # with the best epoch


def accuracies(network: ftlit.Network, test: Sequence[Example]) -> dict[str, float]:
    """Accuracy on each version of the test photos."""
    right = dict.fromkeys(SHIFTS, 0)
    for begin in range(0, len(test), 64):
        part = test[begin : begin + 64]
        images = [Image.open(file).convert("RGB") for file, _ in part]
        scaled = [image.resize([max(1, round(side * SIDE / min(image.size))) for side in image.size]) for image in images]
        for shift, of in SHIFTS.items():
            found = network([of(image) for image in scaled])
            right[shift] += sum(prediction.label == str(label) for prediction, (_, label) in zip(found, part, strict=True))
    return {shift: number / len(test) for shift, number in right.items()}


def trained(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """What a run leaves in `result.json`; it runs if the file is not there."""
    if not (folder / "result.json").is_file():
        own = [f"hydra.run.dir={folder}", "report=false", "trainer=cpu", "data.num_workers=0"]
        subprocess.run([sys.executable, "-c", NO_BASELINE, *words, *own], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        print(folder.name, file=sys.stderr, flush=True)
    return dict(json.loads((folder / "result.json").read_text()))


def measured(data: Path, work: Path, cell: str, seeds: int) -> Iterator[dict[str, Any]]:
    """A row for each seed, scenario and network: its accuracy on each version of the test photos."""
    name = cell.split(":")[0]
    test = examples(data, name, work)[1][:TEST]
    for seed in range(seeds):
        words = [*backbone_words(data, name), *data_words(data, work, cell, seed), f"seed={seed}", f"cache.folder={work}/cache"]
        for scenario in SCENARIOS:
            place = work / "runs" / f"{cell.replace(':', '-')}-{seed}-{scenario}"
            folders = {average: place.with_name(f"{place.name}-{average}") for average in ("ema", "wise")}
            results = {
                average: trained([*words, f"scenario={scenario}", f"average={average}"], folder) for average, folder in folders.items()
            }
            for network, (average, checkpoint) in NETWORKS.items():
                loaded = ftlit.load(folders[average] / "checkpoints" / f"{checkpoint}.ckpt")
                row = {"cell": cell, "seed": seed, "scenario": scenario, "network": network, "accuracy": accuracies(loaded, test)}
                yield row | ({"alpha": results[average]["wise/alpha"]} if network == "wise" else {})


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean accuracy of the best epoch, and the mean difference of each other network to it with its 95 % interval over the seeds."""
    lines = [
        f"| data, labelled per class | scenario | test photos | best epoch | {' | '.join(COMPARED)} |",
        "|---" * (4 + len(COMPARED)) + "|",
    ]
    found = {(row["cell"], row["scenario"], row["network"], row["seed"]): row["accuracy"] for row in rows}
    runs = list(dict.fromkeys((row["cell"], row["scenario"], row["seed"]) for row in rows))
    for cell, scenario in dict.fromkeys(run[:2] for run in runs):
        seeds = [seed for *own, seed in runs if tuple(own) == (cell, scenario)]
        for shift in SHIFTS:
            before = [found[cell, scenario, "best epoch", seed][shift] for seed in seeds]
            cells = [
                _difference([found[cell, scenario, name, seed][shift] - old for seed, old in zip(seeds, before, strict=True)])
                for name in COMPARED
            ]
            lines.append(f"| {cell.replace(':', ', ')} | {scenario} | {shift} | {sum(before) / len(before):.3f} | {' | '.join(cells)} |")
    for title, shifts in (("unchanged", ["unchanged"]), ("shifted", [shift for shift in SHIFTS if shift != "unchanged"])):
        changes = [
            [
                sum(found[*run[:2], name, run[2]][shift] - found[*run[:2], "best epoch", run[2]][shift] for shift in shifts) / len(shifts)
                for run in runs
            ]
            for name in COMPARED
        ]
        lines.append(f"| mean difference | | {title} | | {' | '.join(map(_difference, changes))} |")
    return "\n".join(lines)


def _difference(values: Sequence[float]) -> str:
    mean, half = interval(values)
    return f"{mean:+z.3f}" + ("" if half is None else f" ± {half:.3f}")


if __name__ == "__main__":
    run_cells(__doc__, CELLS, measured, table)
