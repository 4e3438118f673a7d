"""One self-contained HTML page from a run's evidence: pictures inline, no request to anywhere."""

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
from ftlit.report.contents import RunData
from ftlit.report.figures import FIGURES, MOST
from ftlit.report.load import read
from ftlit.report.run_files import FOLDER, RUN, TEST
from ftlit.report.scores import class_scores, confusion, reliability, surest_mistakes

PAGE = "report.html"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"  # nothing is ever asked for
MOST_MISTAKES = 20
MOST_ROWS = 500  # of the table of classes that are written out; the rest is in test.csv


def write_report(folder: str | Path) -> Path:
    """`report.html` in a run's folder, and its pictures as PNG files in `report/`, from what the run left there. Returns the page's path.

    Raises:
        UserError: no folder of a run that left evidence, or a damaged one.
    """
    evidence = read(folder)
    pictures = dict(pictures_of(evidence))
    for name in FIGURES:
        path, picture = evidence.folder / FOLDER / f"{name}.png", pictures.get(name)
        if isinstance(picture, bytes):
            write_atomically(path, picture)
        else:
            path.unlink(missing_ok=True)  # of an earlier report
    write_atomically(target := evidence.folder / PAGE, page(evidence, pictures).encode("utf-8", "replace"))
    return target


def page(evidence: RunData, pictures: Mapping[str, bytes | str]) -> str:
    """The page as text. All that comes from outside is escaped.

    Args:
        evidence: of the run.
        pictures: PNG files by the names of `FIGURES`, those that there are; a text for one that could not be drawn says why.
    """
    sections = [("plan", "The plan", _plan(evidence)), ("data", "The data", _data(evidence))]
    beside = {"mistakes": _mistakes, "calibration": _calibration, "confusion": _confusion}
    for name, (title, _) in FIGURES.items():
        drawn = name in pictures and name != "confusion"  # which the page's script draws, so that it can be sorted
        body = _image(title, pictures[name]) if drawn else ""
        if body := body + (beside[name](evidence) if name in beside else ""):
            sections.append((name, title, body))
        if name == "confusion" and evidence.tested:
            sections.append(("classes", "Class by class", _classes(evidence)))
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in sections)
    bodies = "".join(f'<section id="{key}"><h2>{escape(title)}</h2>{body}</section>' for key, title, body in sections)
    title = escape(str(evidence.run.get("title", evidence.folder.name)))
    style, script = (files("ftlit.report").joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>ftlit: {title}</title><style>{style}</style></head>\n"
        f"<body><header><h1>{title}</h1>{_result(evidence)}<nav>{links}</nav></header>\n<main>{bodies}</main>"
        f"<script>{script}</script></body></html>\n"
    )


def pictures_of(evidence: RunData) -> Iterator[tuple[str, bytes | str]]:
    """Name and PNG file of each picture that there is, or why it could not be drawn: one fault must not cost the others."""
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():  # a class may be called $x^$
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of letters that the font lacks; the page's tables have them
        for name, (_, draw) in FIGURES.items():
            try:
                if figure := draw(evidence):
                    figure.savefig(stream := io.BytesIO(), dpi=110, format="png")
                    yield name, stream.getvalue()
            except Exception as error:
                yield name, one_line(error)


def _image(title: str, png: bytes | str) -> str:
    if isinstance(png, str):
        return f'<p class="warning">not drawn: {escape(png)}</p>'
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _result(evidence: RunData) -> str:
    metrics = ("accuracy", "f1", "loss")
    rows = [
        [split, *(f"{evidence.result[f'{split}/{metric}']:.4f}" for metric in metrics)]
        for split in ("val", "test")
        if all(f"{split}/{metric}" in evidence.result for metric in metrics)
    ]
    return _table(["split", "accuracy", "macro F1", "loss"], rows) if rows else ""


def _plan(evidence: RunData) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in evidence.run.get("plan", []))
    warnings = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in evidence.run.get("warnings", []))
    return f'<table class="plan">{rows}</table>{warnings}'


def _data(evidence: RunData) -> str:
    counts = evidence.run.get("counts", {})
    names = list(counts)
    rows = [[name, *(f"{counts[split].get(name, 0):,}" for split in names)] for name in evidence.class_names[:MOST_ROWS]]
    more = len(evidence.class_names) - MOST_ROWS
    return _table(["class", *names], rows, sortable=True) + (f"<p>and {more:,} more in {FOLDER}/{RUN}</p>" if more > 0 else "")


def _classes(evidence: RunData) -> str:
    assert evidence.tested is not None
    scores = class_scores(evidence.tested, evidence.class_names)
    more, note = len(scores) - MOST_ROWS, ""
    if more > 0:
        scores = sorted(scores, key=lambda score: score.f1)[:MOST_ROWS]
        note = f"<p>The {MOST_ROWS} classes with the lowest F1; {more:,} more in {FOLDER}/{TEST}.</p>"
    rows = [[s.name, f"{s.images:,}", f"{s.precision:.3f}", f"{s.recall:.3f}", f"{s.f1:.3f}"] for s in scores]
    return _table(["class", "test images", "precision", "recall", "F1"], rows, sortable=True) + note


def _calibration(evidence: RunData) -> str:
    if evidence.tested is None or evidence.run.get("multilabel"):
        return ""
    without = int((~np.isfinite(evidence.tested.probability)).sum())
    lost = f" {without:,} test images have no finite probability." if without else ""
    return f"<p>Expected calibration error: {reliability(evidence.tested)[3]:.4f}.{lost}</p>"


def _confusion(evidence: RunData) -> str:
    """The matrix, which can be sorted, and the pairs that are confused most."""
    if evidence.tested is None or evidence.run.get("multilabel"):
        return ""
    matrix = f"<div>{_matrix(evidence)}</div>" if len(evidence.class_names) <= MOST else ""
    return f'<div class="beside">{matrix}<div>{"".join(_pairs(evidence))}</div></div>'


def _matrix(evidence: RunData) -> str:
    """Where the script draws; what it draws is plain numbers and names."""
    assert evidence.tested is not None
    pairs, times = confusion(evidence.tested)
    cells = np.column_stack([pairs, times]).tolist()
    data = json.dumps({"names": list(evidence.class_names), "cells": cells}).replace("<", "\\u003c")
    return (
        '<p>Order of the classes: <select id="order"><option value="name">by name</option><option value="recall">worst found first</option>'
        '<option value="images">largest first</option></select> <span id="cell"></span></p>'
        "<p>A row a class, a column what it was taken for; blue is right, red is wrong, the darker the more of the row.</p>"
        f'<canvas id="matrix"></canvas><script type="application/json" id="confused">{data}</script>'
    )


def _pairs(evidence: RunData) -> Iterator[str]:
    """The pairs that are confused most."""
    assert evidence.tested is not None
    pairs, times = confusion(evidence.tested)
    images = np.bincount(pairs[:, 0], times, minlength=len(evidence.class_names))
    wrong = [(n, i, j) for (i, j), n in zip(pairs.tolist(), times.tolist(), strict=True) if i != j]
    names = evidence.class_names
    if wrong:
        rows = [[names[i], names[j], f"{n:,}", f"{n / images[i]:.3f}"] for n, i, j in sorted(wrong, reverse=True)[:20]]
        yield _table(["class", "taken for", "times", "share of the class"], rows, sortable=True)
    else:
        yield f"<p>No test image of {escape(shorten(names))} was mistaken.</p>"


def _mistakes(evidence: RunData) -> str:
    """The surest ones in words: path, number or text."""
    tested, names = evidence.tested, evidence.class_names
    if tested is None or not (places := surest_mistakes(tested)[:MOST_MISTAKES]):
        return ""
    labels = [[" ".join(names[i] for i in held[place]) for held in (tested.labels, tested.predicted)] for place in places]
    rows = [[tested.items[place], *label, f"{tested.probability[place]:.4f}"] for place, label in zip(places, labels, strict=True)]
    return _table(["item", "class", "taken for", "probability"], rows, sortable=True)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, sortable: bool = False) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    kind = ' class="sortable"' if sortable else ""
    return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
