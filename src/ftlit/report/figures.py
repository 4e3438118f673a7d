"""The pictures of a report, each a pure function: evidence in, figure out; `None` where the run left nothing to draw."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatter, NullFormatter

from ftlit.report.contents import Pictures, RunData
from ftlit.report.scores import confusion as confused
from ftlit.report.scores import reliability

STAGE_COLOURS = ("#eef2f7", "#dfe7f1")
MODES = {"train": "#2f6db5", "part": "#8fb4dc", "eval": "#d9dce1", "none": "#ffffff"}
TOLD = {"train": "trains", "part": "a part of it trains", "eval": "frozen", "none": "has nothing to train"}
LONGEST = 24  # letters of a name along an axis
NAMED = 40  # classes whose names are written along a matrix
COLOURED = 20  # classes that a legend names
MOST = 500  # classes of a matrix that can be looked at


def samples(evidence: RunData) -> Figure | None:
    """Training images as the network sees them."""
    return _grid(evidence.samples)


def mistakes(evidence: RunData) -> Figure | None:
    """The test images that the network is most sure of, wrongly."""
    return _grid(evidence.mistakes)


def curves(evidence: RunData) -> Figure | None:
    """Loss and accuracy over steps, the stages shaded, and beneath the rate of each group."""
    rows = _trained(evidence)
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
    order = [row["layer"] for row in evidence.run.get("layers", [])]
    for place, group in enumerate(sorted(rates, key=lambda group: -next((i for i, layer in enumerate(order) if layer in group), 0))):
        colour = colormaps["viridis"](place / max(len(rates) - 1, 1) * 0.9)
        rate.plot(*_series(rows, rates[group]), color=colour, label=group)
    rate.set(ylabel="learning rate", yscale="log", xlabel="step")
    rate.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=True))  # plain numbers: names are never read as formulas, nor are ticks
    rate.yaxis.set_minor_formatter(NullFormatter())
    if rates:
        rate.legend(fontsize=7, ncols=max(1, -(-len(rates) // 8)), loc="lower left")
    for axes in (loss, accuracy, rate):
        _shade(axes, evidence, named=axes is loss)
        axes.grid(alpha=0.3)
    return figure


def layers(evidence: RunData) -> Figure | None:
    """A row a layer, the top first, and when it trains: frozen or not by stage."""
    rows = evidence.run.get("layers") or []
    spans = _spans(evidence)
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
    handles = [Patch(color=MODES[mode], label=TOLD[mode]) for mode in MODES if mode in used]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=8)
    return figure


def confusion(evidence: RunData) -> Figure | None:
    """Test images by class (rows) and by what they were taken for (columns), as shares of the row."""
    number = len(evidence.class_names)
    if evidence.tested is None or evidence.run.get("multilabel") or number > MOST:
        return None
    counts = np.zeros((number, number), int)
    pairs, times = confused(evidence.tested)
    counts[*pairs.T] = times
    size = min(12.0, 4.0 + 0.35 * number) if number <= NAMED else 9.0
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot(xlabel="taken for", ylabel="class")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes, shrink=0.7, label="share of the class")
    if number <= NAMED:
        axes.set_xticks(range(number), _short(evidence), rotation=90)
        axes.set_yticks(range(number), _short(evidence))
        for (row, column), count in np.ndenumerate(counts):
            if count and number <= 25:
                dark = shares[row, column] > 0.5
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    return figure


def calibration(evidence: RunData) -> Figure | None:
    """The reliability diagram: how often it is right, by how sure it is; and how many images are in each bin."""
    if evidence.tested is None or evidence.run.get("multilabel"):
        return None
    sure, accuracy, counts, error = reliability(evidence.tested)
    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    width = 1 / len(counts)
    begins = np.arange(len(counts)) * width
    upper.plot([0, 1], [0, 1], "--", color="grey", linewidth=1, label="as often right as it is sure")
    upper.bar(begins, np.nan_to_num(accuracy), width, align="edge", color="#8fb4dc", edgecolor="white", label="test images")
    upper.plot(sure, accuracy, "o", color="#1d4370", markersize=4)
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=f"expected calibration error {error:.3f}")
    upper.legend(loc="upper left", fontsize=8)
    lower.bar(begins, counts, width, align="edge", color="#d9dce1", edgecolor="white")
    lower.set(xlabel="probability of the predicted class", ylabel="images")
    return figure


def features(evidence: RunData) -> Figure | None:
    """Features of test images in two dimensions, coloured by class: t-SNE (van der Maaten and Hinton 2008) from principal components."""
    if evidence.features is None or (evidence.features[1] >= 0).sum() < 10:
        return None
    from sklearn.manifold import TSNE  # here: it takes a second

    values, labels = (held[evidence.features[1] >= 0] for held in evidence.features)  # of several labels the first; without any: not shown
    perplexity = min(30, (len(values) - 1) / 3)
    flat = TSNE(init="pca", perplexity=perplexity, random_state=0, max_iter=500).fit_transform(values)
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axes = figure.add_subplot(xticks=[], yticks=[])
    number = len(evidence.class_names)
    if number > COLOURED:
        axes.scatter(flat[:, 0], flat[:, 1], s=9, c=labels, cmap="hsv", vmin=0, vmax=number)
        return figure
    colour, names = colormaps["tab10" if number <= 10 else "tab20"], _short(evidence)
    for label in np.unique(labels):
        own = labels == label
        axes.scatter(flat[own, 0], flat[own, 1], s=9, color=colour(label), label=names[label])
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def depth(evidence: RunData) -> Figure | None:
    """Accuracy of a probe at each cut, on held-out images."""
    if not evidence.depths:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(ylabel="accuracy of a probe on held-out images", xlabel="cut")
    for kind, cuts in evidence.depths.items():
        axes.plot(list(cuts), list(cuts.values()), "o-", label=kind)
    axes.tick_params(axis="x", rotation=60)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def stages(evidence: RunData) -> Figure | None:
    """Seconds and memory of each stage."""
    if not evidence.stages:
        return None
    figure = Figure(figsize=(9, 0.4 * len(evidence.stages) + 1.2), layout="constrained")
    time, memory = figure.subplots(1, 2, sharey=True)
    names = [f"{place} {stage.name}" for place, stage in enumerate(evidence.stages)]
    for axes, values, label in (
        (time, [stage.seconds for stage in evidence.stages], "seconds"),
        (memory, [stage.bytes / 2**30 for stage in evidence.stages], "GiB in use"),
    ):
        axes.bar_label(axes.barh(names, values, color="#8fb4dc"), fmt="%.3g", padding=3)
        axes.set_xlabel(label)
        axes.margins(x=0.2)
    time.invert_yaxis()
    return figure


FIGURES: Mapping[str, tuple[str, Callable[[RunData], Figure | None]]] = {
    "samples": ("Training images, as the network sees them", samples),
    "curves": ("Loss, accuracy, rates", curves),
    "layers": ("What trains when", layers),
    "stages": ("Time and memory by stage", stages),
    "confusion": ("What is taken for what", confusion),
    "mistakes": ("The surest mistakes", mistakes),
    "calibration": ("Is it as often right as it is sure?", calibration),
    "features": ("Features of test images in two dimensions", features),
    "depth": ("Accuracy by depth", depth),
}


def _short(evidence: RunData) -> list[str]:
    """Names of the classes that leave room for the picture."""
    return [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in evidence.class_names]


def _grid(pictures: Pictures | None) -> Figure | None:
    if pictures is None or not len(pictures.images):
        return None
    columns = min(6, len(pictures.images))
    rows = -(-len(pictures.images) // columns)
    figure = Figure(figsize=(1.6 * columns, 1.95 * rows), layout="constrained")
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if place < len(pictures.images):
            axes.imshow(pictures.images[place], interpolation="nearest")
            axes.set_title(pictures.captions[place], fontsize=7)
    return figure


def _trained(evidence: RunData) -> Sequence[Mapping[str, float]]:
    """Rows of the metrics but for those of the look at the best checkpoint, which follow."""
    last = max((place for place, row in enumerate(evidence.metrics) if "train/loss" in row), default=-1)
    return evidence.metrics[: last + 1]


def _series(rows: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    held = [(row["step"], row[name]) for row in rows if name in row and "step" in row]
    return [step for step, _ in held], [value for _, value in held]


def _spans(evidence: RunData) -> list[tuple[float, float]]:
    """First step of each stage and of the next."""
    last = max((row["step"] for row in _trained(evidence) if "step" in row), default=0) + 1
    begins = [stage.step for stage in evidence.stages]
    return list(pairwise([*begins, max(last, begins[-1] + 1)])) if begins else []


def _shade(axes: Axes, evidence: RunData, *, named: bool) -> None:
    for place, (begin, end) in enumerate(_spans(evidence)):
        axes.axvspan(begin, end, color=STAGE_COLOURS[place % 2], zorder=0)
        if named:
            where: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (3, -10), "textcoords": "offset points"}
            axes.annotate(f"stage {place}" if place == 0 else f"{place}", (begin, 1), fontsize=7, **where)
