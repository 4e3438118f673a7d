"""The ten commands of the README run unchanged, in order."""

import os
import re
import shlex
import sys

import pytest
import warm
from paths import ROOT
from PIL import Image

pytestmark = pytest.mark.e2e


def test_the_ten_commands_run(tmp_path):
    block = re.search(r"## Ten commands\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    commands = block.splitlines()
    assert len(commands) == 10
    Image.new("L", (20, 30), 200).save(tmp_path / "digit.png")
    environment = {**os.environ, "FTLIT_CACHE": str(tmp_path / "store")}
    starts = {"python": [sys.executable], "ftlit": [sys.executable, "-m", "ftlit.cli.main"]}
    for command in commands:
        first, *rest = shlex.split(command)
        arguments = [str(ROOT / word) if word == "train.py" else word for word in rest]
        done = warm.run([*starts[first], *arguments], cwd=tmp_path, env=environment, timeout=600)
        assert done.returncode == 0 and not done.stderr.count("Traceback"), f"{command}\n{done.stderr}"
    for made in ("mine/report.html", "mine/export/glyph.pt2", "sweeps/few/sweep.md"):
        assert (tmp_path / "runs" / made).is_file()
