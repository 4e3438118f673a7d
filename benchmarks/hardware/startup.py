"""CPU seconds of short commands against those of importing torch and torchvision: a warm run on digits, a prediction, and the report page.

python benchmarks/hardware/startup.py [--rounds 5] [--out benchmarks/results/startup.json]

Seconds are user + system of the process and its children on one thread, the best of the rounds, which other programs on the machine hardly
change. The sides run in turn. Features of digits are stored before the first round, as they are in every run but the first.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from _measure import Row, in_turn, machine, table, written
from _options import count

ROOT = Path(__file__).parents[2]
IMPORTS = "import torch, torchvision"
RUN, PREDICTION, PAGE = "python train.py", "ftlit predict RUN one.png", "the report page of python train.py"
DRAW = """
import sys, time, torch, torchvision
begin = time.process_time()
from ftlit.report.html import write_report
write_report(sys.argv[1])
print(time.process_time() - begin)
"""  # with the imports of matplotlib and scikit-learn
LIMITS = {RUN: "<= 2.0", PREDICTION: "<= 1.3"}


def commands(folder: Path) -> dict[str, list[str]]:
    """The arguments of Python for each side; `folder` holds the runs and the image."""
    return {
        IMPORTS: ["-c", IMPORTS],
        RUN: [str(ROOT / "train.py"), f"paths.run={folder / 'run'}"],
        PREDICTION: ["-m", "ftlit.cli.main", "predict", str(folder / "run"), str(folder / "one.png")],
        PAGE: ["-c", DRAW, str(folder / "run")],
    }


def draw_digit(path: Path) -> None:
    """Write an image of scikit-learn's digits."""
    from PIL import Image
    from sklearn.datasets import load_digits

    Image.fromarray((load_digits().images[0] * 16).clip(0, 255).astype("uint8")).save(path)


def cpu_seconds(arguments: Sequence[str], folder: Path) -> float:
    """User and system seconds of Python with these arguments; of `DRAW`, what it prints."""
    for word in arguments:
        if word.startswith("paths.run="):  # a run begins in an empty folder
            shutil.rmtree(word.removeprefix("paths.run="), ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "FTLIT_CACHE": str(folder / "cache"),
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # the first round compiles all modules, as an installation does
    done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, env=environment, cwd=folder)
    if DRAW in arguments:
        return float(done.stdout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def rows_of(samples: dict[str, list[float]]) -> list[Row]:
    """A row for each command, and one for the report."""
    best = {name: min(values) for name, values in samples.items()}
    found = [
        Row(f"{name} / {IMPORTS}", best[name], best[IMPORTS], best[name] / best[IMPORTS], limit, samples=samples)
        for name, limit in LIMITS.items()
    ]
    return [*found, Row(PAGE, best[PAGE], None, None, "<= 1.5 s", samples={PAGE: samples[PAGE]})]


def main(arguments: Any = None) -> None:
    """Measure, print the table, and write it if `--out` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_digit(folder / "one.png")
        sides: dict[str, Callable[[], float]] = {
            side: lambda words=words: cpu_seconds(words, folder)  # type: ignore[misc]
            for side, words in commands(folder).items()
        }
        in_turn(sides, 1)  # fills the page cache and the store of features
        found = rows_of(in_turn(sides, given.rounds))
    print(table(found))
    if given.out:
        written(given.out, machine(), {"rounds": given.rounds}, found)


if __name__ == "__main__":
    main()
