"""The files of a sweep: one csv file per job, per setting and per layer, markdown and figure; and its printed table."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

from rich.markup import escape

from ftlit.errors import UserError, one_line
from ftlit.files import write_atomically, write_figure, write_rows
from ftlit.formatting import harmless
from ftlit.printing import console, show
from ftlit.run_folder import PROBE_LAYERS
from ftlit.sweeps.jobs import SCORE, TEST_F1, Job, jobs_of
from ftlit.sweeps.probe_layers import SETTINGS_LAYERS, JobLayers, read_layers, settings_layers, write_layers, write_settings_layers
from ftlit.sweeps.setting_jobs import best_first
from ftlit.sweeps.setting_results import CHOSEN, SettingResults, chosen_by, seconds_of
from ftlit.sweeps.settings_table import RUNG, SECONDS, markdown_of, printed_layers, printed_table

TABLE_FILES = ("sweep.csv", "settings.csv", "sweep.md", "sweep.png", "sweep.html", PROBE_LAYERS, SETTINGS_LAYERS)
MAX_DRAWN_SETTINGS = 40  # settings in the picture


def write_csv(path: Path, jobs: Sequence[tuple[Path, Job]]) -> None:
    """Write one row per job."""
    names = list(dict.fromkeys(name for _, job in jobs for name in job.metrics))
    reached = ("rung", "epochs") if any(job.rung for _, job in jobs) else ()
    rows: list[tuple[object, ...]] = [
        ("job", "overrides", "advised", "cut", "status", "reason", *reached, *names, SCORE, SECONDS, "folder")
    ]
    for folder, job in jobs:
        metrics = (job.metrics.get(name) for name in names)
        overrides = " ".join(job.overrides)
        about = job.number, harmless(overrides), job.advised, harmless(job.cut), job.status_in_words, harmless(job.reason)
        rows.append((*about, *(getattr(job, name) for name in reached), *metrics, job.score, job.seconds, folder.name))
    write_rows(path, rows)


def write_settings(path: Path, jobs: Sequence[Job]) -> None:
    """Write one row per setting, in the order of the table; `best` is 1 for those that the table marks."""
    results = SettingResults(jobs)
    metric, by = results.metric, results.by
    others = [name for name in (TEST_F1, by) if name != metric]
    statistics = (metric, "std", "low", "high", "difference", "difference_low", "difference_high", "difference_seeds")
    rung = [RUNG] if any(job.rung for job in jobs) else []
    rows: list[Sequence[object]] = [(*results.names, *CHOSEN.values(), *rung, "seeds", *statistics, *others, "best", SECONDS, "failed")]
    for setting, limits, found in zip(results.settings, results.intervals, results.differences, strict=True):
        values = setting.of(metric)
        about = [*map(harmless, setting.values), *(harmless(chosen_by(setting, field)) for field in CHOSEN)]
        samples = setting.spread(metric)
        spread = [_mean(values), stdev(samples) if len(samples) > 1 else None, *(limits or (None, None))]
        compared = [found.mean, *(found.limits or (None, None)), found.seeds] if found else [None] * 4
        ranked = [_mean(setting.of(name)) for name in others]
        reached = [*(max(job.rung for job in setting.jobs) for _ in rung), len(setting.done)]
        ends = int(setting in results.best), seconds_of(setting), len(setting.failed)
        rows.append([*about, *reached, *spread, *compared, *ranked, *ends])
    write_rows(path, rows)


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None


def draw(path: Path, jobs: Sequence[Job]) -> None:
    """Draw a row per setting, in the order of the table, the best `MAX_DRAWN_SETTINGS`: a point per seed, the mean and its interval, as
    PNG.
    """
    from matplotlib.figure import Figure  # here, so that the command line is read without it; no pyplot: no screen is needed

    results = SettingResults(jobs)
    names, metric = results.names, results.metric
    known = [setting for setting in best_first(results.settings, results.by) if setting.of(metric)]
    shown = [pair for pair in zip(results.settings, results.intervals, strict=True) if pair[0] in known[:MAX_DRAWN_SETTINGS]]
    labels = ["\n".join(map("=".join, zip(names, setting.values, strict=True))) or "all jobs" for setting, _ in shown]
    lines = max(1, len(names))
    figure = Figure(figsize=(7.0, 1.2 + (0.3 + 0.2 * lines) * max(1, len(shown))), layout="constrained")
    axes = figure.subplots()
    for place, (setting, limits) in enumerate(shown):
        values = setting.of(metric)
        middle = mean(values)
        error = [[middle - limits[0]], [limits[1] - middle]] if limits else None
        axes.plot(values, [place] * len(values), "o", color="C0", alpha=0.4, label="one seed")
        axes.errorbar([middle], [place], xerr=error, fmt="D", color="black", capsize=4, markersize=5, label="mean, 95 %")
    axes.set_yticks(range(len(shown)), labels, fontsize=8, parse_math=False)
    axes.set(xlabel=metric, ylim=(len(shown) - 0.5, -0.5) if shown else None)
    axes.grid(axis="x", alpha=0.3)
    if left_out := len(known) - len(shown):
        axes.set_title(f"the best {len(shown)} settings; {left_out} more are left out", fontsize=9)
    labelled = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(labelled.values(), labelled.keys(), loc="outside upper right", ncols=2, fontsize=8)
    write_figure(path, figure, dpi=120)


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
            "sweep.png": lambda path: draw(path, jobs),
        }
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
