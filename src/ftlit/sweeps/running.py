"""Wait for jobs of a sweep that run in other processes."""

import time
from pathlib import Path

from ftlit.sweeps.jobs import FILE, read_job


def wait_for_running(folder: Path, seconds: float) -> None:
    """Wait until the jobs that run now in other processes have written that they ended, for this time at most."""
    until = time.monotonic() + seconds
    running = [path.parent for path in folder.glob(f"*/{FILE}") if _is_running(path.parent)]
    while time.monotonic() < until and any(map(_is_running, running)):
        time.sleep(0.1)


def _is_running(folder: Path) -> bool:
    job = read_job(folder)
    return job is not None and job.status is None
