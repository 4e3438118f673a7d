"""Where things lie in the checkout."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
SUPPORT = TESTS / "support"
FIXTURES = TESTS / "fixtures"
CONF = ROOT / "conf"


def python_path(folder: Path) -> str:
    """PYTHONPATH of a process that finds modules in a folder, and else what this one finds."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
