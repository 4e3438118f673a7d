"""The tables and texts of a report as HTML; every text from outside is escaped."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import numpy as np

from ftlit.errors import shorten
from ftlit.formatting import size_in_words, three_digits
from ftlit.report.contents import RunData
from ftlit.report.document import table
from ftlit.report.figures import MAX_MATRIX_CLASSES
from ftlit.report.run_files import FOLDER, RUN, SUSPECTS, TEST
from ftlit.report.scores import calibration_error_by_chance, class_scores, most_confident_errors, reliability, uncalibrated
from ftlit.report.scores import confusion as confused
from ftlit.report.start_rows import start_rows
from ftlit.run_folder import BASELINE, keeps_baseline

MAX_ERRORS = 20  # in the tables of errors and of possibly wrong labels
MAPS = "In the map beside each, red positions speak for the predicted class and blue ones for the true class (difference of the logits)."
NEAREST_IMAGES = (
    "Nearest 1, 2 and 3 beside each: the training images whose features are most similar to it, with their classes; 1 is the most similar."
)
MAX_ROWS = 500  # in the tables of classes; all are in the files of the report


def scores(run: RunData) -> str:
    """Metrics of the run on val and test, those of the linear probe before training, and the run of `init_from` beside it."""
    metrics, result = ("accuracy", "f1", "loss"), run.result or run.about.get("metrics", {})
    state = str(run.about.get("state", ""))
    baseline = {f"{BASELINE}/{split}": f"{split}, linear probe before training" for split in ("val", "test")}
    splits = {"val": "val", "test": "test", **baseline}
    known = {split: name for split, name in splits.items() if all(f"{split}/{metric}" in result for metric in metrics)}
    rows = [
        [name, *(f"{result[f'{split}/{metric}']:.4f}" for metric in metrics), *_details(result, split)] for split, name in known.items()
    ]
    rows += [[name, accuracy, "-", "-", interval, "-", "-"] for name, accuracy, interval in start_rows(result)]
    note = "<p>The result is the linear probe: no epoch of training was clearly better on val.</p>" if keeps_baseline(result) else ""
    header = ["split", "accuracy", "macro F1", "loss", "95 % interval of accuracy", "calibration error (ECE)", "fitted on"]
    text = f'<p class="warning">{escape(state)}</p>' if state else ""
    return text + (table(header, rows) + note if rows else "")


def _details(result: Mapping[str, Any], split: str) -> list[str]:
    """Interval of accuracy, calibration error and the splits of the fit; `-` for one that the run did not leave."""
    low, high, ece = (result.get(f"{split}/{name}") for name in ("accuracy_low", "accuracy_high", "ece"))
    interval = "-" if low is None else f"{low:.3f} to {high:.3f}"
    return [interval, "-" if ece is None else f"{ece:.4f}", str(result.get(f"{split}/fitted_on", "-"))]


def plan(run: RunData) -> str:
    """The plan as it was printed, the backbones that were compared, and the warnings."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in run.about.get("plan", []))
    warnings = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in run.about.get("warnings", []))
    return f'<table class="plan">{rows}</table>{_backbones(run)}{warnings}'


def _backbones(run: RunData) -> str:
    """What `backbone=auto` measured, if it chose the backbone."""
    choice = run.about.get("backbones")
    if not choice:
        return ""
    rows = [
        [
            f"{row['name']} *" if row["name"] == choice["chosen"] else row["name"],
            f"{row['accuracy']:.3f} ± {row['standard_error']:.3f}",
            f"{row['images']:,}",
            three_digits(row["images_per_second"]),
            size_in_words(row["bytes"]),
        ]
        for row in choice["candidates"]
    ]
    noun = run.noun
    heads = ["backbone (* chosen)", "held-out accuracy ± standard error", f"training {noun}", f"{noun} per second", "weights"]
    return f"<p>Backbones that were compared:</p>{table(heads, rows, sortable=True)}"


def data(run: RunData) -> str:
    """The number of examples by class and split."""
    counts = run.about.get("counts", {})
    names = list(counts)
    rows = [[name, *(f"{counts[split].get(name, 0):,}" for split in names)] for name in run.class_names[:MAX_ROWS]]
    more = len(run.class_names) - MAX_ROWS
    return table(["class", *names], rows, sortable=True) + (f"<p>and {more:,} more classes in {FOLDER}/{RUN}</p>" if more > 0 else "")


def classes(run: RunData) -> str:
    """Precision, recall and F1 of each class."""
    assert run.predictions is not None
    scores = class_scores(run.predictions, run.class_names)
    more, note = len(scores) - MAX_ROWS, ""
    if more > 0:
        scores = sorted(scores, key=lambda score: score.f1)[:MAX_ROWS]
        note = f"<p>The {MAX_ROWS} classes with the lowest F1; {more:,} more in {FOLDER}/{TEST}.</p>"
    rows = [[s.name, f"{s.images:,}", f"{s.precision:.3f}", f"{s.recall:.3f}", f"{s.f1:.3f}"] for s in scores]
    return table(["class", f"test {run.noun}", "precision", "recall", "F1"], rows, sortable=True) + note


def calibration(run: RunData) -> str:
    """The expected calibration error, what temperature scaling changed, and whether the error may be chance."""
    if run.predictions is None or run.about.get("multilabel"):
        return ""
    predictions, noun = run.predictions, escape(run.noun)
    without = int((~np.isfinite(predictions.probability)).sum())
    error = run.result.get("test/ece", reliability(predictions)[3])  # one number in all places
    before = "" if predictions.uncalibrated is None else f" ({reliability(uncalibrated(predictions))[3]:.4f} before temperature scaling)"
    by_chance, number = calibration_error_by_chance(predictions), len(predictions.labels) - without
    judged = "may be chance" if error <= by_chance else "is not only chance"
    chance = (
        f" On {number:,} test {noun}, perfectly calibrated probabilities would have an error of up to {by_chance:.4f} in 95 % of cases: "
    )
    chance += f"the error found {judged}."
    lost = f" {without:,} test {noun} have probabilities that are not finite, and are left out." if without else ""
    what = "the mean distance of the dots from the dashed line, weighted by the number of " + noun
    return f"<p>Expected calibration error, {what}: {error:.4f}{before}.{chance if number else ''}{lost}</p>"


def confusion(run: RunData) -> str:
    """The sortable confusion matrix, and the pairs that are confused most often."""
    if run.predictions is None or run.about.get("multilabel"):
        return ""
    matrix = f"<div>{_matrix(run)}</div>" if len(run.class_names) <= MAX_MATRIX_CLASSES else ""
    return f'<div class="beside">{matrix}<div>{"".join(_pairs(run))}</div></div>'


def _matrix(run: RunData) -> str:
    """The canvas that the script draws on, and its data as JSON."""
    assert run.predictions is not None
    pairs, times = confused(run.predictions)
    cells = np.column_stack([pairs, times]).tolist()
    data = json.dumps({"names": list(run.class_names), "cells": cells}).replace("<", "\\u003c")
    return (
        '<p>Order of the classes: <select id="order"><option value="name">by name</option>'
        '<option value="recall">lowest recall first</option><option value="images">largest first</option></select> '
        '<span id="cell"></span></p>'
        "<p>Blue is correct, red is wrong; darker: a larger share of the row.</p>"
        f'<canvas id="matrix"></canvas><script type="application/json" id="confused">{data}</script>'
    )


def _pairs(run: RunData) -> Iterator[str]:
    """A table of the pairs that are confused most often."""
    assert run.predictions is not None
    pairs, times = confused(run.predictions)
    images = np.bincount(pairs[:, 0], times, minlength=len(run.class_names))
    wrong = [(n, i, j) for (i, j), n in zip(pairs.tolist(), times.tolist(), strict=True) if i != j]
    names = run.class_names
    if wrong:
        rows = [[names[i], names[j], f"{n:,}", f"{100 * n / images[i]:.1f}"] for n, i, j in sorted(wrong, reverse=True)[:20]]
        yield table(["class", "predicted", "count", "% of the class"], rows, sortable=True)
    else:
        yield f"<p>All test {escape(run.noun)} of {escape(shorten(names))} are predicted correctly.</p>"


def mistakes(run: RunData) -> str:
    """A table of the most confident errors, and where all predictions are."""
    predictions, names = run.predictions, run.class_names
    if predictions is None or not (places := most_confident_errors(predictions)[:MAX_ERRORS]):
        return ""
    header, rows = ["item", "class", "predicted", "probability"], list[list[str]]()
    more = predictions.of_label is not None and len(names) > 2  # of two, the second is the true one
    if more:
        header += ["of the class", "second", "of the second"]
    for place in places:
        labels = [" ".join(names[i] for i in held[place]) for held in (predictions.labels, predictions.predicted)]
        rows.append([predictions.items[place], *labels, f"{predictions.probability[place]:.4f}"])
        if more and predictions.of_label is not None and predictions.second is not None and predictions.of_second is not None:
            second = names[predictions.second[place]]
            rows[-1] += [f"{predictions.of_label[place]:.4f}", second, f"{predictions.of_second[place]:.4f}"]
    link = f'<p>The predictions of all test {escape(run.noun)}: <a href="{FOLDER}/{TEST}">{FOLDER}/{TEST}</a>.</p>'
    return table(header, rows, sortable=True) + link


def about_mistakes(run: RunData) -> str:
    """What stands beside each of the most confident errors in their figure."""
    return " ".join(note for note, known in ((MAPS, run.maps), (NEAREST_IMAGES, run.nearest)) if known)


def suspects(run: RunData) -> str:
    """The training examples that are possibly mislabelled, and how they were found."""
    if run.suspects is None:
        return ""
    how = "Probabilities are those of heads that were fitted without the example. Val and test are not examined."
    if not run.suspects:
        return f"<p>No training {escape(run.noun)} have a label that their held-out predictions contradict.</p>"
    rows = [[row.item, row.label, row.suggested, f"{row.probability:.4f}", f"{row.suggested_probability:.4f}"] for row in run.suspects]
    header = ["item", "class", "suggested", "probability of the class", "of the suggested"]
    link = f'All are in <a href="{SUSPECTS}">{SUSPECTS}</a>.'
    return f"<p>{escape(how)} {link}</p>" + table(header, rows[:MAX_ERRORS], sortable=True)
