"""The plan of a sweep in its folder: how many jobs it has, what differs between them, and the command that resumes it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ftlit.formats import read_json, reading, write_json

FILE = "sweep.json"


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep is to run.

    Args:
        total: number of its jobs.
        swept: names of the options, other than the seed, that differ between them.
        resume: the command that runs the jobs that have not finished.
        jobs: the overrides of each job, by number; none before a search has drawn them, and in files of earlier versions.
        epochs: of a whole job, in a sweep by successive halving; 0 in others.
        monitor: the metric that ranks the settings there; empty in others.
        going: numbers of the jobs that train to the rung of successive halving that runs, or ran last.
    """

    total: int
    swept: Sequence[str]
    resume: str
    jobs: Sequence[Sequence[str]] = field(default=(), compare=False)
    epochs: int = 0
    monitor: str = ""
    going: Sequence[int] = field(default=(), compare=False)

    def write(self, folder: Path) -> None:
        """Write `sweep.json` atomically; the folder is made."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, asdict(self))


def read_plan(folder: Path) -> SweepPlan | None:
    """The plan in the folder of a sweep; `None` where an earlier version began it. Raises `UserError` for a damaged file."""
    path = folder / FILE
    if not path.is_file():
        return None
    with reading(path):
        return SweepPlan(**read_json(path))


def record_going(folder: Path, going: Sequence[int]) -> None:
    """Write the numbers of the jobs that train to the next rung to the plan of a sweep."""
    if plan := read_plan(folder):
        replace(plan, going=going).write(folder)


def remove_plan(folder: Path) -> None:
    """Remove the plan of a sweep of which no job began, and its folder, if that is empty."""
    (folder / FILE).unlink(missing_ok=True)
    with suppress(OSError):  # missing, or not empty
        folder.rmdir()
