"""Faults of sweeps with several processes per job."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .fault import Found, fault
from .note import NOTES_FOLDER
from .peers import PEERS, Ours

ROOT = Path(__file__).parents[2]
FOLDER = "hydra.sweep.dir=sweeps/${now:%H%M%S-%f}"
NOTE = "+callbacks.note._target_=planted.note.Note"
FAST = ("trainer=ddp_cpu", "scenario=large_similar", "debug=fast", "trainer.max_epochs=1", "data.num_workers=0", "report=false", NOTE)


def run(peer: Any, folder: Path, *overrides: str) -> None:
    """Run a sweep in `folder`: train.py for ftlit, a small Hydra program for the peers."""
    if isinstance(peer, Ours):
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            "-m",
            *(override.replace("devices", "trainer.devices") for override in overrides),
            *FAST,
        ]
    else:
        name = next(name for name, peer_class in PEERS.items() if isinstance(peer, peer_class))
        command = [sys.executable, str(Path(__file__).with_name("sweep_program.py")), "-m", *overrides, f"peer={name}"]
    variables = {
        "FTLIT_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        NOTES_FOLDER: str(folder / "notes"),
        "PYTHONPATH": str(ROOT / "benchmarks"),
    }
    environment = {**os.environ, **variables}
    done = subprocess.run([*command, FOLDER], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr[-1500:]}")


def counted(number: int, singular: str, plural: str) -> str:
    """A number with its noun."""
    return f"{number} {singular if number == 1 else plural}"


@fault("the second process of a job starts the sweep again", pattern="multirun mode|started again")
def swept_twice(peer: Any, folder: Path) -> Found:
    """`-m seed=1,2` with two processes per job (Lightning#15737, PR#18175). Harm: more than one sweep, each in its own folder."""
    run(peer, folder, "seed=1,2", "devices=2")
    sweeps = [path for path in (folder / "sweeps").iterdir() if path.is_dir()]
    jobs = [path for sweep in sweeps for path in sweep.iterdir() if path.is_dir()]
    return Found(len(sweeps) > 1, f"{counted(len(sweeps), 'sweep', 'sweeps')} with {len(jobs)} job folders, expected 1 with 2")


@fault("a sweep over 1 and 2 processes trains on half of the images", pattern="multirun mode|number of processes")
def half_the_images(peer: Any, folder: Path) -> Found:
    """`-m devices=1,2` (Lightning#15737). Harm: the second job has fewer processes than parts into which it divides the images."""
    run(peer, folder, "devices=1,2", "seed=1")
    number = len(list((folder / "notes").glob("2-*")))
    return Found(number != 2, f"{counted(number, 'process', 'processes')} in a job that divides the images by 2")
