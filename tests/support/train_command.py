"""`python train.py` with arguments, in a folder."""

import os
import subprocess
import sys
from pathlib import Path

import warm
from paths import ROOT

FAST = ("debug=fast", "trainer.max_epochs=3", "trainer=cpu")


def train(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run train.py with these arguments and additional environment variables."""
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return warm.run(command, cwd=folder, env={**os.environ, **environment}, timeout=300)
