"""Runs in a folder of images whose names are any bytes, with the folder of the run in the data themselves."""

import io
import json
import os
import re
import sys

import numpy as np
import pytest
from PIL import Image
from train_command import train

from ftlit.cli.main import main

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="these file systems take UTF-8 names only")]

RUN = ("trainer=cpu", "scenario=small_similar", "data=folder", "data.root=.", "data.num_workers=0", "hydra.run.dir=.")


def write_image(path: bytes, grey: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(np.full((8, 8), grey, np.uint8)).save(file := io.BytesIO(), "png")
    with open(path, "wb") as stream:
        stream.write(file.getvalue())


def test_a_run_in_the_data_root_is_resumed_predicted_and_reported_with_names_that_are_not_utf8(tmp_path, monkeypatch, capsys):
    for i in range(24):
        write_image(os.path.join(os.fsencode(tmp_path), (b"bee", b"caf\xe9")[i % 2], b"\xff%d.png" % i), 10 * i)
    first = train(tmp_path, *RUN)
    write_image(os.path.join(os.fsencode(tmp_path), b"bee", b"\xfe.png"), 250)
    resumed = train(tmp_path, *RUN, "resume=true")
    for done in (first, resumed):
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert re.search(r"classes   bee: \d+, caf\\xe9: \d+\s", done.stdout) and "no report" not in done.stdout
    assert r"new ones are ignored (1): bee/\xfe.png" in resumed.stdout
    assert "folders that hold runs of ftlit are ignored (2): checkpoints, report" in resumed.stdout
    split = json.loads((tmp_path / "split.json").read_text("utf-8"))
    names = [name for part in split["splits"].values() for name in part["names"]]
    assert sorted(names) == sorted(("bee", r"caf\xe9")[i % 2] + rf"/\xff{i}.png" for i in range(24))
    for name in ("class_names.json", "config.yaml", "report/test.csv", "report/run.json", "report.html"):
        (tmp_path / name).read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ftlit", "predict", ".", "bee"])
    main()
    assert capsys.readouterr().out.count(r"bee/\xff") == 12
