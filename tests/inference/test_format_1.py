"""Invariant 13: runs of format 1, the present one, are read, and a run that was stopped is resumed, by this release and later ones.

`stopped` is the run `trained`, ended by SIGTERM after its first epoch. `auto` is a run of `scenario=auto` with a slim checkpoint.
"""

import json
import os
import shutil
import sys

import pytest
import torch
import warm
from paths import FIXTURES, ROOT

from ftlit import export_run, load
from ftlit.cli import cache
from ftlit.report.html import write_report
from ftlit.run_folder import read_advice, read_result

pytestmark = pytest.mark.e2e

RUNS = FIXTURES / "runs_format_1"
EXPECTED = json.loads((RUNS / "expected.json").read_text())
COMMAND = (  # of `trained` and `stopped`
    *("data=folder", "data.root=images", "data.num_workers=0", "trainer=cpu", "trainer.max_epochs=2", "scenario=large_similar"),
    *("backbone=mlp", "backbone.hidden=[8]", "backbone.input_spec.size=8", "head=mlp", "head.hidden=[8]", "schedule.epoch=1"),
)


@pytest.fixture
def runs(tmp_path):
    """Copy the runs to a writable folder."""
    return shutil.copytree(RUNS, tmp_path / "runs")


def probabilities(runs, name):
    return load(runs / name)(runs / "images/7/0.png").probabilities


@pytest.mark.parametrize("name", EXPECTED)
def test_a_run_of_format_1_has_its_recorded_predictions(runs, name):
    assert probabilities(runs, name) == pytest.approx(EXPECTED[name], abs=1e-5)


def test_a_stopped_run_of_format_1_is_resumed_and_ends_as_the_run_that_never_stopped(runs):
    command = [sys.executable, ROOT / "train.py", *COMMAND, "hydra.run.dir=stopped", "resume=true"]
    done = warm.run(command, cwd=runs, env=dict(os.environ), timeout=300)
    assert done.returncode == 0 and "metrics.csv was" not in done.stderr, done.stderr
    assert probabilities(runs, "stopped") == pytest.approx(EXPECTED["trained"], abs=1e-4)
    before, now = read_result(runs / "trained"), read_result(runs / "stopped")
    assert {name: now[name] for name in before} == pytest.approx(before, abs=1e-4)  # it has more now
    rows = [len((runs / name / "metrics.csv").read_text().splitlines()) for name in ("stopped", "trained")]
    assert rows[0] == rows[1]


def test_a_head_that_was_only_fitted_on_one_layer_is_fitted_again_on_that_layer_only(runs):
    data = ("data=folder", "data.root=images", "data.num_workers=0", "trainer=cpu", "checkpoint=slim")
    command = [sys.executable, ROOT / "train.py", *data, "hydra.run.dir=auto", "resume=true"]
    best = (runs / "auto/checkpoints/best.ckpt").read_bytes()
    (runs / "auto/checkpoints/last.ckpt").write_bytes(best)  # the fixture has none; a head that is only fitted reads no weights of it
    refused = warm.run(command, cwd=runs, env=dict(os.environ), timeout=300)
    assert refused.returncode == 2 and "give head.cuts=null data.views=0, or start a new run" in refused.stderr, refused.stderr
    assert (runs / "auto/checkpoints/best.ckpt").read_bytes() == best
    for _ in range(2):  # again, with the config that the resumed run wrote
        done = warm.run([*command, "head.cuts=null", "data.views=0"], cwd=runs, env=dict(os.environ), timeout=300)
        assert done.returncode == 0, done.stderr
        assert probabilities(runs, "auto") == pytest.approx(EXPECTED["auto"], abs=0.02)  # it had no temperature


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("auto", {"plan", "data", "confusion", "classes", "calibration", "depth"}),
        ("trained", {"samples", "curves", "layers", "stages", "confusion", "mistakes", "calibration"}),
    ],
)
def test_a_run_of_format_1_can_be_reported(runs, name, sections):
    text = write_report(runs / name).read_text()
    assert all(f'<section id="{section}">' in text for section in sections) and "not drawn" not in text


def test_a_run_of_format_1_can_be_exported(runs):
    path, _ = export_run(runs / "trained", "torch")
    files = {"format": "", "class_names": ""}
    torch.export.load(path, extra_files=files)
    assert json.loads(files["class_names"]) == ["0", "1", "7"]


def test_advice_and_stored_features_of_format_1_are_read(runs, capsys):
    assert read_advice(runs / "auto")["measurements"]["images"] > 0
    cache.show(str(runs / "store"))
    assert "stem" in capsys.readouterr().out
