"""Test accuracy for the time it takes: ftlit beside what a user would pick instead, on the same images, splits, weights and cores.

python benchmarks/quality.py --data DATA --work FOLDER [--quick | --equal] [--out benchmarks/results/quality.json]

DATA holds `images/NAME` (folders `train` and `test`, each with a folder a class; or folders of classes, of which a fifth is the test) and
`weights/`. A cell is a data set at so many labelled images a class, a fifth of which (one a class at least) validates; which ones, the seed
draws, the same for all systems. Photos train squeezenet1_1 from ImageNet's weights, digits the shipped glyph. The clock runs from the
files to the test accuracy, in a process that has imported everything. One system works at a time, in an order that moves on by one each
time. Runs that FOLDER/quality.jsonl holds are not run again. `pip install -e ".[bench]"` brings the peers.
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
from _options import count, ended, existing, several, sources, stoppable
from PIL import Image
from sklearn.datasets import load_digits
from systems.task import Task
from systems.worker import SYSTEMS
from torchvision.datasets.folder import IMG_EXTENSIONS

WEIGHTS = {"squeezenet1_1": "weights/squeezenet1_1_imagenet_torchvision.pth"}
TRAINED = ("BackboneFinetuning", "finetuning-scheduler", "fastai", "loop by hand")
OWN_EPOCHS = ("ftlit recipe=probe", "scikit-learn on features", "from scratch")  # the last learns nothing in 5, the others have none
GIVEN_EPOCHS = ("loop by hand",)  # how many is the writer's choice
PACKAGES = ("fastai", "finetuning-scheduler", "scikit-learn")
NAMES = ("digits", "hymenoptera", "cats_dogs", "sign_digits", "malaria")
EQUAL = 5  # epochs at most, where all have as many
SIZES = (5, 20, None)  # images a class; None: all
CELL = ("data", "per_class", "epochs", "system")
KEY = ("data", "per_class", "epochs", "seed", "system")
Key = tuple[str, int | None, int | None, int, str]


class Worker:
    """A system's process, which waits while others work.

    Args:
        name: of `SYSTEMS`.
        log: file for all that it prints.
    """

    def __init__(self, name: str, log: Path) -> None:
        here = Path(__file__).parent
        path = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}  # fastai would take a GPU, the others not
        command = [sys.executable, "-m", "systems.worker", name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("a"), text=True, env=environment
        )
        self.begun = self._answer()

    def __call__(self, task: Task) -> dict[str, Any]:
        """`accuracy` and `seconds`, or `error`."""
        if "error" in self.begun:
            return self.begun
        assert self.process.stdin
        self.process.stdin.write(json.dumps(asdict(task)) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": f"ended with {self.process.wait()}"}


def split(source: Path, target: Path, per_class: int | None, seed: int) -> Path:
    """Links to the images of a cell in folders `train`, `val` and `test`."""
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
                place = target / name / label / (f"{file.parts[-3]}_{file.name}" if len(own) > 1 else file.name)  # of train and val
                place.symlink_to(file.resolve())
    return target


def images(folder: Path) -> list[Path]:
    """Image files in a folder, in order; none where there is no folder."""
    return [] if not folder.is_dir() else sorted(file for file in folder.iterdir() if file.suffix.lower() in IMG_EXTENSIONS)


def digits(target: Path) -> Path:
    """scikit-learn's digits as PNG files, 8 pixels a side."""
    if not target.exists():
        held, begun = load_digits(), Path(tempfile.mkdtemp(dir=target.parent))
        for place, (image, label) in enumerate(zip(held.images, held.target, strict=True)):
            (begun / str(label)).mkdir(exist_ok=True)
            Image.fromarray((image / 16 * 255).round().astype("uint8")).save(begun / str(label) / f"{place:04d}.png")
        begun.rename(target)
    return target


def keys(names: Sequence[str], seeds: int, systems: Sequence[str], sizes: Sequence[int | None]) -> Iterator[Key]:
    """Every run that is wanted, the systems in turn."""
    turn = 0
    for seed in range(seeds):
        for name in names:
            for size in sizes:
                for epochs in (None, EQUAL):
                    for place in range(len(systems)):
                        system = systems[(place + turn) % len(systems)]
                        if system not in (GIVEN_EPOCHS if epochs is None else OWN_EPOCHS):
                            yield name, size, epochs, seed, system
                    turn += 1


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a cell, a column a system: accuracy, and seconds."""
    systems = [name for name in SYSTEMS if any(row["system"] == name for row in rows)]
    lines = ["| data, images a class, epochs | " + " | ".join(systems) + " |", "|---" * (len(systems) + 1) + "|"]
    for group in dict.fromkeys((row["data"], row["per_class"], row["epochs"]) for row in rows):
        found = {row["system"]: row for row in rows if (row["data"], row["per_class"], row["epochs"]) == group}
        best = best_of(list(found.values()))
        lines.append(f"| {in_words(*group)} | {' | '.join(timed(found.get(name), best) for name in systems)} |")
    return "\n".join(lines)


def beside(rows: Sequence[dict[str, Any]], ours: str = "ftlit scenario=auto") -> str:
    """A line a data set and size: ours at its own epochs, or at equal ones if there are no others, minus the best of the peers that train,
    at any, and minus scikit-learn's, seed by seed, and the median over these of its part of their time: a machine may be slower from one
    hour to the next. A peer that failed with a seed has no part in it.
    """
    done = [row for row in rows if "accuracy" in row]
    others = {"the best peer that trains": TRAINED, "scikit-learn on features": ("scikit-learn on features",)}
    others = {words: systems for words, systems in others.items() if any(row["system"] in systems for row in done)}
    lines = [f"| {ours} |" + "".join(f" minus {words} | time / its time |" for words in others), "|---|" + "---|---|" * len(others)]
    found = [row for row in done if row["system"] == ours]
    for row in [row for row in found if row["epochs"] is None] or found:
        group = [other for other in done if (other["data"], other["per_class"]) == (row["data"], row["per_class"])]
        words = [f"{Path(row['data']).name}, {row['per_class'] or 'all'}"]
        for systems in others.values():
            if peers := [other for other in group if other["system"] in systems and other["accuracies"].keys() == row["accuracies"].keys()]:
                best = max(peers, key=lambda other: other["accuracy"])
                name = f" ({best['system']})" if len(systems) > 1 else ""
                part = median(row["times"][seed] / best["times"][seed] for seed in row["times"])
                words += [difference(row, best) + name, f"{part:.2f}"]
            else:
                words += ["", ""]
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)


def quick(key: Key) -> bool:
    """Whether a run is one of `--quick`: the 25 epochs from scratch take as long as most of the others together."""
    _, _, epochs, _, system = key
    return system != "from scratch" and (epochs is None or system in GIVEN_EPOCHS)


def equal(key: Key) -> bool:
    """Whether a run is one of `--equal`."""
    return key[2] is not None or key[4] == "from scratch"


def in_words(data: str, per_class: int | None, epochs: int | None) -> str:
    """A cell in words."""
    return f"{Path(data).name}, {per_class or 'all'}, {epochs or 'own'}"


def timed(row: dict[str, Any] | None, best: float | None) -> str:
    """See `cell`; with the seconds."""
    return cell(row, best) + (f", {row['seconds']:.1f} s" if row and "seconds" in row else "")


def main() -> None:
    """Run what is lacking, then write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=existing, default=os.environ.get("FTLIT_TEST_DATA"), help="FTLIT_TEST_DATA unless said")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs that have ended; the same command goes on from them")
    parser.add_argument("--names", help=f"digits, folders of DATA/images, or photos of your own; {','.join(NAMES)} unless said")
    parser.add_argument("--systems", type=several("system", SYSTEMS), default=list(SYSTEMS), help=f"of: {','.join(SYSTEMS)}")
    sizes = several("size", ("all", *range(2, 1001)))
    parser.add_argument("--sizes", type=sizes, default=["5", "20", "all"], help="images a class, at most; 5,20,all unless said")
    parser.add_argument("--seeds", type=count, help="how many, from 0 on; 5 unless said, --quick: 3")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--quick", action="store_true", help="digits and hymenoptera; not from scratch, nor at equal epochs but the loop")
    parts.add_argument("--equal", action="store_true", help="only at equal epochs, and from scratch")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    names = given.names.split(",") if given.names else NAMES[:2] if given.quick else NAMES
    seeds = given.seeds or (3 if given.quick else 5)
    names = sources(parser, names, given.data)
    given.work.mkdir(parents=True, exist_ok=True)
    wanted = keys(names, seeds, given.systems, [None if size == "all" else int(size) for size in given.sizes])
    chosen = [key for key in wanted if (not given.quick or quick(key)) and (not given.equal or equal(key))]
    with stoppable():
        runs = run(list(dict.fromkeys(chosen)), given.data, given.work)
    rows = summary(runs, CELL)
    if given.out:
        written(given.out, machine(PACKAGES), {"seeds": seeds, "days": days(runs)}, rows)
    print(table(rows), beside(rows), sep="\n\n")
    ended(runs, given.work / "log.txt")


def run(wanted: Sequence[Key], data: Path, work: Path) -> list[dict[str, Any]]:
    """What came of these, from the file or from a run now."""
    ledger = Ledger(work / "quality.jsonl", KEY, stamp(Path(__file__), PACKAGES, data=data))
    workers: dict[str, Worker] = {}
    try:
        for place, key in enumerate(wanted):
            if ledger.lacks(key):
                ledger.add(key, measured(key, data, work, workers))
                print(f"{place + 1}/{len(wanted)} {key}: {ledger.runs[key]}", file=sys.stderr, flush=True)
    finally:
        for worker in workers.values():
            worker.process.kill()
    return [ledger.runs[key] for key in wanted]


def measured(key: Key, data: Path, work: Path, workers: dict[str, Worker]) -> dict[str, Any]:
    """One run, by the worker of its system; by a new one, which is added to `workers`, where that is lacking or has died."""
    name, per_class, epochs, seed, system = key
    source = digits(work / "digits") if name == "digits" else data / "images" / name
    with tempfile.TemporaryDirectory(dir=work) as folder:
        split(source, Path(folder), per_class, seed)
        backbone = "glyph" if name == "digits" else "squeezenet1_1"
        weights = str(data / WEIGHTS[backbone]) if backbone in WEIGHTS else None
        if system not in workers or workers[system].process.poll() is not None:
            workers[system] = Worker(system, work / "log.txt")
            with tempfile.TemporaryDirectory(dir=work) as few:  # what is done once in a process
                workers[system](Task(str(split(digits(work / "digits"), Path(few), 5, 0)), "glyph", None, 1, 0, flips=False))
        return workers[system](Task(folder, backbone, weights, epochs, seed, flips=name not in ("digits", "sign_digits")))


if __name__ == "__main__":
    main()
