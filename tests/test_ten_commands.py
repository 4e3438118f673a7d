"""The ten commands of the README run in order, with fewer images or steps where they do not give their number."""

import os
import re
import shlex
import sys

import pytest
import warm
from paths import ROOT
from PIL import Image

pytestmark = pytest.mark.e2e


def shortened(words):
    """With the images or steps that suffice to see that it runs (a range test needs data on which all layers train), and one report."""
    if words[0] != "train.py":
        return words
    few = "data.per_class=" if "recipe=lr_find" not in words else "lr_find.steps="
    given = any(word.startswith(few) for word in words)
    return [*words, *([] if given else [f"{few}20"]), *([] if "hydra.run.dir=runs/mine" in words else ["report=false"])]


def test_the_ten_commands_run(tmp_path):
    block = re.search(r"## Ten commands\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    commands = block.splitlines()
    assert len(commands) == 10
    Image.new("L", (20, 30), 200).save(tmp_path / "digit.png")
    environment = {**os.environ, "FTLIT_CACHE": str(tmp_path / "store")}
    starts = {"python": [sys.executable], "ftlit": [sys.executable, "-m", "ftlit.cli.main"]}
    for command in commands:
        first, *rest = shlex.split(command)
        arguments = [str(ROOT / word) if word == "train.py" else word for word in shortened(rest)]
        done = warm.run([*starts[first], *arguments], cwd=tmp_path, env=environment, timeout=600)
        assert done.returncode == 0 and not done.stderr.count("Traceback"), f"{command}\n{done.stderr}"
    for made in ("mine/report.html", "mine/export/torch/glyph.pt2", "sweeps/few/sweep.md"):
        assert (tmp_path / "runs" / made).is_file()
