"""Files that prepare images name the class of `ftlit predict` for 500 photos of mixed sizes, in a process without ftlit."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import warm
from paths import ROOT

from ftlit.export.export_formats import EXPORT_FORMATS

DATA = Path(os.environ.get("FTLIT_TEST_DATA", "missing"))
WITHOUT_FTLIT = "import runpy, sys; sys.modules['ftlit'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason="needs the test data")]


def ftlit(folder, *words):
    done = warm.run([sys.executable, "-m", "ftlit.cli.main", *map(str, words)], cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on ants and bees, 500 photos in a list, and what `ftlit predict` answers for them."""
    folder = tmp_path_factory.mktemp("agreement")
    weights = DATA / "weights" / "squeezenet1_1_imagenet_torchvision.pth"
    words = ["backbone=squeezenet1_1", f"backbone.weights={weights}", "data=folder", f"data.root={DATA / 'images/hymenoptera'}"]
    done = warm.run([sys.executable, ROOT / "train.py", *words, "hydra.run.dir=run"], cwd=folder)
    assert done.returncode == 0, done.stderr
    photos = [
        path
        for name in ("hymenoptera/test", "cats_dogs/test", "imagenet_sample")
        for path in sorted((DATA / "images" / name).rglob("*.jpg"))
    ]
    photos = [*photos[:150], *photos[150:][:: (len(photos) - 150) // 350][:350]]
    (folder / "photos.csv").write_text("path\n" + "\n".join(map(str, photos)))
    return folder, photos, [row["label"] for row in csv.DictReader(io.StringIO(ftlit(folder, "predict", "run", "photos.csv")))]


@pytest.mark.parametrize("to", ["torch", "onnx"])
def test_the_program_beside_the_file_names_the_class_of_ftlit_predict(folder, to):
    folder, photos, labels = folder
    ftlit(folder, "export", "run", "--to", to, "--with-preprocessing")
    command = [sys.executable, "-c", WITHOUT_FTLIT, f"run/export/{to}-with-preprocessing/predict.py", *map(str, photos)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [line.split("\t")[1] for line in done.stdout.splitlines()]
    same = sum(a == b for a, b in zip(found, labels, strict=True))
    assert len(photos) == 500 and same >= EXPORT_FORMATS[to].least_agreement * 500, same
