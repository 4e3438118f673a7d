"""What the page of `ftlit demo` states about the run: its data and network, the classes, and the accuracy on test images."""

import os
from contextlib import suppress
from html import escape
from pathlib import Path

from ftlit.data.dataset import Examples
from ftlit.errors import UserError, shorten
from ftlit.export.model_card import accuracy_of, facts_of
from ftlit.formatting import printable
from ftlit.inference.network import Network
from ftlit.run_folder import read_result

TITLE, ABOUT = "ftlit demo", '<p id="about"></p>'  # what is replaced in the page
MOST_CLASSES = 100  # that are named


def with_about(page: str, run: str | Path, network: Network, train: Examples | None, why: str = "") -> str:
    """The page with the facts of a run.

    Args:
        page: the HTML, with `TITLE` as title and heading, and `ABOUT`.
        run: folder of the run, or a checkpoint, of which no accuracy is known.
        network: of the run.
        train: its training images; `None` where there are none.
        why: there are none, or none that can be shown.
    """
    name = (network.backbone.record or {}).get("name", type(network.backbone).__name__)
    title = escape(printable(f"{_data_of(train) or Path(run).expanduser().absolute().name}: {name}"))
    names = shorten(map(printable, network.class_names), most=MOST_CLASSES)
    always = "" if network.multilabel else " One of these classes is always named, also for a picture that shows none of them."
    missing = f" No training images are shown: {printable(why)}." if why else ""
    about = escape(f"Classes: {names}.{always} {_accuracy(run)}{missing}")
    return page.replace(TITLE, title, 2).replace(ABOUT, ABOUT.replace("><", f">{about}<"))


def _data_of(train: Examples | None) -> str:
    """The folder that holds the training images; empty where they are no files in one folder."""
    paths = [content for content in train.contents or () if isinstance(content, Path)] if train else []
    with suppress(ValueError):
        return Path(os.path.commonpath([path.parent.parent for path in paths])).name
    return ""


def _accuracy(run: str | Path) -> str:
    result = None
    with suppress(UserError):
        result = read_result(Path(run).expanduser())
    found = result if isinstance(result, dict) else {}
    accuracy, low, high = (found.get(f"test/accuracy{end}") for end in ("", "_low", "_high"))
    if (facts := facts_of(Path(run).expanduser())).is_final:
        return f"Accuracy: {accuracy_of(facts)}."
    if accuracy is None:
        return "The accuracy on test images is not known."
    interval = "" if low is None or high is None else f" (95 % interval {low:.3f} to {high:.3f})"
    return f"Accuracy on test images: {accuracy:.4f}{interval}."
