"""The results of a sweep: a table of the settings over their seeds, printed and as csv, markdown and figure."""

import sys
from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from rich.markup import escape
from rich.table import Table

from ftlit.errors import one_line, shorten
from ftlit.files import write_atomically, write_figure, write_rows
from ftlit.formatting import harmless
from ftlit.printing import show
from ftlit.run_folder import TRAINED, keeps_baseline
from ftlit.sweeps.jobs import SCORE, SEED, TEST, TEST_F1, VAL, Job, Setting, best_first, jobs_of, ranking_metric, settings_of, varying

METRICS_IN_0_1 = ("accuracy", "f1")  # their intervals are clipped to [0, 1]
SECONDS = "job seconds"
CHOSEN = {"backbone": "chosen backbone"}  # field of a job -> its column, where that has another name
MAX_DRAWN_SETTINGS = 40  # settings in the picture
MARK = " *"  # beside the number that is best
MARKED_NOTE = "* marks the best {by}."
PROBE_NOTE = (
    "In {kept} of {all} jobs that train layers the result, and so the test accuracy, is that of the linear probe before training, because "
    "no epoch was clearly better on val; with callbacks.best=null it is that of the last epoch."
)
TEST_NOTE = "Choosing settings by test accuracy would be biased."
SCORE_NOTE = "The score is the number that the recipe returns, higher is better."
RATE_NOTE = "The score is the learning rate that recipe=lr_find suggests, so a higher one is not better."
STATISTICS_NOTE = "Mean, standard deviation and 95 % interval (Student's t) are over seeds."
EQUAL_NOTE = (
    "No interval where all seeds give the same value: nothing in these jobs depends on the seed (a linear probe on all training "
    "examples is the same fit), or they are equal by chance."
)
SECONDS_NOTE = "Job seconds: mean duration of a whole job, from building the network to the test."


def half_interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean by Student's t. Needs two values.

    >>> round(half_interval([1.0, 2.0, 3.0]), 3)  # 4.303 / sqrt(3)
    2.484
    """
    from scipy.stats import t  # here, so that the command line stays fast

    return float(t.ppf(0.975, len(values) - 1) * stdev(values) / sqrt(len(values)))


def interval(values: Sequence[float], metric: str) -> tuple[float, float] | None:
    """The 95 % interval of the mean, `half_interval` to both sides, clipped to [0, 1] for accuracy and F1; `None` without two different
    values.

    >>> interval([0.9, 1.0], "test/accuracy")[1]
    1.0
    """
    if len(set(values)) < 2:
        return None
    middle, half = mean(values), half_interval(values)
    low, high = middle - half, middle + half
    return (max(0.0, low), min(1.0, high)) if metric.endswith(METRICS_IN_0_1) else (low, high)


def table_of(jobs: Sequence[Job]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, one row per setting."""
    names, by, settings = varying(jobs), ranking_metric(jobs), settings_of(jobs)
    failures = any(job.status != 0 for job in jobs)
    chosen = [name for name in ("backbone", "advised", "cut") if any(getattr(job, name) for job in jobs)]
    shown = SCORE if by == SCORE else TEST
    label = SCORE if by == SCORE else "test accuracy"
    of_val = {VAL: "val accuracy", TRAINED: "val accuracy, best epoch"}.get(by)
    f1 = ["macro F1"] if shown == TEST and any(TEST_F1 in job.metrics for job in jobs) else []
    columns = [*names, *(CHOSEN.get(name, name) for name in chosen)]
    header = [*columns, "seeds", label, "std", "95 % interval", *f1, *([of_val] if of_val else []), SECONDS]
    marked = _marked(jobs)
    rows = []
    for setting in settings:
        seconds = [job.seconds for job in setting.done if job.seconds is not None]
        parts = [", ".join(dict.fromkeys(getattr(job, name) or "-" for job in setting.done)) or "-" for name in chosen]
        row = [*setting.values, *parts, str(len(setting.done)), *_spread(setting.of(shown), shown)]
        row += [_mean(setting.of(TEST_F1))] if f1 else []
        row += [_mean(setting.of(by))] if of_val else []
        if setting in marked:
            row[header.index(of_val or SCORE)] += MARK
        row.append(f"{mean(seconds):.1f}" if seconds else "-")
        rows.append([*row, failure_reasons(setting.failed)] if failures else row)
    return [*header, "failed"] if failures else header, rows


def _are_range_tests(jobs: Sequence[Job]) -> bool:
    configs = [job.config for job in jobs if isinstance(job.config, dict)]  # in format 0 a digest
    return any(config.get("settings", {}).get("recipe") == "lr_find" for config in configs)


def _marked(jobs: Sequence[Job]) -> list[Setting]:
    """The best settings, several where their means are equal; none where there is nothing to choose from."""
    by, settings = ranking_metric(jobs), settings_of(jobs)
    ranked = best_first(settings, by) if len(settings) > 1 and not _are_range_tests(jobs) else []
    return [setting for setting in ranked if mean(setting.of(by)) == mean(ranked[0].of(by))]


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


def _mean(values: Sequence[float]) -> str:
    return f"{mean(values):.4f}" if values else "-"


def _spread(values: Sequence[float], metric: str) -> list[str]:
    """Mean, deviation and interval; `-` where there is none."""
    limits = interval(values, metric)
    deviation = f"{stdev(values):.4f}" if len(values) > 1 else "-"
    return [_mean(values), deviation, f"{limits[0]:.4f} to {limits[1]:.4f}" if limits else "-"]


def caption_of(jobs: Sequence[Job]) -> str:
    """The caption of the table: what is marked, statistics, units."""
    by = ranking_metric(jobs)
    by_val = by != SCORE
    notes = [MARKED_NOTE.format(by="val accuracy" if by_val else SCORE)] if _marked(jobs) else []
    done = [job for setting in settings_of(jobs) for job in setting.done]
    if kept := sum(keeps_baseline(job.metrics) for job in done):
        notes.append(PROBE_NOTE.format(kept=kept, all=sum(TRAINED in job.metrics for job in done)))
    notes += [TEST_NOTE if by_val else RATE_NOTE if _are_range_tests(jobs) else SCORE_NOTE, STATISTICS_NOTE]
    results = [setting.of(TEST if by_val else SCORE) for setting in settings_of(jobs)]
    notes += [EQUAL_NOTE] if any(len(values) > 1 and len(set(values)) == 1 for values in results) else []
    return " ".join([*notes, SECONDS_NOTE])


def markdown_of(jobs: Sequence[Job]) -> str:
    """The table as markdown."""
    header, rows = table_of(jobs)
    lines = [header, ["---"] * len(header), *rows]
    cells = (" | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in line) for line in lines)
    return "\n".join(f"| {line} |" for line in cells) + f"\n\n{caption_of(jobs)}\n"


def write_csv(path: Path, jobs: Sequence[tuple[Path, Job]]) -> None:
    """Write one row per job."""
    names = list(dict.fromkeys(name for _, job in jobs for name in job.metrics))
    rows: list[tuple[object, ...]] = [("job", "overrides", "advised", "cut", "status", "reason", *names, SCORE, SECONDS, "folder")]
    for folder, job in jobs:
        metrics = (job.metrics.get(name) for name in names)
        overrides = " ".join(job.overrides)
        about = job.number, harmless(overrides), job.advised, harmless(job.cut), job.status, harmless(job.reason)
        rows.append((*about, *metrics, job.score, job.seconds, folder.name))
    write_rows(path, rows)


def draw(path: Path, jobs: Sequence[Job]) -> None:
    """Draw a row per setting, in the order of the table, the best `MAX_DRAWN_SETTINGS`: a point per seed, the mean and its interval, as
    PNG.
    """
    from matplotlib.figure import Figure  # here, so that the command line is read without it; no pyplot: no screen is needed

    names, by, settings = varying(jobs), ranking_metric(jobs), settings_of(jobs)
    metric = SCORE if by == SCORE else TEST
    known = [setting for setting in best_first(settings, by) if setting.of(metric)]
    shown = [setting for setting in settings if setting in known[:MAX_DRAWN_SETTINGS]]
    labels = ["\n".join(map("=".join, zip(names, setting.values, strict=True))) or "all jobs" for setting in shown]
    lines = max(1, len(names))
    figure = Figure(figsize=(7.0, 1.2 + (0.3 + 0.2 * lines) * max(1, len(shown))), layout="constrained")
    axes = figure.subplots()
    for place, setting in enumerate(shown):
        values = setting.of(metric)
        middle = mean(values)
        limits = interval(values, metric)
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
    """Print the table of a sweep and write `sweep.csv`, `sweep.md` and `sweep.png` to its folder; a file that cannot be written is a line
    on stderr. Raises `UserError` as `jobs_of` does.
    """
    folder = Path(folder)
    found = jobs_of(folder)
    jobs = [job for _, job in found]
    header, rows = table_of(jobs)
    table = Table(*map(escape, header), caption=escape(caption_of(jobs)), caption_justify="left")
    for row in rows:
        table.add_row(*map(escape, row))
    try:
        show(table)
    finally:  # also if nobody reads stdout any more
        writers: dict[str, Callable[[Path], object]] = {
            "sweep.csv": lambda path: write_csv(path, found),
            "sweep.md": lambda path: write_atomically(path, markdown_of(jobs)),
            "sweep.png": lambda path: draw(path, jobs),
        }
        written = [name for name, write in writers.items() if _write(folder / name, write)]
    if written:
        show(f"{', '.join(written)}: {escape(str(folder))}")


def _write(path: Path, write: Callable[[Path], object]) -> bool:
    try:
        write(path)
    except Exception as error:  # matplotlib raises any error, and the table matters more
        print(f"ftlit: no {path.name}: {one_line(error)}", file=sys.stderr)
        return False
    return True
