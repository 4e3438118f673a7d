"""The frame of a page: one self-contained HTML document that requests nothing."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"  # the page requests nothing


def document(title: str, top: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """A page as text.

    Args:
        title: its heading, not yet escaped.
        top: HTML below it.
        sections: of each the name for links, the title (not yet escaped) and its HTML.
    """
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in sections)
    bodies = "".join(f'<section id="{key}"><h2>{escape(title)}</h2>{body}</section>' for key, title, body in sections)
    style, script = (files("ftlit.report").joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>ftlit: {escape(title)}</title><style>{style}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1>{top}<nav>{links}</nav></header>\n<main>{bodies}</main>"
        f"<script>{script}</script></body></html>\n"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, sortable: bool = False) -> str:
    """A table whose cells are escaped; `Markup` is HTML already."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    attribute = ' class="sortable"' if sortable else ""
    return f"<table{attribute}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Markup(str):
    """A text that is HTML."""


def _cell(cell: Any) -> str:
    return cell if isinstance(cell, Markup) else escape(str(cell)).replace("\n", "<br>")
