"""The table of a sweep, one row per setting: its numbers, its text, and the columns that fit the terminal."""

import re
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean, stdev

from rich.cells import cell_len
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ftlit.errors import shorten
from ftlit.formatting import without_control
from ftlit.run_folder import TRAIN_IMAGES
from ftlit.sweeps.caption import PER_CLASS, RESUME, caption_of, finished
from ftlit.sweeps.jobs import (
    SCORE,
    SEED,
    TEST,
    TEST_F1,
    Job,
    varying,
)
from ftlit.sweeps.probe_layers import SETTINGS_LAYERS, SettingLayer, layers_table
from ftlit.sweeps.setting_results import CHOSEN, RANKINGS, SettingResults, at_rung_of, chosen_by, rung_of, seconds_of

STD, INTERVAL, F1, SECONDS, FAILED = "std", "95 % interval", "macro F1", "job seconds", "failed or interrupted"
RUNG, IMAGES = "rung", "training images"
DIFFERENCE = "difference to the best (paired)"
LEFT_OUT_FIRST = (STD, F1, SECONDS, INTERVAL, DIFFERENCE)  # where the table is wider than the terminal, in this order
WORD = re.compile(r"\S+(?: (?:\*|to|±|†)(?!\S)| \(epoch \d+\))?")  # the sign after a number stays beside it, and its epoch
MAX_WORD = 24  # longer words of a cell are folded
BY_LAYER = f"By layer: {SETTINGS_LAYERS}, and 'Accuracy by layer' in sweep.html."
MAX_REASON = 30  # longer reasons of failed jobs stand below the printed table
MARK = " *"  # beside the number that is best
WIDTH_NOTE = "Left out at this width: {names} (sweep.md has all columns)."


def table_of(jobs: Sequence[Job]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, one row per setting."""
    results = SettingResults(jobs)
    settings, metric, by = results.settings, results.metric, results.by
    columns = {name: [setting.values[place] for setting in settings] for place, name in enumerate(results.names)}
    for field, name in CHOSEN.items():
        if any(getattr(job, field) for job in jobs):
            columns[name] = [chosen_by(setting, field) or "-" for setting in settings]
    if any(job.rung for job in jobs):
        columns[RUNG] = [rung_of(setting) for setting in settings]
        columns[at_rung(jobs)] = ["-" if (value := at_rung_of(setting)) is None else f"{value:.4f}" for setting in settings]
    if not any(setting.done for setting in settings):
        columns[FAILED] = [failure_reasons(setting.failed) for setting in settings]
        return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]
    if PER_CLASS in results.names and any(TRAIN_IMAGES in job.metrics for job in jobs):
        columns[IMAGES] = [f"{mean(values):,.0f}" if (values := setting.of(TRAIN_IMAGES)) else "-" for setting in settings]
    columns["seeds"] = [str(len(setting.done)) for setting in settings]
    label = SCORE if metric == SCORE else "test accuracy"
    columns[label] = [_mean(setting.of(metric)) for setting in settings]
    columns[STD] = [f"{stdev(values):.4f}" if len(values := setting.spread(metric)) > 1 else "-" for setting in settings]
    columns[INTERVAL] = [f"{limits[0]:.4f} to {limits[1]:.4f}" if limits else "-" for limits in results.intervals]
    if any(results.differences):
        columns[DIFFERENCE] = [str(found or "-") for found in results.differences]
    if metric == TEST and any(TEST_F1 in job.metrics for job in jobs):
        columns[F1] = [_mean(setting.of(TEST_F1)) for setting in settings]
    columns[results.ranking] = [_mean(setting.of(by)) + (MARK if setting in results.best else "") for setting in settings]
    columns[SECONDS] = ["-" if (seconds := seconds_of(setting)) is None else f"{seconds:.1f}" for setting in settings]
    if any(job.has_failed for job in jobs):
        columns[FAILED] = [failure_reasons(setting.failed) for setting in settings]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def at_rung(jobs: Sequence[Job]) -> str:
    """The name of the metric by which the settings of a sweep by successive halving are ranked, at their last rungs."""
    monitor = jobs[0].sweep.monitor if jobs[0].sweep else ""
    return f"{RANKINGS.get(monitor, monitor or 'metric')} at the rung"


def _mean(values: Sequence[float]) -> str:
    return f"{mean(values):.4f}" if values else "-"


def failure_reasons(failed: Sequence[Job]) -> str:
    """One line per reason: `job 3 (seed=1): cuda out of memory`, or `jobs 3, 4: ...`."""
    reasons: dict[str, list[Job]] = {}
    for job in failed:
        reasons.setdefault(job.reason, []).append(job)
    return "\n".join(f"{_job_numbers(jobs)}: {reason}" for reason, jobs in reasons.items())


def _job_numbers(jobs: Sequence[Job]) -> str:
    if len(jobs) > 1:
        return f"jobs {shorten(job.number for job in jobs)}"
    seed = jobs[0].values.get(SEED)
    return f"job {jobs[0].number}{f' (seed={seed})' if seed else ''}"


def markdown_of(jobs: Sequence[Job], layers: Sequence[SettingLayer] = ()) -> str:
    """The table as markdown; below it that of the layers, where there is one setting, or the files that hold it."""
    parts = [_markdown(*table_of(jobs)), caption_of(jobs)]
    if layers:
        parts.append(BY_LAYER if has_several(jobs) else _markdown(*layers_table(jobs, layers)))
    parts += [f"{RESUME}\n\n    {jobs[0].sweep.resume}"] if finished(jobs) and jobs[0].sweep else []
    return "\n\n".join(parts) + "\n"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = (" | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in line) for line in (header, ["---"] * len(header), *rows))
    return "\n".join(f"| {line} |" for line in cells)


def has_several(jobs: Sequence[Job]) -> bool:
    """Whether the jobs have several settings, whose layers would fill more than a screen."""
    return bool(varying(jobs))


def printed_layers(jobs: Sequence[Job], layers: Sequence[SettingLayer]) -> Table | str:
    """The layers of the probes for a terminal: their table where there is one setting, else where it is."""
    if has_several(jobs):
        return BY_LAYER
    header, rows = layers_table(jobs, layers)
    table = Table()
    for name in header:
        table.add_column(escape(name), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def printed_table(jobs: Sequence[Job], width: int) -> Group:
    """The table for a terminal of this width, its caption, and long reasons of failed jobs. No word of a cell is cut: columns of
    `LEFT_OUT_FIRST` are left out where there is no room for them, and the caption names them; then cells are broken between words.
    """
    header, rows = table_of(jobs)
    columns = {name: [row[place] for row in rows] for place, name in enumerate(header)}
    long = [job for job in jobs if job.has_failed and len(job.reason) > MAX_REASON]
    if long:
        short = [replace(job, reason="see below") if job in long else job for job in jobs]
        columns[FAILED] = [failure_reasons(setting.failed) for setting in SettingResults(short).settings]
    left_out = []
    for name in LEFT_OUT_FIRST:
        if name in columns and _total([_longest_word(name, cells) for name, cells in columns.items()]) > width:
            left_out.append(name)
            del columns[name]
    least = {name: _longest_word(name, cells) for name, cells in columns.items()}
    widths = {name: max(cell_len(line) for cell in (name, *cells) for line in cell.splitlines()) for name, cells in columns.items()}
    while _total(list(widths.values())) > width and (wide := [name for name in widths if widths[name] > least[name]]):
        widths[max(wide, key=lambda name: widths[name])] -= 1
    caption = " ".join([caption_of(jobs), *([WIDTH_NOTE.format(names=", ".join(left_out))] if left_out else [])])
    table = Table()
    for name, own in widths.items():
        table.add_column(escape(name), width=own, overflow="fold")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, row))
    return Group(table, Text(caption), *([Text(without_control(failure_reasons(long)))] if long else []))


def _longest_word(name: str, cells: Sequence[str]) -> int:
    """The length of the longest word of a column, `MAX_WORD` at most; see `WORD`."""
    return min(MAX_WORD, max(cell_len(word) for cell in (name, *cells) for word in WORD.findall(cell)))


def _total(widths: Sequence[int]) -> int:
    """The width of a table, with its borders."""
    return sum(width + 3 for width in widths) + 1
