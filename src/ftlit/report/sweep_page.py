"""The page of a sweep: its settings with paired differences, the figure, and its jobs with links to their reports."""

import base64
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from ftlit.files import write_atomically
from ftlit.formatting import duration_in_words
from ftlit.report.document import Markup, document, table
from ftlit.report.html import PAGE
from ftlit.sweeps.caption import RESUME, caption_of, finished
from ftlit.sweeps.jobs import CROSS_VALIDATED, SEED, TEST, VAL, Job, jobs_of, varying
from ftlit.sweeps.probe_layers import SettingLayer, layers_table, read_layers, settings_layers
from ftlit.sweeps.setting_results import RANKINGS, SettingResults
from ftlit.sweeps.settings_table import DIFFERENCE, RUNG, at_rung, table_of

SWEEP_PAGE, FIGURE = "sweep.html", "sweep.png"
FIGURE_NOTE = (
    "A point for each seed; mean and 95 % interval of each setting. Below, where there is a plot: the metric that ranks the settings, at "
    "each rung of successive halving; and the results by the values of a numeric option."
)
LAYERS_NOTE = (
    "Means over samples (seeds, and random samples of probe.repeats), with a 95 % interval (Student's t) where samples differ. Choose a "
    "layer by its held-out accuracy: the test accuracy of a layer chosen by it would be biased upwards. All digits: settings_layers.csv."
)


def write_sweep_page(folder: str | Path) -> Path:
    """Write `sweep.html` to the folder of a sweep, with its `sweep.png`. Returns its path. Raises `UserError` as `jobs_of` does."""
    folder = Path(folder)
    figure = folder / FIGURE
    text = sweep_page(folder.resolve().name, jobs_of(folder), figure.read_bytes() if figure.is_file() else None)
    write_atomically(target := folder / SWEEP_PAGE, text.encode("utf-8", "replace"))
    return target


def sweep_page(name: str, found: Sequence[tuple[Path, Job]], figure: bytes | None) -> str:
    """The page as text. Every text from outside is escaped.

    Args:
        name: of the sweep.
        found: folders and jobs.
        figure: PNG file with the settings, if there is one.
    """
    jobs = [job for _, job in found]
    counts = Counter(job.status_in_words for job in jobs)
    states = ", ".join(f"{number} {state}" for state, number in counts.items())
    sections = [("settings", "Settings", _settings(jobs))]
    if figure:
        shown = f'<img alt="settings" src="data:image/png;base64,{base64.b64encode(figure).decode()}">'
        sections.append(("figure", "Settings and seeds", f"<p>{escape(FIGURE_NOTE)}</p>{shown}"))
    if layers := settings_layers(jobs, read_layers(found)):
        sections.append(("layers", "Accuracy by layer", _layers(jobs, layers)))
    sections.append(("jobs", "Jobs", _jobs(found)))
    return document(f"sweep {name}", f"<p>{len(jobs)} jobs: {escape(states)}</p>{_incomplete(jobs)}", sections)


def _incomplete(jobs: Sequence[Job]) -> str:
    """That jobs are missing, and the command that runs them; empty where none is."""
    if not (count := finished(jobs)) or jobs[0].sweep is None:
        return ""
    return f"<p><b>{count}.</b> {escape(RESUME)}</p><pre>{escape(jobs[0].sweep.resume)}</pre>"


def _settings(jobs: Sequence[Job]) -> str:
    """The table of the sweep, with established differences in bold, and its caption."""
    header, rows = table_of(jobs)
    results, place = SettingResults(jobs), header.index(DIFFERENCE) if DIFFERENCE in header else None
    shown: list[list[str]] = [list(row) for row in rows]
    for row, found in zip(shown, results.differences, strict=True):
        if place is not None and found and found.is_established:
            row[place] = Markup(f"<b>{escape(row[place])}</b>")
    return table(header, shown, sortable=True) + f"<p>{escape(caption_of(jobs))}</p>"


def _layers(jobs: Sequence[Job], layers: Sequence[SettingLayer]) -> str:
    """A row for each setting, cut, kind and pooling of the probes, and how to read it."""
    header, rows = layers_table(jobs, layers)
    return f"<p>{escape(LAYERS_NOTE)}</p>" + table(header, rows, sortable=True)


def _jobs(found: Sequence[tuple[Path, Job]]) -> str:
    """A row for each job, in the order of their numbers, with the options that differ; above it those that all jobs have."""
    names = {**RANKINGS, TEST: "test accuracy"}
    jobs = [job for _, job in found]
    swept = [*varying(jobs), SEED] if any(SEED in job.values for job in jobs) else varying(jobs)
    common = [word for word in found[0][1].overrides if word.lstrip("+").partition("=")[0] not in swept]
    above = f"<p>All jobs: {escape(' '.join(common))}</p>" if common else ""
    metrics = [name for name in (VAL, CROSS_VALIDATED, TEST) if any(name in job.metrics for _, job in found)]
    halved = any(job.rung for job in jobs)
    rows = []
    for folder, job in sorted(found, key=lambda pair: pair[1].number):
        page, text = folder / PAGE, str(job.number)
        link = Markup(f'<a href="{quote(folder.name)}/{PAGE}">{text}</a>') if page.is_file() else text
        scores = [f"{job.metrics[name]:.4f}" if name in job.metrics else "-" for name in metrics]
        seconds = "-" if job.seconds is None else duration_in_words(job.seconds)
        values = [job.values.get(name, "-") for name in swept]
        reached = [job.rung_in_words, "-" if job.at_last_rung is None else f"{job.at_last_rung:.4f}"] if halved else []
        rows.append([link, *values, job.status_in_words, *reached, *scores, seconds, job.reason or "-"])
    header = ["job", *swept, "status", *([RUNG, at_rung(jobs)] if halved else []), *(names[name] for name in metrics), "duration", "reason"]
    return above + table(header, rows, sortable=True)
