"""Ctrl-C after the head is fitted leaves a model, a table and a page; the run can be resumed as before."""

import os
import sys

import pytest
import torch
import warm
from paths import ROOT, python_path

from ftlit import load

pytestmark = pytest.mark.e2e

OPTIONS = ["trainer=cpu", "data.num_workers=0", "data.per_class=8", "resume=auto", "hydra.run.dir=run"]
TRAIN = [sys.executable, str(ROOT / "train.py"), *OPTIONS]
LARGE = ["scenario=large_similar", "trainer.max_epochs=2", "data.batch_size=16"]
BETTER = ["callbacks.best.monitor=val/loss", "probe.l2=[100]"]  # a penalty that leaves a high loss, so that training lowers it
SENDER = """
import os, signal
from ftlit.lit.callbacks.probe_head import FitProbeHead
from ftlit.lit.callbacks.recorder import Recorder
from ftlit.recipes import baseline
from lightning.pytorch import Callback, Trainer

def send(*_, **__):
    os.kill(os.getpid(), signal.SIGINT)

class Sender(Callback):
    def __init__(self, place, calls=1):
        self.left = calls
        if place == "fit":
            FitProbeHead.on_validation_start = send
        elif place == "test":
            Recorder.on_test_start = send
        elif place == "features":
            FitProbeHead.reads = send
        elif place == "start":
            self.setup = lambda trainer, module, stage: send() if stage == "fit" else None
        else:
            self.on_train_batch_end = self.count

    def count(self, *_):
        self.left -= 1
        if self.left == 0:
            send()
"""


def run(folder, *words, code=0):
    done = warm.run([*TRAIN, *words], cwd=folder, env={**os.environ, "PYTHONPATH": python_path(folder)}, timeout=300)
    assert done.returncode == code and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.stdout


def interrupted(folder, *words, **how):
    (folder / "sender.py").write_text(SENDER)
    sender = ["+callbacks.sender._target_=sender.Sender", *(f"+callbacks.sender.{name}={value}" for name, value in how.items())]
    printed = run(folder, *words, *sender, code=130)
    assert "To resume: python" in printed.splitlines()[-1]
    return printed


def page(folder):
    return (folder / "run/report.html").read_text()


def test_while_the_fitted_head_of_a_small_scenario_is_validated(tmp_path):
    printed = interrupted(tmp_path, "scenario=small_similar", place="fit")
    check_fitted(tmp_path, printed)
    assert "best.ckpt is the fitted head (epoch 0)" in page(tmp_path)
    assert "│ test" in run(tmp_path, "scenario=small_similar") and "interrupted" not in page(tmp_path)


def check_fitted(folder, printed):
    assert "best.ckpt is the fitted head (epoch 0); not evaluated on val and test" in printed
    assert load(folder / "run")(torch.rand(3, 32, 32)).label


def test_before_training_best_ckpt_is_there_and_a_run_that_is_interrupted_twice_goes_on(tmp_path):
    words = [*LARGE, "trainer.max_epochs=1", "report=false"]
    check_fitted(tmp_path, interrupted(tmp_path, *words, place="fit"))
    printed = interrupted(tmp_path, *words, place="start")
    assert "interrupted before the first step: best.ckpt is the fitted head (epoch 0)\n" in printed
    assert (tmp_path / "run/checkpoints/best.ckpt").is_file()
    printed = run(tmp_path, *words)
    assert "trained in" in printed and "│ test" in printed


def test_in_the_first_epoch_the_fitted_head_is_the_result_and_its_scores_are_in_the_table(tmp_path):
    printed = interrupted(tmp_path, *LARGE, place="batch", calls=2)
    assert "interrupted in epoch 0 (the last would be 1), after 2 steps: best.ckpt is the fitted head (epoch 0)\n" in printed
    assert "│ val " in printed and "│ test " in printed and printed.index("│ test ") < printed.index("interrupted in epoch")
    assert "Most confident errors" in page(tmp_path) or "Confusion" in page(tmp_path)
    best, probe = ((tmp_path / f"run/checkpoints/{name}.ckpt").read_bytes() for name in ("best", "linear_probe"))
    assert best == probe


def test_after_a_better_epoch_its_network_is_the_result_and_its_scores_on_val_are_in_the_table(tmp_path):
    printed = interrupted(tmp_path, *LARGE, *BETTER, "report=false", place="batch", calls=7)
    assert "best.ckpt is the network of epoch 0; not evaluated on test\n" in printed
    assert "│ val " in printed and "│ test " not in printed
    best = (tmp_path / "run/checkpoints/best.ckpt").read_bytes()
    printed = interrupted(tmp_path, *LARGE, *BETTER, "report=false", place="fit")  # while the resumed run fits the head again
    assert "best.ckpt is" not in printed and (tmp_path / "run/checkpoints/best.ckpt").read_bytes() == best


def test_before_the_head_is_fitted_there_is_nothing(tmp_path):
    printed = interrupted(tmp_path, "scenario=small_similar", place="features")
    assert "best.ckpt" not in printed and not (tmp_path / "run/checkpoints/best.ckpt").exists()
