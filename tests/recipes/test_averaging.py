"""`average=ema` and `average=wise` on the command line: what is validated is saved, tested and predicted."""

import json
import os
import re
import shutil
import sys

import pytest
import torch
import warm
from composed_configs import error_text
from paths import ROOT

from ftlit import interpolated, load
from ftlit.recipes.config.hydra_internals import fresh_hydra
from ftlit.recipes.wise import WiseChoice, _best_of

pytestmark = pytest.mark.e2e

TRAIN = [sys.executable, str(ROOT / "train.py"), "trainer=cpu", "data.num_workers=0", "report=false", "data.per_class=8"]
LARGE = [*TRAIN, "scenario=large_similar", "trainer.max_epochs=3", "data.batch_size=16", "callbacks.last.every_n_steps=1"]
PAYS = ["callbacks.best.monitor=val/loss", "probe.l2=[100]"]  # a penalty that leaves a high loss, so that training lowers it
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def run(folder, *words, code=0):
    done = warm.run([*words, f"hydra.run.dir={folder}"], cwd=folder.parent, env={**os.environ}, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout


def result(folder):
    return json.loads((folder / "result.json").read_text())


def checkpoint(folder, name):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def weights(folder, name):
    return checkpoint(folder, name)["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def wise(tmp_path_factory):
    """A run whose training pays, and what it printed."""
    folder = tmp_path_factory.mktemp("wise") / "run"
    return folder, run(folder, *LARGE, *PAYS, "average=wise")


def test_the_result_is_on_the_line_between_start_and_end_and_val_says_where(wise):
    folder, printed = wise
    found = result(folder)
    alpha = found["wise/alpha"]
    assert alpha in ALPHAS and f"average=wise chose alpha {alpha:g}: val/loss {found['wise/chosen/val/loss']:.4f}" in printed
    assert "chosen on val among 0, 0.25, 0.5, 0.75, 1" in " ".join(printed.split())
    assert same(weights(folder, "best"), interpolated(weights(folder, "start"), weights(folder, "end"), alpha))
    assert found["wise/chosen/val/loss"] <= min(found["wise/start/val/loss"], found["wise/end/val/loss"])
    assert found["val/loss"] == pytest.approx(found["wise/chosen/val/loss"], abs=1e-6)
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(load(folder).logits(images), load(folder / "checkpoints/best.ckpt").logits(images))


def test_the_end_is_the_best_epoch_of_a_run_without_average(wise, tmp_path):
    run(tmp_path / "none", *LARGE, *PAYS)
    assert same(weights(wise[0], "end"), weights(tmp_path / "none", "best"))
    assert result(tmp_path / "none")["val/loss"] == pytest.approx(result(wise[0])["wise/end/val/loss"], abs=1e-6)


def test_a_wise_run_that_is_resumed_gives_the_same_result(wise, tmp_path):
    shutil.copytree(wise[0], tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    run(tmp_path / "run", *LARGE, *PAYS, "average=wise", "resume=true")
    assert result(tmp_path / "run") == result(wise[0])
    assert same(weights(tmp_path / "run", "best"), weights(wise[0], "best"))


def test_the_baseline_competes_with_the_chosen_weights(tmp_path):
    printed = run(tmp_path / "run", *LARGE, "optimizer.lr=10", "average=wise")
    assert "the results are from the linear probe" in printed and "chose alpha 0" in printed
    assert same(weights(tmp_path / "run", "best"), weights(tmp_path / "run", "linear_probe"))
    found = result(tmp_path / "run")
    assert found["test/accuracy"] == found["linear_probe/test/accuracy"]


def test_a_missing_or_foreign_start_is_an_error(wise, tmp_path):
    shutil.copytree(wise[0], tmp_path / "run")
    (tmp_path / "run/checkpoints/start.ckpt").unlink()
    done = warm.run(
        [*LARGE, *PAYS, "average=wise", "resume=true", f"hydra.run.dir={tmp_path / 'run'}"], cwd=tmp_path, env={**os.environ}, timeout=300
    )
    assert done.returncode and "start.ckpt, the weights at the beginning of training, is missing: restore it" in done.stderr


@pytest.mark.parametrize("mode", ["min", "max"])
def test_of_equal_values_the_least_share_is_chosen(mode):
    from ftlit.lit.callbacks.best_checkpoint import BestCheckpoint

    best = BestCheckpoint(monitor="val/loss", mode=mode)
    assert _best_of({0.0: 0.5, 0.25: 0.7, 0.5: 0.7, 1.0: 0.6}, best) == (0.25 if mode == "max" else 0.0)
    assert _best_of({0.0: float("nan"), 0.5: 0.3, 1.0: 0.3}, best) == 0.5
    assert WiseChoice("val/loss", {0.0: 3.0, 0.5: 1.0, 1.0: 2.0}, 0.5).record() == {
        "wise/alpha": 0.5, "wise/start/val/loss": 3.0, "wise/end/val/loss": 2.0, "wise/chosen/val/loss": 1.0,
    }  # fmt: skip


def test_the_average_is_the_result_and_resumes_to_the_bit(tmp_path):
    printed = run(tmp_path / "run", *LARGE, *PAYS, "average=ema", "average.decay=0.9")
    assert "exponential moving average of the weights (decay up to 0.9)" in printed
    best, found = checkpoint(tmp_path / "run", "best"), result(tmp_path / "run")
    assert not same(best["state_dict"], best["current_model_state"])
    logged = re.search(rf"^epoch {best['epoch']} .* val/loss ([\d.]+)", printed, re.MULTILINE)
    assert float(logged[1]) == pytest.approx(found["val/loss"], abs=1e-4)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["average=ema", "scenario=small_similar"],
            "averages weights of training, but this run only fits a linear probe, without training: leave",
        ),
        (["average=wise", "scenario=large_similar", "head=linear"], "this head starts from random weights: give head=linear_probe"),
        (
            ["average=wise", "scenario=large_similar", "callbacks.best=null"],
            "average=wise needs the default callbacks.best to choose on val",
        ),
        (["average=wise", "scenario=large_similar", "average.alphas=[2]"], "average.alphas[0]=2: give a number from 0 to 1"),
        (["average=ema", "scenario=large_similar", "trainer.precision=bf16-true"], "would lose its small steps: give trainer.precision=bf"),
        (["average=ema", "scenario=large_similar", "average.decay=1"], "average.decay=1: give a number of at least 0 and below 1"),
    ],
)
def test_errors(monkeypatch, words, expected):
    with fresh_hydra():
        assert expected in error_text(monkeypatch, *words, "trainer=cpu", "data.per_class=4")
