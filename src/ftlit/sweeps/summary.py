"""The files of a sweep: one csv file per job, per setting and per layer, markdown and figure; and its printed table."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

from rich.markup import escape

from ftlit.errors import UserError, one_line
from ftlit.files import write_atomically, write_rows
from ftlit.formatting import harmless
from ftlit.printing import console, show
from ftlit.run_folder import PROBE_LAYERS, TRAIN_IMAGES
from ftlit.sweeps.jobs import SCORE, SEED, TEST_F1, Job, jobs_of, varying
from ftlit.sweeps.probe_layers import SETTINGS_LAYERS, JobLayers, read_layers, settings_layers, write_layers, write_settings_layers
from ftlit.sweeps.setting_results import CHOSEN, SettingResults, at_rung_of, chosen_by, seconds_of
from ftlit.sweeps.settings_table import RUNG, SECONDS, at_rung, markdown_of, printed_layers, printed_table
from ftlit.sweeps.sweep_figure import draw

TABLE_FILES = ("sweep.csv", "settings.csv", "sweep.md", "sweep.png", "sweep.html", PROBE_LAYERS, SETTINGS_LAYERS)


def write_csv(path: Path, jobs: Sequence[tuple[Path, Job]]) -> None:
    """Write one row per job."""
    all_jobs = [job for _, job in jobs]
    swept = [*varying(all_jobs), *([SEED] if any(SEED in job.values for job in all_jobs) else [])]
    names = list(dict.fromkeys(name for _, job in jobs for name in job.metrics))
    halved = any(job.rung for _, job in jobs)
    reached = {"rung": "rung", "epochs": "epochs", "at_last_rung": at_rung(all_jobs)} if halved else {}
    rows: list[tuple[object, ...]] = [
        ("job", *swept, "overrides", "advised", "cut", "status", "reason", *reached.values(), *names, SCORE, SECONDS, "folder")
    ]
    for folder, job in jobs:
        metrics = (job.metrics.get(name) for name in names)
        overrides = " ".join(job.overrides)
        values = (harmless(job.values.get(name, "")) for name in swept)
        about = job.number, *values, harmless(overrides), job.advised, harmless(job.cut), job.status_in_words, harmless(job.reason)
        rows.append((*about, *(getattr(job, name) for name in reached), *metrics, job.score, job.seconds, folder.name))
    write_rows(path, rows)


def write_settings(path: Path, jobs: Sequence[Job]) -> None:
    """Write one row per setting, in the order of the table; `best` is 1 for those that the table marks."""
    results = SettingResults(jobs)
    metric, by = results.metric, results.by
    others = [name for name in (TEST_F1, by, TRAIN_IMAGES) if name != metric]
    statistics = (metric, "std", "low", "high", "difference", "difference_low", "difference_high", "difference_seeds")
    rung = [RUNG, at_rung(jobs)] if any(job.rung for job in jobs) else []
    rows: list[Sequence[object]] = [(*results.names, *CHOSEN.values(), *rung, "seeds", *statistics, *others, "best", SECONDS, "failed")]
    for setting, limits, found in zip(results.settings, results.intervals, results.differences, strict=True):
        values = setting.of(metric)
        about = [*map(harmless, setting.values), *(harmless(chosen_by(setting, field)) for field in CHOSEN)]
        samples = setting.spread(metric)
        spread = [_mean(values), stdev(samples) if len(samples) > 1 else None, *(limits or (None, None))]
        compared = [found.mean, *(found.limits or (None, None)), found.seeds] if found else [None] * 4
        ranked = [_mean(setting.of(name)) for name in others]
        reached = [*([max(job.rung for job in setting.jobs), at_rung_of(setting)] if rung else []), len(setting.done)]
        ends = int(setting in results.best), seconds_of(setting), len(setting.failed)
        rows.append([*about, *reached, *spread, *compared, *ranked, *ends])
    write_rows(path, rows)


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None


def report(folder: str | Path) -> None:
    """Print the table of a sweep and write its files to its folder: `sweep.csv`, `settings.csv`, `sweep.md`, `sweep.png`, and where a job
    ran `recipe=probe`, `probe_layers.csv` and `settings_layers.csv`. A file that cannot be written is a line on stderr. Raises `UserError`
    as `jobs_of` does.
    """
    folder = Path(folder)
    found = jobs_of(folder)
    jobs = [job for _, job in found]
    table, probed = printed_table(jobs, console().width), _readable_layers(found)
    layers = settings_layers(jobs, probed)
    try:
        show(table)
        if layers:
            show(printed_layers(jobs, layers))
    finally:  # also if nobody reads stdout any more
        writers: dict[str, Callable[[Path], object]] = {
            "sweep.csv": lambda path: write_csv(path, found),
            "settings.csv": lambda path: write_settings(path, jobs),
            "sweep.md": lambda path: write_atomically(path, markdown_of(jobs, layers)),
        }
        if any(job.status == 0 or job.at_rungs for job in jobs):
            writers["sweep.png"] = lambda path: draw(path, jobs)
        if probed:
            writers[PROBE_LAYERS] = lambda path: write_layers(path, probed)
            writers[SETTINGS_LAYERS] = lambda path: write_settings_layers(path, jobs, layers)
        written = [name for name, write in writers.items() if _write(folder / name, write)]
    if written:
        show(f"{', '.join(written)}: {escape(str(folder))}")


def remove_table(folder: Path) -> None:
    """Remove the files that show the results of a sweep."""
    for name in TABLE_FILES:
        (folder / name).unlink(missing_ok=True)


def _readable_layers(found: Sequence[tuple[Path, Job]]) -> JobLayers:
    """The layers of the probes; none where a file is damaged, which is a line on stderr."""
    try:
        return read_layers(found)
    except UserError as error:
        print(f"ftlit: no {PROBE_LAYERS} and no {SETTINGS_LAYERS}: {one_line(error)}", file=sys.stderr)
        return []


def _write(path: Path, write: Callable[[Path], object]) -> bool:
    try:
        write(path)
    except Exception as error:  # matplotlib raises any error, and the table matters more
        print(f"ftlit: no {path.name}: {one_line(error)}", file=sys.stderr)
        return False
    return True
