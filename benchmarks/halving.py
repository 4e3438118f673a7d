"""Successive halving of 27 settings against the full grid: optimizer steps, and the test accuracy of the setting that each chooses.

python benchmarks/halving.py --data DATA --work FOLDER [--names digits,hymenoptera] [--seeds 5] [--out benchmarks/results/halving.json]

The full grid runs with each seed. What halving chooses follows from its files, as a job trains the same epochs in both: with
`--verify 1` `hparams_search=halving` also runs with that many seeds, and its choice, metrics and results must be those of the replay.
Jobs that have finished in FOLDER are not repeated.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from _ledger import interval
from _measure import machine, written
from _options import count, existing, interruptible

from ftlit.sweeps.halving import Monitor, Rung, rungs_of, score_at, share_of_steps, survivors
from ftlit.sweeps.jobs import STOPPED, TEST, VAL, Job, jobs_of
from ftlit.sweeps.setting_jobs import Setting, settings_of

ROOT = Path(__file__).resolve().parents[1]
EPOCHS, FIRST, ETA, REDUCTION = 9, 1, 3, 3  # those of conf/hparams_search/halving.yaml
GRID = (
    *("scenario=small_similar", "head=mlp", f"trainer.max_epochs={EPOCHS}", "optimizer.lr=3e-4,3e-3,3e-2"),
    *("optimizer.weight_decay=0,0.01,1", "head.hidden=[32],[256],[1024]", "report=false", "trainer=cpu", "data.num_workers=0"),
)
NAMES = ("digits", "hymenoptera")
ACCURACY = Monitor(VAL, lowest=False)
OF_A_JOB = ("metrics.csv", "result.json")


def words_of(name: str, data: Path) -> list[str]:
    """The words of `train.py` for network and images."""
    if name == "digits":
        return ["backbone=glyph", "data.per_class=20"]
    weights = data / "weights/squeezenet1_1_imagenet_torchvision.pth"
    return ["backbone=squeezenet1_1", f"backbone.weights={weights}", "data=folder", f"data.root={data / 'images' / name}"]


def run_sweep(words: Sequence[str], folder: Path) -> Path:
    """Run the jobs of a sweep that have not finished. Returns its folder."""
    command = [sys.executable, str(ROOT / "train.py"), "-m", *words, f"hydra.sweep.dir={folder}", "sweep.resume=true"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"{folder.name}: done", file=sys.stderr, flush=True)
    return folder


def plan() -> list[Rung]:
    """The rungs of the grid."""
    sizes = [word.count(",") + 1 for word in GRID if word.split("=")[0] in ("optimizer.lr", "optimizer.weight_decay", "head.hidden")]
    return rungs_of(sizes[0] * sizes[1] * sizes[2], EPOCHS, first=FIRST, eta=ETA, reduction=REDUCTION)


def replay(folder: Path) -> list[Setting]:
    """The settings that reach the last rung, by the files of the full grid."""
    rungs, going = plan(), settings_of([job for _, job in sorted(jobs_of(folder), key=lambda pair: pair[1].number)])
    for rung, following in pairwise(rungs):
        numbers = [job.number for setting in going for job in setting.jobs]
        scores = {number: score_at(folder / str(number), rung.epochs, ACCURACY) for number in numbers}
        going = survivors(going, scores, following.settings)
    return going


def best_of(folder: Path, settings: Sequence[Setting]) -> Job:
    """The job of the setting with the best val accuracy, then the least val loss."""
    jobs = [job for setting in settings for job in setting.jobs]
    return min(jobs, key=lambda job: (*score_at(folder / str(job.number), EPOCHS, ACCURACY), job.number))


def check(real: Path, full: Path) -> None:
    """Raise `AssertionError` where the command chose other settings than the replay, or computed anything else."""
    found = {job.number: job for _, job in jobs_of(real)}
    finished = {number for number, job in found.items() if job.status == 0}
    assert finished == {job.number for setting in replay(full) for job in setting.jobs}, finished
    for number, job in found.items():
        ours, whole = real / str(number), full / str(number)
        assert job.status in (0, STOPPED) and same_epochs(ours, whole, job.epochs), job
        assert job.status == STOPPED or all((ours / file).read_text() == (whole / file).read_text() for file in OF_A_JOB), job


def same_epochs(ours: Path, whole: Path, epochs: int) -> bool:
    """Whether two jobs have the same scores at each of the first epochs."""
    return all(score_at(ours, end, ACCURACY) == score_at(whole, end, ACCURACY) for end in range(1, epochs + 1))


def measured(data: Path, work: Path, name: str, seed: int, *, verify: bool) -> dict[str, Any]:
    """Steps and accuracy of both for one seed."""
    words = [*words_of(name, data), *GRID, f"cache.folder={work}/cache", f"seed={seed}"]
    full = run_sweep(words, work / "full" / f"{name}-{seed}")
    if verify:
        check(run_sweep([*words, "hparams_search=halving"], work / "halving" / f"{name}-{seed}"), full)
    whole, halved = best_of(full, settings_of([job for _, job in jobs_of(full)])), best_of(full, replay(full))
    row = {"data": name, "seed": seed, "verified": verify, "share": share_of_steps(plan())}
    for label, job in (("full", whole), ("halving", halved)):
        row |= {label: job.metrics[TEST], f"{label}_val": job.metrics[VAL], f"{label}_job": job.number}
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean accuracy of the choices, their paired difference, and how often both choose the same setting."""
    lines = ["| data | seeds | steps | full grid | halving | difference | same choice |", "|" + "---|" * 7]
    for name in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == name]
        whole, halved = (sum(row[label] for row in own) / len(own) for label in ("full", "halving"))
        mean, half = interval([row["halving"] - row["full"] for row in own])
        same = sum(row["full_job"] == row["halving_job"] for row in own)
        difference = f"{mean:+.4f}" + (f" ± {half:.4f}" if half is not None else "")
        lines.append(f"| {name} | {len(own)} | {own[0]['share']:.0%} | {whole:.4f} | {halved:.4f} | {difference} | {same} of {len(own)} |")
    return "\n".join(lines)


def main() -> None:
    """Run, write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=existing, default=os.environ.get("FTLIT_TEST_DATA"), help="default: FTLIT_TEST_DATA")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--names", default=",".join(NAMES))
    parser.add_argument("--seeds", type=count, default=5)
    parser.add_argument("--verify", type=int, default=1, help="seeds for which the command runs too")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    work = given.work.resolve()
    with interruptible():
        pairs = [(name, seed) for seed in range(given.seeds) for name in given.names.split(",")]
        rows = [measured(given.data, work, name, seed, verify=seed < given.verify) for name, seed in pairs]
    if given.out:
        options = {"seeds": given.seeds, "rungs": [[rung.epochs, rung.settings] for rung in plan()], "epochs": EPOCHS}
        written(given.out, machine(), options, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
