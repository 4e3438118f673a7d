"""The report of a run as one self-contained HTML page: figures inline, no request to anywhere."""

import base64
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL.Image import Image

from ftlit.errors import one_line
from ftlit.files import write_atomically
from ftlit.report import tables
from ftlit.report.contents import RunData
from ftlit.report.document import document
from ftlit.report.load import read
from ftlit.report.picture_grids import jpeg_of
from ftlit.report.run_files import FOLDER
from ftlit.report.sections import SECTIONS

PAGE = "report.html"
Vector = Literal["pdf", "svg"]  # formats of plots beside PNG
PNG, JPEG = "png", "jpg"
DPI = 110


def write_report(folder: str | Path, *, plots: Sequence[Vector] = (), training: str = "") -> Path:
    """Write `report.html` to the folder of a run, and its figures to `report/`: plots as PNG files, images as JPEG files. From the files of
    the run. Returns the page's path.

    Args:
        folder: of the run.
        plots: further formats in which the plots are written to `report/`; figures of images are JPEG files only.
        training: how far a run that is training has come; empty for one that has ended.

    Raises:
        UserError: not the folder of a run with report files, or damaged ones.
    """
    run = read(folder)
    pictures = dict(figures_of(run, (PNG, *plots)))
    for name in SECTIONS:
        drawn = pictures.get(name)
        files = {} if drawn is None or isinstance(drawn, str) else drawn
        for kind, content in files.items():
            write_atomically(run.folder / FOLDER / f"{name}.{kind}", content)
        for kind in {PNG, JPEG} - files.keys():
            (run.folder / FOLDER / f"{name}.{kind}").unlink(missing_ok=True)  # of an earlier report
    write_atomically(target := run.folder / PAGE, page(run, pictures, training).encode("utf-8", "replace"))
    return target


def page(run: RunData, pictures: Mapping[str, Mapping[str, bytes] | str], training: str = "") -> str:
    """The page as text. Every text from outside is escaped.

    Args:
        run: its data.
        pictures: see `figures_of`.
        training: see `write_report`.
    """
    sections = [("plan", "Plan", tables.plan(run)), ("data", "Data", tables.data(run))]
    beside = {
        "mistakes": tables.mistakes,
        "suspects": tables.suspects,
        "calibration": tables.calibration,
        "confusion": tables.confusion,
    }
    for name, section in SECTIONS.items():
        inline = name in pictures and name != "confusion"  # the page's script draws the matrix, so that it can be sorted
        body = _image(name, section.title, pictures[name]) if inline else ""
        if body := body + (beside[name](run) if name in beside else ""):
            meaning = section.meaning.format(noun=run.noun) + (f" {tables.about_mistakes(run)}" if name == "mistakes" else "")
            sections.append((name, section.title, f"<p>{escape(meaning)}</p>{body}"))
        if name == "confusion" and run.predictions:
            sections.append(("classes", "Scores per class", tables.classes(run)))
    title = str(run.about.get("title", run.folder.name))
    top = f'<p class="warning">{escape(training)}</p>' if training else tables.scores(run)
    return document(title, top, sections)


def figures_of(run: RunData, formats: Sequence[str] = (PNG,)) -> Iterator[tuple[str, dict[str, bytes] | str]]:
    """Name in `SECTIONS` and files, by ending, of each figure with data, or why it was not drawn: one error does not prevent others."""
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():  # a class name may look like a formula, $x^$
        warnings.filterwarnings("ignore", "Glyph .* missing")  # characters that the font lacks; the tables of the page show them
        for name, section in SECTIONS.items():
            try:
                if figure := section.draw(run):
                    yield name, _files(figure, formats)
            except Exception as error:
                yield name, one_line(error)


def _files(figure: Figure | Image, formats: Sequence[str]) -> dict[str, bytes]:
    if isinstance(figure, Image):
        return {JPEG: jpeg_of(figure)}
    figure.set_dpi(DPI)
    found = {}
    for kind in formats:
        stream = io.BytesIO()
        if kind == PNG:  # `savefig` draws a figure twice, the first time for its layout alone
            canvas: Any = FigureCanvasAgg(figure)
            canvas.print_png(stream)
        else:
            figure.savefig(stream, format=kind)
        found[kind] = stream.getvalue()
    return found


def _image(name: str, title: str, drawn: Mapping[str, bytes] | str) -> str:
    if isinstance(drawn, str):
        return f'<p class="warning">not drawn: {escape(drawn)}</p>'
    kind = PNG if PNG in drawn else JPEG
    shown = f'<img alt="{escape(title)}" src="data:image/{kind};base64,{base64.b64encode(drawn[kind]).decode()}">'
    return f'<a class="{kind}" href="{FOLDER}/{name}.{kind}">{shown}</a>'
