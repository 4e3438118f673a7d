"""Parameters of tests: which are in the lane of every push, and which are nightly."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def nightly(values: Iterable[Any], which: Collection[Any]) -> list[Any]:
    """The values, with the mark `slow` on these: others of them test the same invariant."""
    values = list(values)
    assert all(value in values for value in which), [value for value in which if value not in values]
    return [pytest.param(value, marks=pytest.mark.slow) if value in which else value for value in values]
