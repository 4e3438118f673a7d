"""examples/: each script is short, runs by itself and prints its result."""

import os
import re
import sys

import pytest
import warm
from paths import ROOT
from PIL import Image
from train_command import FAST, train

SCRIPTS = {path.stem: path for path in (ROOT / "examples").glob("*.py")}
RESULTS = {  # script -> the end of its output, with an accuracy where it has one, and the lowest that is right
    "own_lightning_module": (r"the last stage trains \*; loss [\d.]+", 0.0),
    "cut_and_probe": (r"cut after layer[34]: .*\nfirst batch: ([\d.]+) correct", 0.85),
    "cached_features": (r"all read from the cache\n(?s:.*)second run, which reads them: [\d.]+ s, validation accuracy ([\d.]+)", 0.9),
    "custom_head": (r"validation accuracy ([\d.]+)", 0.85),
    "own_dataset": (r"test accuracy ([\d.]+) of a linear probe", 0.9),
}


def run(path, *arguments, cwd):
    environment = {**os.environ, "FTLIT_CACHE": str(cwd / "store")}
    done = warm.run([sys.executable, path, *arguments], cwd=cwd, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_script_is_tested_and_short():
    assert set(SCRIPTS) == {*RESULTS, "predict"}
    assert {name: lines for name, path in SCRIPTS.items() if (lines := len(path.read_text().splitlines())) > 40} == {}


@pytest.mark.e2e
@pytest.mark.parametrize("name", RESULTS)
def test_a_script_ends_with_its_result(tmp_path, name):
    pattern, least = RESULTS[name]
    found = re.search(rf"{pattern}\n$", run(SCRIPTS[name], cwd=tmp_path))
    assert found and float((found.groups() or ["0"])[0]) >= least


@pytest.mark.e2e
def test_predict_prints_a_line_for_each_image(tmp_path):
    assert train(tmp_path, *FAST, "hydra.run.dir=run", "report=false").returncode == 0
    (tmp_path / "photos").mkdir()
    for place in ("a.png", "photos/b.jpg"):
        Image.new("L", (20, 30), 200).save(tmp_path / place)
    output = run(SCRIPTS["predict"], "run", "a.png", "photos", cwd=tmp_path)
    assert re.fullmatch(r"Network\(glyph .*\)\na\.png \d [01]\.\d+ \[.*\]\nphotos/b\.jpg \d [01]\.\d+ \[.*\]\n", output)
