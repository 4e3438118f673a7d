"""The rows of a run with `init_from` in the table of results: the earlier run on the same test images, and the paired differences."""

from collections.abc import Mapping
from typing import Any

from ftlit.intervals import accuracy_interval

RUN = "init_from/run"  # in `result.json`: the name of the earlier run
TEST, KNOWN = "init_from/test", "init_from/known"  # before the entries of all compared images, and of those of classes that it knows


def start_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, accuracy and 95 % interval of each row; empty for a run that is compared with none.

    Args:
        result: `result.json`.
    """
    if f"{TEST}/images" not in result:
        return []
    name = result.get(RUN, "earlier run")  # earlier versions did not write it
    rows = [accuracy_row(f"test: {name}", result[f"{TEST}/accuracy"], result[f"{TEST}/images"]), _difference("difference", result, TEST)]
    if f"{KNOWN}/images" in result:
        images = result[f"{KNOWN}/images"]
        accuracy = result[f"{KNOWN}/accuracy"] + result[f"{KNOWN}/difference"]
        rows += [
            accuracy_row(f"test, known classes ({images:,})", accuracy, images),
            _difference("difference on these", result, KNOWN),
        ]
    return rows


def accuracy_row(name: str, accuracy: float, images: int) -> tuple[str, str, str]:
    """Name, accuracy and its 95 % interval."""
    low, high = accuracy_interval(accuracy, images)
    return name, f"{accuracy:.4f}", f"{low:.3f} to {high:.3f}"


def difference_row(name: str, difference: float, low: float, high: float) -> tuple[str, str, str]:
    """Name, difference of two accuracies and its 95 % interval."""
    return name, f"{difference:+.4f}", f"{low:+.3f} to {high:+.3f}"


def _difference(name: str, result: Mapping[str, Any], prefix: str) -> tuple[str, str, str]:
    return difference_row(name, *(result[f"{prefix}/difference{end}"] for end in ("", "_low", "_high")))
