"""Test accuracy and time of ftlit and of other libraries, on the same images, splits, weights and cores.

python benchmarks/quality.py --data DATA --work FOLDER [--quick | --equal] [--out benchmarks/results/quality.json]

DATA holds `images/NAME` (folders `train` and `test`, each with one folder per class; or folders of classes, of which a fifth is the test
set) and `weights/`. A cell is a data set with a number of labelled images per class. A fifth of them (at least one per class) is val; the
seed determines which ones, the same for all systems. Photos use squeezenet1_1 with ImageNet weights, digits the shipped glyph. The time is
measured from the files to the test accuracy, in a process that has imported everything. One system runs at a time; their order rotates.
Runs that exist in FOLDER/quality.jsonl are not repeated. `pip install -e ".[bench]"` installs the other libraries.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from _ledger import Ledger, best_of, cell, days, difference, summary
from _measure import machine, stamp, written
from _options import count, existing, exit_if_failed, interruptible, several, sources
from PIL import Image
from sklearn.datasets import load_digits
from systems.task import Task
from systems.worker import SYSTEMS
from torchvision.datasets.folder import IMG_EXTENSIONS

WEIGHTS = {"squeezenet1_1": "weights/squeezenet1_1_imagenet_torchvision.pth"}
TRAINED = ("BackboneFinetuning", "finetuning-scheduler", "fastai", "PyTorch loop")
OWN_EPOCHS = (
    "ftlit recipe=probe",
    "scikit-learn on features",
    "from scratch",
)  # no run at equal epochs: "from scratch" learns nothing in 5, the others have no epochs
GIVEN_EPOCHS = ("PyTorch loop",)  # no default number of epochs
PACKAGES = ("fastai", "finetuning-scheduler", "scikit-learn")
NAMES = ("digits", "hymenoptera", "cats_dogs", "sign_digits", "malaria")
EQUAL_EPOCHS = 5  # the number in comparisons at equal epochs
CELL = ("data", "per_class", "epochs", "system")
KEY = ("data", "per_class", "epochs", "seed", "system")
Key = tuple[str, int | None, int | None, int, str]


class Worker:
    """The process of a system, which waits while others run.

    Args:
        name: name in `SYSTEMS`.
        log: file for the output of the process.
    """

    def __init__(self, name: str, log: Path) -> None:
        here = Path(__file__).parent
        path = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}  # otherwise only fastai would use a GPU
        command = [sys.executable, "-m", "systems.worker", name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("a"), text=True, env=environment
        )
        self.startup = self._answer()

    def __call__(self, task: Task) -> dict[str, Any]:
        """Run a task; return `accuracy` and `seconds`, or `error`."""
        if "error" in self.startup:
            return self.startup
        assert self.process.stdin
        self.process.stdin.write(json.dumps(asdict(task)) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": f"the process ended with status {self.process.wait()}"}


def split(source: Path, target: Path, per_class: int | None, seed: int) -> Path:
    """Create links to the images of a cell in folders `train`, `val` and `test`."""
    given = {folder.name: folder for folder in source.iterdir() if folder.is_dir()}
    own = [given[name] for name in ("train", "val") if name in given] if "train" in given else [source]
    for label in sorted(folder.name for folder in own[0].iterdir() if folder.is_dir()):
        files = [file for folder in own for file in images(folder / label)]
        random.Random(0).shuffle(files)
        number = 0 if "test" in given else len(files) // 5
        test, known = images(given["test"] / label) if "test" in given else files[:number], files[number:]
        random.Random(seed).shuffle(known)
        known = known[:per_class]
        valid = max(1, len(known) // 5)
        for name, chosen in {"val": known[:valid], "train": known[valid:], "test": test}.items():
            (target / name / label).mkdir(parents=True, exist_ok=True)
            for file in chosen:
                place = (
                    target / name / label / (f"{file.parts[-3]}_{file.name}" if len(own) > 1 else file.name)
                )  # the same name may occur in train and val
                place.symlink_to(file.resolve())
    return target


def images(folder: Path) -> list[Path]:
    """Image files in a folder, sorted; empty if the folder does not exist."""
    return [] if not folder.is_dir() else sorted(file for file in folder.iterdir() if file.suffix.lower() in IMG_EXTENSIONS)


def digits(target: Path) -> Path:
    """Write scikit-learn's digits as PNG files of 8 x 8 pixels."""
    if not target.exists():
        dataset, partial = load_digits(), Path(tempfile.mkdtemp(dir=target.parent))
        for place, (image, label) in enumerate(zip(dataset.images, dataset.target, strict=True)):
            (partial / str(label)).mkdir(exist_ok=True)
            Image.fromarray((image / 16 * 255).round().astype("uint8")).save(partial / str(label) / f"{place:04d}.png")
        partial.rename(target)
    return target


def keys(names: Sequence[str], seeds: int, systems: Sequence[str], sizes: Sequence[int | None]) -> Iterator[Key]:
    """The keys of all runs; the order of the systems rotates."""
    shift = 0
    for seed in range(seeds):
        for name in names:
            for size in sizes:
                for epochs in (None, EQUAL_EPOCHS):
                    for place in range(len(systems)):
                        system = systems[(place + shift) % len(systems)]
                        if system not in (GIVEN_EPOCHS if epochs is None else OWN_EPOCHS):
                            yield name, size, epochs, seed, system
                    shift += 1


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A row per cell, a column per system: accuracy and seconds."""
    systems = [name for name in SYSTEMS if any(row["system"] == name for row in rows)]
    lines = ["| data, images per class, epochs | " + " | ".join(systems) + " |", "|---" * (len(systems) + 1) + "|"]
    for group in dict.fromkeys((row["data"], row["per_class"], row["epochs"]) for row in rows):
        found = {row["system"]: row for row in rows if (row["data"], row["per_class"], row["epochs"]) == group}
        best = best_of(list(found.values()))
        lines.append(f"| {cell_name(*group)} | {' | '.join(cell_with_time(found.get(name), best) for name in systems)} |")
    return "\n".join(lines)


def comparison(rows: Sequence[dict[str, Any]], ours: str = "ftlit scenario=auto") -> str:
    """A row per data set and size: the difference of ours (at its own epochs; at equal epochs if there are no others) to the best peer that
    trains, at any number of epochs, and to scikit-learn, seed by seed; and the median ratio of their times, also seed by seed because the
    speed of a machine varies over hours. A peer that failed with a seed is left out.
    """
    done = [row for row in rows if "accuracy" in row]
    others = {"the best peer that trains": TRAINED, "scikit-learn on features": ("scikit-learn on features",)}
    others = {label: systems for label, systems in others.items() if any(row["system"] in systems for row in done)}
    lines = [f"| {ours} |" + "".join(f" difference to {label} | time ratio |" for label in others), "|---|" + "---|---|" * len(others)]
    found = [row for row in done if row["system"] == ours]
    for row in [row for row in found if row["epochs"] is None] or found:
        group = [other for other in done if (other["data"], other["per_class"]) == (row["data"], row["per_class"])]
        cells = [f"{Path(row['data']).name}, {row['per_class'] or 'all'}"]
        for systems in others.values():
            if peers := [other for other in group if other["system"] in systems and other["accuracies"].keys() == row["accuracies"].keys()]:
                best = max(peers, key=lambda other: other["accuracy"])
                name = f" ({best['system']})" if len(systems) > 1 else ""
                ratio = median(row["times"][seed] / best["times"][seed] for seed in row["times"])
                cells += [difference(row, best) + name, f"{ratio:.2f}"]
            else:
                cells += ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def quick(key: Key) -> bool:
    """Whether a run belongs to `--quick`. The 25 epochs from scratch, which take as long as most others together, do not."""
    _, _, epochs, _, system = key
    return system != "from scratch" and (epochs is None or system in GIVEN_EPOCHS)


def equal(key: Key) -> bool:
    """Whether a run belongs to `--equal`."""
    return key[2] is not None or key[4] == "from scratch"


def cell_name(data: str, per_class: int | None, epochs: int | None) -> str:
    """The label of a cell."""
    return f"{Path(data).name}, {per_class or 'all'}, {epochs or 'own'}"


def cell_with_time(row: dict[str, Any] | None, best: float | None) -> str:
    """A `cell` followed by the seconds."""
    return cell(row, best) + (f", {row['seconds']:.1f} s" if row and "seconds" in row else "")


def main() -> None:
    """Run the missing runs, then write and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=existing, default=os.environ.get("FTLIT_TEST_DATA"), help="default: FTLIT_TEST_DATA")
    parser.add_argument("--work", type=Path, required=True, help="folder of finished runs, which are not repeated")
    parser.add_argument("--names", help=f"digits, folders of DATA/images, or paths of your own folders; default: {','.join(NAMES)}")
    parser.add_argument("--systems", type=several("system", SYSTEMS), default=list(SYSTEMS), help=f"default: {','.join(SYSTEMS)}")
    sizes = several("size", ("all", *range(2, 1001)))
    parser.add_argument("--sizes", type=sizes, default=["5", "20", "all"], help="largest number of images per class; default 5,20,all")
    parser.add_argument("--seeds", type=count, help="number of seeds, starting at 0; default 5, with --quick 3")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument(
        "--quick", action="store_true", help="digits and hymenoptera, not from scratch, only the PyTorch loop at equal epochs"
    )
    parts.add_argument("--equal", action="store_true", help="only runs at equal epochs and from scratch")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    names = given.names.split(",") if given.names else NAMES[:2] if given.quick else NAMES
    seeds = given.seeds or (3 if given.quick else 5)
    names = sources(parser, names, given.data)
    given.work.mkdir(parents=True, exist_ok=True)
    wanted = keys(names, seeds, given.systems, [None if size == "all" else int(size) for size in given.sizes])
    chosen = [key for key in wanted if (not given.quick or quick(key)) and (not given.equal or equal(key))]
    with interruptible():
        runs = run(list(dict.fromkeys(chosen)), given.data, given.work)
    rows = summary(runs, CELL)
    if given.out:
        written(given.out, machine(PACKAGES), {"seeds": seeds, "days": days(runs)}, rows)
    print(table(rows), comparison(rows), sep="\n\n")
    exit_if_failed(runs, given.work / "log.txt")


def run(wanted: Sequence[Key], data: Path, work: Path) -> list[dict[str, Any]]:
    """Results of the given runs, from the ledger or by running them."""
    ledger = Ledger(work / "quality.jsonl", KEY, stamp(Path(__file__), PACKAGES, data=data))
    workers: dict[str, Worker] = {}
    try:
        for place, key in enumerate(wanted):
            if ledger.is_missing(key):
                ledger.add(key, measured(key, data, work, workers))
                print(f"{place + 1}/{len(wanted)} {key}: {ledger.runs[key]}", file=sys.stderr, flush=True)
    finally:
        for worker in workers.values():
            worker.process.kill()
    return [ledger.runs[key] for key in wanted]


def measured(key: Key, data: Path, work: Path, workers: dict[str, Worker]) -> dict[str, Any]:
    """Run once with the worker of the system. A worker that does not exist or has died is started and added to `workers`."""
    name, per_class, epochs, seed, system = key
    source = digits(work / "digits") if name == "digits" else data / "images" / name
    with tempfile.TemporaryDirectory(dir=work) as folder:
        split(source, Path(folder), per_class, seed)
        backbone = "glyph" if name == "digits" else "squeezenet1_1"
        weights = str(data / WEIGHTS[backbone]) if backbone in WEIGHTS else None
        if system not in workers or workers[system].process.poll() is not None:
            workers[system] = Worker(system, work / "log.txt")
            with tempfile.TemporaryDirectory(dir=work) as few:  # warm-up: initialisation that happens once per process
                workers[system](Task(str(split(digits(work / "digits"), Path(few), 5, 0)), "glyph", None, 1, 0, flips=False))
        return workers[system](Task(folder, backbone, weights, epochs, seed, flips=name not in ("digits", "sign_digits")))


if __name__ == "__main__":
    main()
