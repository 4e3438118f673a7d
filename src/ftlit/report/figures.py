"""The plots of a report: pure functions from run data to a figure, or to `None` where the run left no data for it."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatter, NullFormatter
from threadpoolctl import threadpool_limits

from ftlit.report.contents import Array, RunData
from ftlit.report.scores import confusion as confused
from ftlit.report.scores import reliability, uncalibrated
from ftlit.report.tsne import tsne

STAGE_COLOURS = ("#eef2f7", "#dfe7f1")
MODES = {"train": "#2f6db5", "part": "#8fb4dc", "eval": "#d9dce1", "none": "#ffffff"}
MODE_LABELS = {"train": "trained", "part": "partly trained", "eval": "frozen", "none": "no parameters"}
MAX_NAME_LENGTH = 24  # characters of a name along an axis
MAX_NAMED_CLASSES = 40  # with names along the axes of the matrix
MAX_LEGEND_CLASSES = 20
MAX_MATRIX_CLASSES = 500
FEW_IN_BAR = 5  # images of a bar whose accuracy is rough


def curves(run: RunData) -> Figure | None:
    """Loss, accuracy and the learning rate of each group over steps, with the stages shaded."""
    rows = _trained(run)
    if not rows:
        return None
    rates = {name.partition("/")[2]: name for row in rows for name in row if name.startswith("lr-")}
    figure = Figure(figsize=(9, 8), layout="constrained")
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True)
    for axes, metric in ((loss, "loss"), (accuracy, "accuracy")):
        for split, style in (("train", "--"), ("val", "-")):
            axes.plot(*_series(rows, f"{split}/{metric}"), style, marker="o", markersize=3, label=split)
        axes.set_ylabel(metric)
    loss.legend(loc="upper right")
    order = [row["layer"] for row in run.about.get("layers", [])]
    for place, group in enumerate(sorted(rates, key=lambda group: -next((i for i, layer in enumerate(order) if layer in group), 0))):
        colour = colormaps["viridis"](place / max(len(rates) - 1, 1) * 0.9)
        rate.plot(*_series(rows, rates[group]), color=colour, label=group)
    rate.set(ylabel="learning rate", yscale="log", xlabel="step")
    rate.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=True))  # plain numbers: no text of a report is read as a formula
    rate.yaxis.set_minor_formatter(NullFormatter())
    if rates:
        rate.legend(fontsize=7, ncols=max(1, -(-len(rates) // 8)), loc="lower left")
    for axes in (loss, accuracy, rate):
        _shade(axes, run, named=axes is loss)
        axes.grid(alpha=0.3)
    return figure


def layers(run: RunData) -> Figure | None:
    """One row per layer, the top first: trained or frozen in each stage."""
    rows = run.about.get("layers") or []
    spans = _spans(run)
    if not rows or not spans:
        return None
    figure = Figure(figsize=(9, 0.28 * len(rows) + 1.4), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        for stage, (begin, end) in enumerate(spans):
            mode = row["modes"][stage] if row["size"] else "none"
            axes.barh(place, end - begin, left=begin, height=0.82, color=MODES[mode], edgecolor="white")
    axes.set(yticks=range(len(rows)), yticklabels=[row["layer"] for row in rows], xlabel="step", xlim=(spans[0][0], spans[-1][1]))
    axes.tick_params(axis="y", labelsize=8)
    for begin, _ in spans[1:]:
        axes.axvline(begin, color="black", linewidth=0.8)
    used = {mode for row in rows for mode in row["modes"] if row["size"]}
    handles = [Patch(color=MODES[mode], label=MODE_LABELS[mode]) for mode in MODES if mode in used]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=8)
    return figure


def confusion(run: RunData) -> Figure | None:
    """The confusion matrix: true classes (rows) and predicted classes (columns), as shares of the row."""
    number = len(run.class_names)
    if run.predictions is None or run.about.get("multilabel") or number > MAX_MATRIX_CLASSES:
        return None
    counts = np.zeros((number, number), int)
    pairs, times = confused(run.predictions)
    counts[*pairs.T] = times
    size = min(12.0, 4.0 + 0.35 * number) if number <= MAX_NAMED_CLASSES else 9.0
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted class", ylabel="true class")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes, shrink=0.7, label="fraction of the true class")
    if number <= MAX_NAMED_CLASSES:
        axes.set_xticks(range(number), _short(run), rotation=90)
        axes.set_yticks(range(number), _short(run))
        for (row, column), count in np.ndenumerate(counts):
            if count and number <= 25:
                dark = shares[row, column] > 0.5
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    return figure


def calibration(run: RunData) -> Figure | None:
    """The reliability diagram: accuracy by confidence, and the number of images in each bin."""
    if run.predictions is None or run.about.get("multilabel"):
        return None
    confidence, accuracy, counts, error = reliability(run.predictions)
    figure = Figure(figsize=(5.2, 5.6))
    places = {"left": 0.14, "right": 0.97, "bottom": 0.09, "top": 0.94, "hspace": 0.06}  # fixed: a layout engine doubles the time
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1], gridspec_kw=places)
    width = 1 / len(counts)
    begins = np.arange(len(counts)) * width
    upper.plot([0, 1], [0, 1], "--", color="grey", linewidth=1, label="perfect calibration")
    few = (counts > 0) & (counts < FEW_IN_BAR)
    for shown, colour, label in ((~few, "#8fb4dc", f"test {run.noun}"), (few, "#e3ecf6", f"fewer than {FEW_IN_BAR} {run.noun}")):
        if accuracy[shown].size:
            heights = np.nan_to_num(accuracy[shown])
            upper.bar(begins[shown], heights, width, align="edge", color=colour, edgecolor="white", label=label)
    upper.plot(confidence, accuracy, "o", color="#1d4370", markersize=4, clip_on=False, label="at the mean probability")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=f"expected calibration error {error:.3f}")
    if run.predictions.uncalibrated is not None:
        before = reliability(uncalibrated(run.predictions))
        upper.plot(before[0], before[1], "o", color="#c9762b", markersize=4, clip_on=False, label="before temperature scaling")
        upper.set_title(f"expected calibration error {error:.3f} ({before[3]:.3f} before temperature scaling)", fontsize=9)
    upper.legend(loc="upper left", fontsize=8)
    lower.bar(begins, counts, width, align="edge", color="#d9dce1", edgecolor="white")
    lower.set(xlabel="probability of the predicted class", ylabel=run.noun)
    return figure


def features(run: RunData) -> Figure | None:
    """Feature map of test images, coloured by class, errors marked: t-SNE (van der Maaten and Hinton 2008), initialised by principal
    components.
    """
    if run.features is None or (run.features[1] >= 0).sum() < 10:
        return None
    values, labels, wrong = run.features
    known = labels >= 0  # the first of several labels; images without any are left out
    values, labels = values[known], labels[known]
    wrong = np.zeros(len(labels), bool) if wrong is None else wrong[known]
    perplexity = min(30, (len(values) - 1) / 3)
    with threadpool_limits(1):  # as fast for a thousand images, and much faster on a machine with other work
        flat = tsne(values, perplexity)
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axes = figure.add_subplot(xticks=[], yticks=[])
    number = len(run.class_names)
    if number > MAX_LEGEND_CLASSES:
        axes.scatter(flat[:, 0], flat[:, 1], s=9, c=labels, cmap="hsv", vmin=0, vmax=number)
        _mark_errors(axes, flat[wrong])
        return figure
    colour, names = colormaps["tab10" if number <= 10 else "tab20"], _short(run)
    for label in np.unique(labels):
        own = labels == label
        axes.scatter(flat[own, 0], flat[own, 1], s=9, color=colour(label), label=names[label])
    _mark_errors(axes, flat[wrong])
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _mark_errors(axes: Axes, places: Array) -> None:
    """Mark points (n, 2) of images that are classified wrongly."""
    if len(places):
        axes.scatter(places[:, 0], places[:, 1], s=40, marker="x", color="black", linewidths=1, label=f"errors ({len(places)})")


def depth(run: RunData) -> Figure | None:
    """Accuracy of each kind of probe on held-out images, by cut."""
    if not run.depths:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(ylabel=f"probe accuracy on held-out {run.noun}", xlabel="cut")
    for kind, cuts in run.depths.items():
        axes.plot(list(cuts), list(cuts.values()), "o-", label=kind)
    axes.tick_params(axis="x", rotation=60)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def stages(run: RunData) -> Figure | None:
    """Seconds and memory of each stage."""
    if not run.stages:
        return None
    figure = Figure(figsize=(9, 0.4 * len(run.stages) + 1.2), layout="constrained")
    time, memory = figure.subplots(1, 2, sharey=True)
    names = [f"{place} {stage.name}" for place, stage in enumerate(run.stages)]
    for axes, values, label in (
        (time, [stage.seconds for stage in run.stages], "seconds"),
        (memory, [stage.bytes / 2**30 for stage in run.stages], "GiB in use"),
    ):
        axes.bar_label(axes.barh(names, values, color="#8fb4dc"), fmt="%.3g", padding=3)
        axes.set_xlabel(label)
        axes.margins(x=0.2)
    time.invert_yaxis()
    return figure


def _short(run: RunData) -> list[str]:
    """Class names, shortened to fit beside a figure."""
    return [name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…" for name in run.class_names]


def _trained(run: RunData) -> Sequence[Mapping[str, float]]:
    """Rows of training; those of the evaluation of the best checkpoint, which follow, are left out."""
    last = max((place for place, row in enumerate(run.metrics) if "train/loss" in row), default=-1)
    return run.metrics[: last + 1]


def _series(rows: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    held = [(row["step"], row[name]) for row in rows if name in row and "step" in row]
    return [step for step, _ in held], [value for _, value in held]


def _spans(run: RunData) -> list[tuple[float, float]]:
    """First step of each stage and of the next one."""
    last = max((row["step"] for row in _trained(run) if "step" in row), default=0) + 1
    begins = [stage.step for stage in run.stages]
    return list(pairwise([*begins, max(last, begins[-1] + 1)])) if begins else []


def _shade(axes: Axes, run: RunData, *, named: bool) -> None:
    for place, (begin, end) in enumerate(_spans(run)):
        axes.axvspan(begin, end, color=STAGE_COLOURS[place % 2], zorder=0)
        if named:
            where: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (3, -10), "textcoords": "offset points"}
            axes.annotate(f"stage {place}" if place == 0 else f"{place}", (begin, 1), fontsize=7, **where)
