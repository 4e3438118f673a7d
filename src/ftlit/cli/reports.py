"""`ftlit report`: the report of a run once more, or the table and the page of a sweep; comparisons of runs and of settings."""

from collections.abc import Sequence
from pathlib import Path

from ftlit.errors import UserError
from ftlit.formatting import shown
from ftlit.report import html, run_comparison
from ftlit.report.sweep_page import write_sweep_page
from ftlit.run_folder import existing_run
from ftlit.sweeps import comparison, jobs, summary
from ftlit.sweeps.caption import RESUME, finished


def report_again(folder: Path, *, plots: Sequence[html.Vector], against: Sequence[str] | None) -> None:
    """Write the report of a run and print its path, or print the table of a sweep and write its page.

    Args:
        folder: of a run, or of a sweep.
        plots: formats of the figures' files beside PNG; for a run.
        against: the folder of a run to compare with; for a sweep values of the setting to compare with.

    Raises:
        UserError: an option that does not go with this folder; see also `write_report`.
    """
    if not (jobs.is_sweep(folder) or (folder / "multirun.yaml").is_file()):
        if against is None:
            print(html.write_report(folder, plots=plots))
        elif plots:
            raise UserError("--against only prints a comparison, and --plots is for the report: leave one of them out")
        else:
            run_comparison.print_run_comparison(folder, _other_run(folder, against))
    elif plots:
        raise UserError(f"--plots is for the report of a run, and {folder} is a sweep: give the folder of one of its jobs")
    elif against is not None:
        _refuse_sweep(folder, against)
        comparison.print_comparison([job for _, job in jobs.jobs_of(folder)], " ".join(against).split())
    else:
        summary.report(folder)
        print(write_sweep_page(folder))
        found = [job for _, job in jobs.jobs_of(folder)]
        if (number := finished(found)) and found[0].sweep:
            print(f"{number}. {RESUME} {found[0].sweep.resume}")


def _refuse_sweep(folder: Path, against: Sequence[str]) -> None:
    """Raise `UserError` where `--against` names a sweep in place of values of a setting."""
    if len(against) == 1 and against[0] and jobs.is_sweep(Path(against[0]).expanduser()):
        two_jobs = f"ftlit report {shown(folder / '0')} --against {shown(Path(against[0], '0'))}"
        raise UserError(
            f"--against {against[0]} is a sweep, and two sweeps cannot be compared: give swept values of {shown(folder)}, as "
            f"in --against head=mlp, or compare two jobs, as in {two_jobs}"
        )


def _other_run(folder: Path, against: Sequence[str]) -> Path:
    """The run that `--against` names; raises `UserError` for several, for a sweep, and for values of options."""
    words = " ".join(against)
    if len(against) != 1 or not words or ("=" in words and not Path(words).exists()):
        raise UserError(
            f"--against '{words}': {shown(folder)} is a single run, and this is not the folder of another one: give such a folder, "
            "as in --against runs/other (values of options, as in --against head=mlp, are for the folder of a sweep)"
        )
    other = existing_run(words)
    if jobs.is_sweep(other):
        raise UserError(f"--against {words} is a sweep: give the folder of one of its jobs, such as --against {shown(other / '0')}")
    return other
