"""The table of a sweep, one row per setting: its numbers, its text, and the columns that fit the terminal."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from ftlit.errors import shorten
from ftlit.run_folder import TRAINED, keeps_baseline
from ftlit.sweeps.jobs import SCORE, SEED, TEST, TEST_F1, VAL, Job, Setting, best_first, ranking_metric, settings_of, varying
from ftlit.sweeps.seed_statistics import PairedDifference, difference, interval

STD, INTERVAL, F1, SECONDS = "std", "95 % interval", "macro F1", "job seconds"
DIFFERENCE = "difference to the best (paired)"
LEFT_OUT_FIRST = (STD, F1, SECONDS, INTERVAL)  # where the table is wider than the terminal, in this order
WORD = re.compile(r"\S+(?: (?:\*|to|±)(?!\S))?")  # the sign after a number stays beside it
MAX_WORD = 24  # longer words of a cell are folded
CHOSEN = {"backbone": "chosen backbone", "advised": "advised", "cut": "cut"}  # field of a job -> its column
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
DIFFERENCE_NOTE = (
    "Difference to the best: test accuracy minus that of the {first}setting with *, with the same seed; its mean over seeds ± half of the "
    "95 % interval."
)
EQUAL_NOTE = (
    "No interval where all seeds give the same value: nothing in these jobs depends on the seed (a linear probe on all training "
    "examples is the same fit), or they are equal by chance."
)
SECONDS_NOTE = "Job seconds: mean duration of a whole job, from building the network to the test."
WIDTH_NOTE = "Left out at this width: {names} (sweep.md has all columns)."


@dataclass(frozen=True)
class SettingResults:
    """The results of a sweep by setting.

    Args:
        jobs: of the sweep, in the order of the table.
    """

    jobs: Sequence[Job]

    @cached_property
    def names(self) -> list[str]:
        """The swept options, without the seed."""
        return varying(self.jobs)

    @cached_property
    def settings(self) -> list[Setting]:
        """The settings, one per row."""
        return settings_of(self.jobs)

    @cached_property
    def by(self) -> str:
        """The metric that ranks the settings."""
        return ranking_metric(self.jobs)

    @property
    def metric(self) -> str:
        """The metric whose statistics are shown."""
        return SCORE if self.by == SCORE else TEST

    @property
    def is_share(self) -> bool:
        """Whether the metric is a share: the score of `recipe=advise` is an accuracy too."""
        return self.metric == TEST or self._recipes == {"advise"}

    @property
    def are_range_tests(self) -> bool:
        """Whether the score is a learning rate."""
        return "lr_find" in self._recipes

    @property
    def _recipes(self) -> set[str]:
        configs = [job.config for job in self.jobs if isinstance(job.config, dict)]  # in format 0 a digest
        return {str(config.get("settings", {}).get("recipe")) for config in configs}

    @cached_property
    def best(self) -> list[Setting]:
        """The best settings, several where their means are equal; none where there is nothing to choose from."""
        ranked = best_first(self.settings, self.by) if len(self.settings) > 1 and not self.are_range_tests else []
        return [setting for setting in ranked if mean(setting.of(self.by)) == mean(ranked[0].of(self.by))]

    @cached_property
    def differences(self) -> list[PairedDifference | None]:
        """The paired difference in test accuracy of each setting to the first of the best by val; `None` for this one, and where fewer than
        two seeds are in common.
        """
        if not self.best or self.metric != TEST:
            return [None] * len(self.settings)
        return [None if setting is self.best[0] else difference(setting, self.best[0], TEST) for setting in self.settings]

    @property
    def intervals(self) -> list[tuple[float, float] | None]:
        """The 95 % interval of each setting."""
        return [interval(setting.of(self.metric), share=self.is_share) for setting in self.settings]


def chosen_by(setting: Setting, field: str) -> str:
    """What the jobs of a setting chose, comma separated; empty where they chose nothing."""
    found = [getattr(job, field) for job in setting.done]
    return ", ".join(dict.fromkeys(value or "-" for value in found)) if any(found) else ""


def seconds_of(setting: Setting) -> float | None:
    """The mean duration of a job."""
    seconds = [job.seconds for job in setting.done if job.seconds is not None]
    return mean(seconds) if seconds else None


def table_of(jobs: Sequence[Job]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, one row per setting."""
    results = SettingResults(jobs)
    settings, metric, by = results.settings, results.metric, results.by
    columns = {name: [setting.values[place] for setting in settings] for place, name in enumerate(results.names)}
    for field, name in CHOSEN.items():
        if any(getattr(job, field) for job in jobs):
            columns[name] = [chosen_by(setting, field) or "-" for setting in settings]
    columns["seeds"] = [str(len(setting.done)) for setting in settings]
    label = SCORE if metric == SCORE else "test accuracy"
    columns[label] = [_mean(setting.of(metric)) for setting in settings]
    columns[STD] = [f"{stdev(values):.4f}" if len(values := setting.of(metric)) > 1 else "-" for setting in settings]
    columns[INTERVAL] = [f"{limits[0]:.4f} to {limits[1]:.4f}" if limits else "-" for limits in results.intervals]
    if any(results.differences):
        columns[DIFFERENCE] = [str(found or "-") for found in results.differences]
    if metric == TEST and any(TEST_F1 in job.metrics for job in jobs):
        columns[F1] = [_mean(setting.of(TEST_F1)) for setting in settings]
    ranking = {VAL: "val accuracy", TRAINED: "val accuracy, best epoch", SCORE: SCORE}[by]
    columns[ranking] = [_mean(setting.of(by)) + (MARK if setting in results.best else "") for setting in settings]
    columns[SECONDS] = ["-" if (seconds := seconds_of(setting)) is None else f"{seconds:.1f}" for setting in settings]
    if any(job.status != 0 for job in jobs):
        columns["failed"] = [failure_reasons(setting.failed) for setting in settings]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


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


def caption_of(jobs: Sequence[Job]) -> str:
    """The caption of the table: what is marked, statistics, units."""
    results = SettingResults(jobs)
    by_val = results.by != SCORE
    notes = [MARKED_NOTE.format(by="val accuracy" if by_val else SCORE)] if results.best else []
    done = [job for setting in results.settings for job in setting.done]
    if kept := sum(keeps_baseline(job.metrics) for job in done):
        notes.append(PROBE_NOTE.format(kept=kept, all=sum(TRAINED in job.metrics for job in done)))
    notes += [TEST_NOTE if by_val else RATE_NOTE if results.are_range_tests else SCORE_NOTE, STATISTICS_NOTE]
    if any(results.differences):
        notes.append(DIFFERENCE_NOTE.format(first="first " if len(results.best) > 1 else ""))
    values = [setting.of(results.metric) for setting in results.settings]
    notes += [EQUAL_NOTE] if any(len(own) > 1 and len(set(own)) == 1 for own in values) else []
    return " ".join([*notes, SECONDS_NOTE])


def markdown_of(jobs: Sequence[Job]) -> str:
    """The table as markdown."""
    header, rows = table_of(jobs)
    lines = [header, ["---"] * len(header), *rows]
    cells = (" | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in line) for line in lines)
    return "\n".join(f"| {line} |" for line in cells) + f"\n\n{caption_of(jobs)}\n"


def printed_table(jobs: Sequence[Job], width: int) -> Table:
    """The table for a terminal of this width. No word of a cell is cut: columns of `LEFT_OUT_FIRST` are left out where there is no room for
    them, and the caption names them; then cells are broken between words.
    """
    header, rows = table_of(jobs)
    columns = {name: [row[place] for row in rows] for place, name in enumerate(header)}
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
    table = Table(caption=escape(caption), caption_justify="left")
    for name, own in widths.items():
        table.add_column(escape(name), width=own, overflow="fold")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, row))
    return table


def _longest_word(name: str, cells: Sequence[str]) -> int:
    """The length of the longest word of a column, `MAX_WORD` at most; see `WORD`."""
    return min(MAX_WORD, max(cell_len(word) for cell in (name, *cells) for word in WORD.findall(cell)))


def _total(widths: Sequence[int]) -> int:
    """The width of a table, with its borders."""
    return sum(width + 3 for width in widths) + 1
