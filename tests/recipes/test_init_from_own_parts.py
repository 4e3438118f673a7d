"""`init_from` of a run with a backbone and a head of the user's own: their code runs where the command line names it."""

import json
import os
import re
import sys

import pytest
import torch
import warm
from digit_folders import write_digits
from paths import ROOT, python_path

pytestmark = pytest.mark.e2e

MINE = """
from torch import nn

import ftlit

def backbone(width: int = 4):
    print("built with", width)
    stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.ReLU())
    return ftlit.Backbone({"stem": stem}, ftlit.InputSpec(size=16))

class Head(nn.Module):
    def __init__(self, in_features, num_classes):
        super().__init__()
        self.out = nn.Linear(in_features, num_classes)

    def forward(self, features):
        return self.out(features)
"""
TRAIN = [sys.executable, str(ROOT / "train.py"), "trainer=cpu", "data.num_workers=0", "report=false", "data=folder", "data.root=photos"]
BACKBONE, HEAD = ["backbone._target_=mine.backbone", "+backbone.width=6"], ["head._target_=mine.Head"]


def run(folder, *words, code=0):
    environment = {**os.environ, "PYTHONPATH": python_path(folder)}
    done = warm.run([*TRAIN, "trainer.max_epochs=3", *words], cwd=folder, env=environment, timeout=300)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done.stdout if code == 0 else done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(MINE)
    write_digits(folder / "photos", dict.fromkeys(range(2), 20))
    run(folder, *BACKBONE, *HEAD, "scenario=large_similar", "hydra.run.dir=first")
    return folder


def test_a_run_that_names_the_same_code_goes_on_from_its_weights(first):
    printed = run(first, *BACKBONE, *HEAD, "init_from=first", "optimizer.lr=1e-12", "hydra.run.dir=second")
    assert "the network of first, its head too" in printed
    before, now = (torch.load(first / name / "checkpoints/best.ckpt", weights_only=True) for name in ("first", "second"))
    assert all(torch.allclose(value, now["state_dict"][name], atol=1e-6) for name, value in before["state_dict"].items())
    assert before["ftlit"]["backbone"] == now["ftlit"]["backbone"]
    results = json.loads((first / "second/result.json").read_text())
    assert results["init_from/test/accuracy"] == results["test/accuracy"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the backbone of that run is mine.backbone, which is not part of ftlit, .*: give backbone._target_=mine.backbone as in"),
        (BACKBONE, "the head of that run is mine.Head, which is not part of ftlit, .*: give head._target_=mine.Head as in that run"),
        ([BACKBONE[0], *HEAD], r"mine.backbone was called with width=6 in that run: give \+backbone.width=6"),
        ([BACKBONE[0], "+backbone.width=8", *HEAD], r"mine.backbone was called with width=6 in that run: give backbone.width=6"),
    ],
    ids=["nothing", "no head", "no argument", "another argument"],
)
def test_other_code_is_one_line_and_is_not_run(first, words, message):
    error = run(first, *words, "init_from=first", "hydra.run.dir=other", code=2)
    assert re.search(f"^ftlit: init_from=first: {message}", error), error
    assert not (first / "other/config.yaml").exists()
