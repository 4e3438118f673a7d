"""`ftlit report`: the report of a run once more, or the table and the page of a sweep."""

from collections.abc import Sequence
from pathlib import Path

from ftlit.errors import UserError
from ftlit.report import html
from ftlit.report.sweep_page import write_sweep_page
from ftlit.sweeps import comparison, jobs, summary
from ftlit.sweeps.caption import RESUME, finished


def report_again(folder: Path, *, plots: Sequence[html.Vector], against: Sequence[str] | None) -> None:
    """Write the report of a run and print its path, or print the table of a sweep and write its page.

    Args:
        folder: of a run, or of a sweep.
        plots: formats of the figures' files beside PNG; for a run.
        against: values of the setting to compare with; for a sweep.

    Raises:
        UserError: an option that does not go with this folder; see also `write_report`.
    """
    if not (jobs.is_sweep(folder) or (folder / "multirun.yaml").is_file()):
        if against is not None:
            raise UserError(f"--against compares the settings of a sweep, but {folder} is not the folder of a sweep: leave --against out")
        print(html.write_report(folder, plots=plots))
    elif plots:
        raise UserError(f"--plots is for the report of a run, and {folder} is a sweep: give the folder of one of its jobs")
    elif against is not None:
        comparison.print_comparison([job for _, job in jobs.jobs_of(folder)], " ".join(against).split())
    else:
        summary.report(folder)
        print(write_sweep_page(folder))
        found = [job for _, job in jobs.jobs_of(folder)]
        if (number := finished(found)) and found[0].sweep:
            print(f"{number}. {RESUME} {found[0].sweep.resume}")
