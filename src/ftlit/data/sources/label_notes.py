"""Notes on labels that look alike, or that stand for a missing value."""

import re
from collections.abc import Iterable
from unicodedata import category, normalize

from ftlit.errors import shorten

# written by pandas, spreadsheets and databases where there is no value
MISSING_VALUES = {"nan", "<na>", "n/a", "#n/a", "na", "null", "none", "nat"}


def label_notes(names: Iterable[str]) -> list[str]:
    """Notes on class names: those that differ in spelling only, and those that may stand for a missing value."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_meaning(name), []).append(name)
    several = [" and ".join(map(repr, same)) for same in alike.values() if len(same) > 1]
    missing = [repr(name) for same in alike.values() for name in same if name.strip().lower() in MISSING_VALUES]
    notes = [f"labels that differ only in spelling were read as different classes: {shorten(several, most=5)}"] if several else []
    if missing:
        notes.append(
            f"labels that look like missing values were read as classes: {shorten(missing, most=5)}; "
            "if these examples have no label, remove them"
        )
    return notes


def _meaning(name: str) -> str:
    """The label without case, invisible characters, kind of separator, and way of writing a number."""
    text = "".join(mark for mark in normalize("NFKC", name) if mark.isspace() or category(mark) not in ("Cf", "Cc")).strip().casefold()
    try:
        return repr(float(text.replace(",", "."))) if text not in MISSING_VALUES else text
    except ValueError:
        return re.sub(r"[\s_-]+", " ", text)
