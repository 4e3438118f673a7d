"""A run that trains layers is compared with a linear probe, which stays its result unless an epoch is clearly better on val."""

import json
import os
import re
import shutil
import sys

import pytest
import torch
import warm
from paths import ROOT

from ftlit import load
from ftlit.lit.callbacks.probe_head import FitProbeHead
from ftlit.recipes.baseline import may_compare
from ftlit.run_folder import BASELINE

pytestmark = pytest.mark.e2e

TRAIN = [sys.executable, str(ROOT / "train.py"), "trainer=cpu", "data.num_workers=0", "report=false", "data.per_class=8"]
LARGE = [*TRAIN, "scenario=large_similar", "trainer.max_epochs=2", "data.batch_size=16", "callbacks.last.every_n_steps=1"]
WORSE = ["optimizer.lr=10"]


def run(folder, *words):
    done = warm.run([*words, f"hydra.run.dir={folder}"], cwd=folder.parent, env={**os.environ}, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def result(folder):
    return json.loads((folder / "result.json").read_text())


def weights(folder, name):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def worse(tmp_path_factory):
    """A run whose epochs are worse than the probe, and what it printed."""
    folder = tmp_path_factory.mktemp("worse") / "run"
    return folder, run(folder, *LARGE, *WORSE)


def test_a_run_whose_epochs_are_worse_gives_the_result_of_the_small_scenario(worse, tmp_path):
    folder, printed = worse
    assert "\nthe results are from the linear probe, because no epoch was clearly better" in printed  # a line of its own
    assert "linear probe -> fine-tuned" not in printed
    run(tmp_path / "small", *TRAIN, "scenario=small_similar")
    small, large = result(tmp_path / "small"), result(folder)
    for split in ("val", "test"):
        assert large[f"{split}/accuracy"] == large[f"linear_probe/{split}/accuracy"] == small[f"{split}/accuracy"]
        assert large[f"{split}/loss"] == pytest.approx(small[f"{split}/loss"], abs=1e-6)
    assert large["trained/val/accuracy"] <= large["val/accuracy"]
    best, probe = weights(folder, "best"), weights(folder, "linear_probe")
    assert all(torch.equal(best[name], probe[name]) for name in probe) and best.keys() == probe.keys()


def test_predictions_of_the_run_are_those_of_the_probe(worse, tmp_path):
    folder, _ = worse
    images = torch.rand(3, 3, 32, 32)
    of_run, of_probe = (load(path).logits(images) for path in (folder, folder / "checkpoints" / "linear_probe.ckpt"))
    assert torch.equal(of_run, of_probe)


def test_an_epoch_that_is_better_is_the_result(tmp_path):
    printed = run(tmp_path / "run", *LARGE, "callbacks.best.monitor=val/loss", "probe.l2=[100]")  # a penalty that leaves a high loss
    assert "the results are from epoch" in printed
    found = result(tmp_path / "run")
    line = next(line for line in printed.splitlines() if line.startswith("linear probe -> fine-tuned"))
    assert f"val {found['linear_probe/val/accuracy']:.4f} -> {found['val/accuracy']:.4f}" in line
    assert f"test {found['linear_probe/test/accuracy']:.4f} -> {found['test/accuracy']:.4f}" in line
    assert found["val/loss"] < found["linear_probe/val/loss"]


def test_training_starts_from_the_part_of_the_probe_that_reads_the_last_cut_without_its_temperature(tmp_path):
    run(tmp_path / "run", *LARGE, "optimizer.lr=1e-12")
    probe, last = weights(tmp_path / "run", "linear_probe"), weights(tmp_path / "run", "last")["head.weight"]
    assert last.shape[1] < probe["head.weight"].shape[1]
    printed = run(tmp_path / "top", *TRAIN, "scenario=small_similar", "head.cuts=null")
    temperature = float(re.search(r"temperature ([\d.]+)", printed)[1])
    of_top = weights(tmp_path / "top", "best")["head.weight"]
    assert torch.nn.functional.cosine_similarity(last, of_top).min() > 1 - 1e-4
    assert float(last.norm() / of_top.norm()) == pytest.approx(temperature, abs=0.01)


def test_the_baseline_of_all_images_is_refitted_on_train_and_val(tmp_path):
    """So it is the head that the small scenario gives, and the table says what it was fitted on."""
    words = [*(word for word in TRAIN if not word.startswith("data.per_class")), "data.val_fraction=0.1", "data.test_fraction=0.7"]
    printed = run(tmp_path / "large", *words, "scenario=large_similar", "trainer.max_epochs=1", *WORSE)
    assert "train + val" in printed and "the results are from the linear probe" in printed
    run(tmp_path / "small", *words, "scenario=small_similar")
    large, small = (torch.load(tmp_path / name / "checkpoints/best.ckpt", weights_only=True) for name in ("large", "small"))
    assert torch.equal(large["state_dict"]["head.weight"], small["state_dict"]["head.weight"])
    assert {**large["ftlit"], "base": None} == {**small["ftlit"], "base": None}  # the small one is saved without the backbone


@pytest.mark.parametrize("removed", [["best", "last"], ["last"]], ids=["in the baseline", "before the first step"])
def test_a_run_that_was_killed_before_its_first_step_begins_again(worse, tmp_path, removed):
    shutil.copytree(worse[0], tmp_path / "run")
    for name in removed:
        (tmp_path / "run/checkpoints" / f"{name}.ckpt").unlink()
    (tmp_path / "run/result.json").unlink()
    run(tmp_path / "run", *LARGE, *WORSE, "resume=true")
    assert result(tmp_path / "run") == result(worse[0])


def test_a_run_that_is_resumed_at_its_end_has_the_same_result(worse, tmp_path):
    shutil.copytree(worse[0], tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    printed = run(tmp_path / "run", *LARGE, *WORSE, "resume=true")
    assert "the results are from the linear probe" in printed
    again = result(tmp_path / "run")
    assert again == result(worse[0])
    assert again["test/fitted_on"] == again["linear_probe/test/fitted_on"]
    assert again["test/accuracy_low"] < again["test/accuracy"] < again["test/accuracy_high"]


def test_only_a_run_that_trains_from_a_fitted_head_has_a_baseline():
    class Trial:
        fast_dev_run = 0

    assert may_compare(Trial(), FitProbeHead())
    assert not may_compare(Trial(), FitProbeHead(trains=False))
    assert not may_compare(Trial(), None)
    Trial.fast_dev_run = 1
    assert not may_compare(Trial(), FitProbeHead())


@pytest.mark.ddp
def test_two_processes_compare_with_the_baseline_of_one(worse, tmp_path):
    words = [word for word in LARGE if word != "trainer=cpu" and not word.startswith("data.batch_size")]
    printed = run(tmp_path / "run", *words, *WORSE, "trainer=ddp_cpu", "trainer.devices=2", "data.batch_size=8")
    assert "the results are from the linear probe" in printed
    one, two = result(worse[0]), result(tmp_path / "run")
    assert {name: two[name] for name in one if name.startswith(BASELINE)} == {name: one[name] for name in one if name.startswith(BASELINE)}
    assert all(torch.equal(value, weights(worse[0], "best")[name]) for name, value in weights(tmp_path / "run", "best").items())


@pytest.mark.parametrize("augment", ["photo", "none"])
def test_before_training_a_note_says_that_mirrored_digits_are_other_signs(tmp_path, augment):
    words = [*(word for word in LARGE if not word.startswith(("data.per_class", "trainer.max_epochs"))), "trainer.max_epochs=1"]
    printed = run(tmp_path / "run", *words, "data.per_class=20", f"data.augment={augment}")
    notes = [line for line in printed[: printed.index("epoch 0 (")].splitlines() if line.startswith("note") and "data.augment=" in line]
    losses = {name.rpartition("/")[2]: value for name, value in result(tmp_path / "run").items() if "/augmentation/" in name}
    if augment == "none":
        assert not notes and not losses
    else:
        (note,) = notes
        assert note.endswith("stop this run and type data.augment=none")
        assert f"{losses['augmented']:.3f} if it is fitted on augmented images, and {losses['plain']:.3f} if" in note
        assert f"{losses['standard_error']:.3f}" in note
