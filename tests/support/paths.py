"""Paths in the checkout."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
SUPPORT = TESTS / "support"
FIXTURES = TESTS / "fixtures"
CONF = ROOT / "conf"


def python_path(folder: Path) -> str:
    """Return a PYTHONPATH with this folder before the PYTHONPATH of this process."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
