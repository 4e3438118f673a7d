"""Sweeps of jobs that have several processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .fault import Found, fault
from .note import RAN
from .peers import PEERS, Ours

ROOT = Path(__file__).parents[2]
FOLDER = "hydra.sweep.dir=sweeps/${now:%H%M%S-%f}"
NOTE = "+callbacks.note._target_=planted.note.Note"
FAST = ("trainer=ddp_cpu", "scenario=large_similar", "debug=fast", "trainer.max_epochs=1", "data.num_workers=0", "report=false", NOTE)


def run(peer: Any, folder: Path, *asked: str) -> None:
    """A sweep, in `folder`: train.py for ftlit, a Hydra program of a few lines for the peers."""
    if isinstance(peer, Ours):
        command = [sys.executable, str(ROOT / "train.py"), "-m", *(word.replace("devices", "trainer.devices") for word in asked), *FAST]
    else:
        name = next(name for name, kind in PEERS.items() if type(peer) is kind)
        command = [sys.executable, str(Path(__file__).with_name("sweep_program.py")), "-m", *asked, f"peer={name}"]
    own = {"FTLIT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", RAN: str(folder / "ran"), "PYTHONPATH": str(ROOT / "benchmarks")}
    environment = {**os.environ, **own}
    done = subprocess.run([*command, FOLDER], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr[-1500:]}")


@fault("a sweep of two-process jobs is started again by the second process", names="multirun mode|started again")
def swept_twice(peer: Any, folder: Path) -> Found:
    """`-m seed=1,2` with two processes a job (Lightning#15737, PR#18175). Harm: more than one sweep, each with a folder of its own."""
    run(peer, folder, "seed=1,2", "devices=2")
    sweeps = [path for path in (folder / "sweeps").iterdir() if path.is_dir()]
    jobs = [path for sweep in sweeps for path in sweep.iterdir() if path.is_dir()]
    return Found(len(sweeps) > 1, f"{len(sweeps)} sweep{'s' * (len(sweeps) > 1)} of {len(jobs)} job folders in all, 1 of 2 asked for")


@fault("a sweep over 1 and 2 processes trains on half of the images", names="multirun mode|number of processes")
def half_the_images(peer: Any, folder: Path) -> Found:
    """`-m devices=1,2` (Lightning#15737). Harm: the second job's processes are fewer than it divides the images by."""
    run(peer, folder, "devices=1,2", "seed=1")
    number = len(list((folder / "ran").glob("2-*")))
    return Found(number != 2, f"{number} process{'es' * (number != 1)} in a job that divides the images by 2")
