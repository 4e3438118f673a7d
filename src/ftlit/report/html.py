"""The report of a run as one self-contained HTML page: figures inline, no request to anywhere."""

import base64
import io
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context

from ftlit.errors import one_line, shorten
from ftlit.files import write_atomically
from ftlit.formatting import size_in_words, three_digits
from ftlit.report.contents import RunData
from ftlit.report.figures import FIGURES, MAX_MATRIX_CLASSES
from ftlit.report.load import read
from ftlit.report.run_files import FOLDER, RUN, SUSPECTS, TEST
from ftlit.report.scores import class_scores, confusion, most_confident_errors, reliability
from ftlit.run_folder import BASELINE, keeps_baseline

PAGE = "report.html"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"  # the page requests nothing
MAX_ERRORS = 20  # in the tables of errors and of possibly wrong labels
MAX_ROWS = 500  # in the tables of classes; all are in the files of the report


def write_report(folder: str | Path) -> Path:
    """Write `report.html` to the folder of a run, and its figures as PNG files to `report/`, from the files there. Returns the page's path.

    Raises:
        UserError: not the folder of a run with report files, or damaged ones.
    """
    run = read(folder)
    pictures = dict(pictures_of(run))
    for name in FIGURES:
        path, picture = run.folder / FOLDER / f"{name}.png", pictures.get(name)
        if isinstance(picture, bytes):
            write_atomically(path, picture)
        else:
            path.unlink(missing_ok=True)  # of an earlier report
    write_atomically(target := run.folder / PAGE, page(run, pictures).encode("utf-8", "replace"))
    return target


def page(run: RunData, pictures: Mapping[str, bytes | str]) -> str:
    """The page as text. Every text from outside is escaped.

    Args:
        run: its data.
        pictures: name in `FIGURES` -> PNG file, or a text with the reason why it could not be drawn; without figures that have no data.
    """
    sections = [("plan", "Plan", _plan(run)), ("data", "Data", _data(run))]
    beside = {"mistakes": _mistakes, "suspects": _suspects, "calibration": _calibration, "confusion": _confusion}
    for name, (title, _) in FIGURES.items():
        inline = name in pictures and name != "confusion"  # the page's script draws the matrix, so that it can be sorted
        body = _image(title, pictures[name]) if inline else ""
        if body := body + (beside[name](run) if name in beside else ""):
            sections.append((name, title, body))
        if name == "confusion" and run.predictions:
            sections.append(("classes", "Scores per class", _classes(run)))
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in sections)
    bodies = "".join(f'<section id="{key}"><h2>{escape(title)}</h2>{body}</section>' for key, title, body in sections)
    title = escape(str(run.about.get("title", run.folder.name)))
    style, script = (files("ftlit.report").joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>ftlit: {title}</title><style>{style}</style></head>\n"
        f"<body><header><h1>{title}</h1>{_result(run)}<nav>{links}</nav></header>\n<main>{bodies}</main>"
        f"<script>{script}</script></body></html>\n"
    )


def pictures_of(run: RunData) -> Iterator[tuple[str, bytes | str]]:
    """Name and PNG file of each figure with data, or the reason why it could not be drawn: one error does not prevent the others."""
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():  # a class name may look like a formula, $x^$
        warnings.filterwarnings("ignore", "Glyph .* missing")  # characters that the font lacks; the tables of the page show them
        for name, (_, draw) in FIGURES.items():
            try:
                if figure := draw(run):
                    figure.savefig(stream := io.BytesIO(), dpi=110, format="png")
                    yield name, stream.getvalue()
            except Exception as error:
                yield name, one_line(error)


def _image(title: str, png: bytes | str) -> str:
    if isinstance(png, str):
        return f'<p class="warning">not drawn: {escape(png)}</p>'
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _result(run: RunData) -> str:
    metrics, result = ("accuracy", "f1", "loss"), run.result
    baseline = {f"{BASELINE}/{split}": f"{split}, linear probe before training" for split in ("val", "test")}
    splits = {"val": "val", "test": "test", **baseline}
    known = {split: name for split, name in splits.items() if all(f"{split}/{metric}" in result for metric in metrics)}
    rows = [
        [name, *(f"{result[f'{split}/{metric}']:.4f}" for metric in metrics), *_details(result, split)] for split, name in known.items()
    ]
    note = "<p>The result is the linear probe: no epoch of training was clearly better on val.</p>" if keeps_baseline(result) else ""
    header = ["split", "accuracy", "macro F1", "loss", "95 % interval of accuracy", "calibration error (ECE)", "fitted on"]
    return _table(header, rows) + note if rows else ""


def _details(result: Mapping[str, Any], split: str) -> list[str]:
    """Interval of accuracy, calibration error and the splits of the fit; `-` for one that the run did not leave."""
    low, high, ece = (result.get(f"{split}/{name}") for name in ("accuracy_low", "accuracy_high", "ece"))
    interval = "-" if low is None else f"{low:.3f} to {high:.3f}"
    return [interval, "-" if ece is None else f"{ece:.4f}", str(result.get(f"{split}/fitted_on", "-"))]


def _plan(run: RunData) -> str:
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
    heads = ["backbone (* chosen)", "held-out accuracy", f"training {noun}", f"{noun} per second", "weights"]
    return f"<p>Backbones that were compared:</p>{_table(heads, rows, sortable=True)}"


def _data(run: RunData) -> str:
    counts = run.about.get("counts", {})
    names = list(counts)
    rows = [[name, *(f"{counts[split].get(name, 0):,}" for split in names)] for name in run.class_names[:MAX_ROWS]]
    more = len(run.class_names) - MAX_ROWS
    return _table(["class", *names], rows, sortable=True) + (f"<p>and {more:,} more classes in {FOLDER}/{RUN}</p>" if more > 0 else "")


def _classes(run: RunData) -> str:
    assert run.predictions is not None
    scores = class_scores(run.predictions, run.class_names)
    more, note = len(scores) - MAX_ROWS, ""
    if more > 0:
        scores = sorted(scores, key=lambda score: score.f1)[:MAX_ROWS]
        note = f"<p>The {MAX_ROWS} classes with the lowest F1; {more:,} more in {FOLDER}/{TEST}.</p>"
    rows = [[s.name, f"{s.images:,}", f"{s.precision:.3f}", f"{s.recall:.3f}", f"{s.f1:.3f}"] for s in scores]
    return _table(["class", f"test {run.noun}", "precision", "recall", "F1"], rows, sortable=True) + note


def _calibration(run: RunData) -> str:
    if run.predictions is None or run.about.get("multilabel"):
        return ""
    without = int((~np.isfinite(run.predictions.probability)).sum())
    error = run.result.get("test/ece", reliability(run.predictions)[3])  # one number in all places
    lost = f" {without:,} test {escape(run.noun)} have probabilities that are not finite, and are left out." if without else ""
    return f"<p>Expected calibration error: {error:.4f}.{lost}</p>"


def _confusion(run: RunData) -> str:
    """The sortable confusion matrix, and the pairs that are confused most often."""
    if run.predictions is None or run.about.get("multilabel"):
        return ""
    matrix = f"<div>{_matrix(run)}</div>" if len(run.class_names) <= MAX_MATRIX_CLASSES else ""
    return f'<div class="beside">{matrix}<div>{"".join(_pairs(run))}</div></div>'


def _matrix(run: RunData) -> str:
    """The canvas that the script draws on, and its data as JSON."""
    assert run.predictions is not None
    pairs, times = confusion(run.predictions)
    cells = np.column_stack([pairs, times]).tolist()
    data = json.dumps({"names": list(run.class_names), "cells": cells}).replace("<", "\\u003c")
    return (
        '<p>Order of the classes: <select id="order"><option value="name">by name</option>'
        '<option value="recall">lowest recall first</option><option value="images">largest first</option></select> '
        '<span id="cell"></span></p>'
        "<p>Rows: true classes; columns: predicted classes. Blue is correct, red is wrong; darker: a larger share of the row.</p>"
        f'<canvas id="matrix"></canvas><script type="application/json" id="confused">{data}</script>'
    )


def _pairs(run: RunData) -> Iterator[str]:
    """A table of the pairs that are confused most often."""
    assert run.predictions is not None
    pairs, times = confusion(run.predictions)
    images = np.bincount(pairs[:, 0], times, minlength=len(run.class_names))
    wrong = [(n, i, j) for (i, j), n in zip(pairs.tolist(), times.tolist(), strict=True) if i != j]
    names = run.class_names
    if wrong:
        rows = [[names[i], names[j], f"{n:,}", f"{100 * n / images[i]:.1f}"] for n, i, j in sorted(wrong, reverse=True)[:20]]
        yield _table(["class", "predicted", "count", "% of the class"], rows, sortable=True)
    else:
        yield f"<p>All test {escape(run.noun)} of {escape(shorten(names))} are predicted correctly.</p>"


def _mistakes(run: RunData) -> str:
    """A table of the most confident errors."""
    predictions, names = run.predictions, run.class_names
    if predictions is None or not (places := most_confident_errors(predictions)[:MAX_ERRORS]):
        return ""
    labels = [[" ".join(names[i] for i in held[place]) for held in (predictions.labels, predictions.predicted)] for place in places]
    rows = [
        [predictions.items[place], *label, f"{predictions.probability[place]:.4f}"] for place, label in zip(places, labels, strict=True)
    ]
    return _table(["item", "class", "predicted", "probability"], rows, sortable=True)


def _suspects(run: RunData) -> str:
    """The training examples that are possibly mislabelled, and how they were found."""
    if run.suspects is None:
        return ""
    how = f"Probabilities are those of heads that were fitted without the example. All are in {SUSPECTS}. Val and test are not examined."
    if not run.suspects:
        return f"<p>No training {escape(run.noun)} have a label that their held-out predictions contradict.</p>"
    rows = [[row.item, row.label, row.suggested, f"{row.probability:.4f}", f"{row.suggested_probability:.4f}"] for row in run.suspects]
    header = ["item", "class", "suggested", "probability of the class", "of the suggested"]
    return f"<p>{escape(how)}</p>" + _table(header, rows[:MAX_ERRORS], sortable=True)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, sortable: bool = False) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    attribute = ' class="sortable"' if sortable else ""
    return f"<table{attribute}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
