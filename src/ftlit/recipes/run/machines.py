"""What several machines must have in common: the folder of the run, and the data."""

import hashlib
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ftlit.errors import UserError
from ftlit.recipes.run.data_record import digest_of_data
from ftlit.recipes.run.launched import agreed, launched
from ftlit.recipes.run.resume import CONFIG

APPEAR_SECONDS = 30.0  # until a shared disk shows the file of another machine
POLL_SECONDS = 0.2


def check_machines(cfg: DictConfig, data: Any) -> None:
    """Check, in each process, that it sees the folder of the run that the first one has written, and the same images and labels.

    A no-op on one machine.

    Raises:
        UserError: it does not.
    """
    own = launched()
    if own is None or own.nodes == 1:
        return
    path = Path(cfg.paths.run, CONFIG)
    folder, digest = agreed("machines", lambda: f"{_digest(path)} {digest_of_data(data)}").split(" ")
    deadline = time.monotonic() + APPEAR_SECONDS
    while _digest(path) != folder:
        if time.monotonic() > deadline:
            raise UserError(
                f"process {own.rank} does not see in {cfg.paths.run} what process 0 wrote there: give hydra.run.dir=... in a folder that "
                "all machines share; only the cache may be on the disk of each machine"
            )
        time.sleep(POLL_SECONDS)
    if digest_of_data(data) != digest:
        raise UserError(f"process {own.rank} reads other images or labels than process 0: give all machines the same data")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"
