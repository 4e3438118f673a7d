"""What several machines must have in common: the folder of the run, and the data."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ftlit.errors import UserError
from ftlit.recipes.processes.launched import agreed, launched
from ftlit.recipes.resuming.data_record import difference, record_of
from ftlit.recipes.resuming.resume import CONFIG, DATA_OPTIONS

APPEAR_SECONDS = 90.0  # until a shared disk shows the file of another machine: NFS keeps the list of a folder for 60 s
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
    record = record_of(data)
    folder, first = agreed("machines", lambda: f"{_digest(path)} {json.dumps(record)}").split(" ", 1)
    deadline = time.monotonic() + APPEAR_SECONDS
    while _digest(path) != folder:
        if time.monotonic() > deadline:
            raise UserError(
                f"process {own.rank} does not see in {cfg.paths.run} what process 0 wrote there: give hydra.run.dir=... in a folder that "
                "all machines share; only the cache may be on the disk of each machine"
            )
        time.sleep(POLL_SECONDS)
    if differs := difference(json.loads(first), record, ("in process 0", "here")):
        places = [f"{name}={value}" for name in DATA_OPTIONS[:-1] if (value := OmegaConf.select(cfg, name))]
        raise UserError(
            f"process {own.rank} reads other data than process 0 ({', '.join([*places, differs])}): copy the same files to all machines"
        )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"
