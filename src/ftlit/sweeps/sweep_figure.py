"""The figure of a sweep: its settings with a point per seed, accuracy by rung of successive halving, and by a numeric option."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from ftlit.files import write_figure
from ftlit.sweeps.jobs import Job
from ftlit.sweeps.seed_statistics import interval
from ftlit.sweeps.setting_jobs import Setting, best_first
from ftlit.sweeps.setting_results import SettingResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_DRAWN_SETTINGS = 40  # settings in the picture
LEAST_VALUES = 3  # of a numeric option, for a curve
MAX_CURVES = 10
PANEL_HEIGHT = 3.4  # inches of a plot of curves


def draw(path: Path, jobs: Sequence[Job]) -> None:
    """Draw, as PNG, a row per setting, in the order of the table, the best `MAX_DRAWN_SETTINGS`: a point per seed, the mean and its
    interval. Below it the metric that ranks at each rung of successive halving, and the results by a numeric option, where there are such.
    """
    from matplotlib.figure import Figure  # here, so that the command line is read without it; no pyplot: no screen is needed

    results = SettingResults(jobs)
    known = [setting for setting in best_first(results.settings, results.by) if setting.of(results.metric)]
    shown = [setting for setting in results.settings if setting in known[:MAX_DRAWN_SETTINGS]]
    numeric = numeric_option(results)
    below = [PANEL_HEIGHT] * (any(job.at_rungs for job in jobs) + (numeric is not None))
    heights = [1.2 + (0.3 + 0.2 * max(1, len(results.names))) * max(1, len(shown)), *below]
    figure = Figure(figsize=(7.0, sum(heights)), layout="constrained")
    top, *others = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    _draw_settings(top, results, shown)
    if left_out := len(known) - len(shown):
        top.set_title(f"the best {len(shown)} settings; {left_out} more are left out", fontsize=9)
    if any(job.at_rungs for job in jobs):
        _draw_rungs(others[0], results)
    if numeric is not None:
        _draw_curves(others[-1], results, numeric)
    labelled = dict(zip(*reversed(top.get_legend_handles_labels()), strict=True))
    figure.legend(labelled.values(), labelled.keys(), loc="outside upper right", ncols=2, fontsize=8)
    write_figure(path, figure, dpi=120)


def numeric_option(results: SettingResults) -> int | None:
    """The place of the swept option with the most values, of those whose values are all numbers, `LEAST_VALUES` or more, in settings with
    results; `None` where there is none, or with more than `MAX_CURVES` combinations of the other options.
    """
    settings = [setting.values for setting in results.settings if setting.of(results.metric)]
    found = {place: {values[place] for values in settings} for place in range(len(results.names))}
    numeric = [place for place, values in found.items() if len(values) >= LEAST_VALUES and None not in map(_number, values)]
    place = max(numeric, key=lambda place: len(found[place]), default=None)
    if place is None or len({_others(values, place) for values in settings}) > MAX_CURVES:
        return None
    return place


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def _others(values: Sequence[Any], place: int) -> tuple[Any, ...]:
    return (*values[:place], *values[place + 1 :])


def _draw_settings(axes: "Axes", results: SettingResults, shown: Sequence[Setting]) -> None:
    for place, setting in enumerate(shown):
        values = setting.of(results.metric)
        axes.plot(values, [place] * len(values), "o", color="C0", alpha=0.4, label="one seed")
        below, above = _error(setting, results)
        error = [[below], [above]] if below or above else None
        axes.errorbar([mean(values)], [place], xerr=error, fmt="D", color="black", capsize=4, markersize=5, label="mean, 95 %")
    labels = ["\n".join(map("=".join, zip(results.names, setting.values, strict=True))) or "all jobs" for setting in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=8, parse_math=False)
    axes.set(xlabel=results.metric, ylim=(len(shown) - 0.5, -0.5) if shown else None)
    axes.grid(axis="x", alpha=0.3)


def _error(setting: Setting, results: SettingResults) -> tuple[float, float]:
    """How far the 95 % interval reaches below and above the mean; 0 where there is none."""
    middle, limits = mean(setting.of(results.metric)), interval(setting.spread(results.metric), share=results.is_share)
    return (middle - limits[0], limits[1] - middle) if limits else (0.0, 0.0)


def _draw_rungs(axes: "Axes", results: SettingResults) -> None:
    """A line per setting: the mean over its seeds of the metric that ranks, at each rung that it reached."""
    for setting in results.settings:
        at: dict[float, list[float]] = {}
        for epochs, value in (pair for job in setting.jobs for pair in job.at_rungs):
            at.setdefault(epochs, []).append(value)
        style: Mapping[str, Any] = {"color": "black", "zorder": 3} if setting.done else {"color": "C0", "alpha": 0.5}
        axes.plot(list(at), list(map(mean, at.values())), "o-", label="trained to the end" if setting.done else "stopped", **style)
    plan = results.jobs[0].sweep
    axes.set(xlabel="epochs at the rung", ylabel=plan.monitor if plan else "", xscale="log")
    ticks = sorted({epochs for job in results.jobs for epochs, _ in job.at_rungs})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    _finish(axes)


def _draw_curves(axes: "Axes", results: SettingResults, place: int) -> None:
    """A line per combination of the other swept options: mean and 95 % interval by the value of the numeric option at this place."""
    curves: dict[tuple[str, ...], list[tuple[float, Setting]]] = {}
    for setting in results.settings:
        number = _number(setting.values[place])
        if setting.of(results.metric) and number is not None:
            curves.setdefault(_others(setting.values, place), []).append((number, setting))
    names = _others(results.names, place)
    for values, points in curves.items():
        numbers, settings = zip(*points, strict=True)
        error = list(zip(*(_error(setting, results) for setting in settings), strict=True))
        label = " ".join(map("=".join, zip(names, values, strict=True)))
        axes.errorbar(numbers, [mean(own.of(results.metric)) for own in settings], yerr=error, fmt="o-", capsize=4, label=label)
    ticks = sorted({number for points in curves.values() for number, _ in points})
    axes.set(xlabel=results.names[place], ylabel=f"{results.metric}: mean, 95 %", xscale="log" if ticks[0] > 0 else "linear")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    _finish(axes)


def _finish(axes: "Axes") -> None:
    axes.grid(alpha=0.3)
    labelled = {label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True) if label}
    if labelled:
        axes.legend(labelled.values(), labelled.keys(), fontsize=7)
