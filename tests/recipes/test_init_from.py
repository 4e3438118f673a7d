"""`init_from`: a run that goes on from another one, with more images and a new class."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import warm
from digit_folders import write_digits
from doc_pages import Sample, all_blocks, missing
from paths import ROOT, python_path

from ftlit import UserError, load
from ftlit.intervals import paired_interval
from ftlit.recipes.start.start_run import copy_start

pytestmark = pytest.mark.e2e

TRAIN = [sys.executable, str(ROOT / "train.py"), "trainer=cpu", "data.num_workers=0", "report=false", "data=folder", "data.augment=none"]
LARGE = ["scenario=large_similar", "trainer.max_epochs=1", "callbacks.last.every_n_steps=1", "data.batch_size=32"]
BETTER = ["callbacks.best.monitor=val/loss", "probe.l2=[100]"]  # a penalty that leaves a high loss, so that training lowers it
SENDER = """
import os, signal
from lightning.pytorch import Callback

class Sender(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
"""


def run(folder, *words, code=0):
    environment = {**os.environ, "PYTHONPATH": python_path(folder)}
    done = warm.run([*TRAIN, *words], cwd=folder, env=environment, timeout=300)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done.stdout if code in (0, 130) else done.stderr.splitlines()[-1]


def result(folder):
    return json.loads((folder / "result.json").read_text())


def checkpoint(folder, name="best"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def split(folder):
    return {image: name for name, images in json.loads((folder / "split.json").read_text())["splits"].items() for image in images["hashes"]}


@pytest.fixture(scope="module")
def monday(tmp_path_factory):
    """A folder with a run on 225 images of 9 classes, whose layers were trained; and 50 more images, 14 of them of a new class."""
    folder = tmp_path_factory.mktemp("days")
    write_digits(folder / "photos", dict.fromkeys(range(9), 25))
    write_digits(folder / "more", dict.fromkeys(range(9), 29) | {9: 14})
    run(folder, "data.root=photos", *LARGE, *BETTER, "hydra.run.dir=monday")
    return folder


@pytest.fixture(scope="module")
def fitted(monday):
    """What a run printed that fits the head anew on the features of the trained backbone."""
    return run(monday, "init_from=monday", "data.root=more", "scenario=small_similar", "hydra.run.dir=fitted")


def test_the_page_shows_the_table_that_is_printed(fitted):
    """Its rows, and the line after them; numbers and their signs are of another day."""
    (block,) = (block for block in all_blocks("console") if block.page.name == "continuing.md")
    shown, printed = (re.sub(r"[+-](?=\d)", "", text) for text in (block.text, fitted.replace("monday", "runs/monday")))
    assert missing(Sample("", replace(block, text=shown)), printed.splitlines()) == []


def test_the_split_is_kept_and_new_images_are_added_by_their_hash(monday, fitted):
    before, now = split(monday / "monday"), split(monday / "fitted")
    assert len(before) == 225 and len(now) == 275 and all(now[image] == name for image, name in before.items())
    assert {now[image] for image in now.keys() - before.keys()} == {"train", "val", "test"}
    assert "classes: 9 known, 1 new (digit9)" in fitted


def test_the_backbone_is_that_of_the_run_and_the_head_has_the_new_class(monday, fitted):
    before, now = (checkpoint(monday / name)["state_dict"] for name in ("monday", "fitted"))
    names = [name for name in before if name.startswith("backbone.")]
    assert names and all(torch.equal(before[name], now[name]) for name in names)
    assert load(monday / "fitted").class_names[-1] == "digit9"


def test_both_runs_are_compared_on_the_same_test_images(monday, fitted):
    now = split(monday / "fitted")
    files = [path for path in (monday / "more").rglob("*.png") if now[_hash(path)] == "test"]
    old, new = ({path: network(path).label for path in files} for network in (load(monday / "monday"), load(monday / "fitted")))
    right = [{path for path in files if found[path] == path.parent.name} for found in (old, new)]
    found = result(monday / "fitted")
    assert found["init_from/test/images"] == len(files)
    assert found["init_from/test/accuracy"] == pytest.approx(len(right[0]) / len(files))
    assert found["test/accuracy"] - found["init_from/test/accuracy"] == pytest.approx(found["init_from/test/difference"])
    low, high = paired_interval(len(right[1] - right[0]), len(right[0] - right[1]), len(files))
    assert (found["init_from/test/difference_low"], found["init_from/test/difference_high"]) == pytest.approx((low, high))
    known = [path for path in files if path.parent.name != "digit9"]
    better, worse = (len((right[a] - right[b]) & set(known)) for a, b in ((1, 0), (0, 1)))
    assert found["init_from/known/images"] == len(known) < len(files)
    assert found["init_from/known/difference"] == pytest.approx((better - worse) / len(known))
    low, high = paired_interval(better, worse, len(known))
    assert (found["init_from/known/difference_low"], found["init_from/known/difference_high"]) == pytest.approx((low, high))
    assert f"│ test, known classes ({len(known)})" in fitted
    assert "│ test: monday" in fitted and "│ difference" in fitted and f"on the same {len(files)} test images" in fitted


def _hash(path):
    from ftlit.data.splitting.duplicates import content_hash

    return content_hash(path)


def test_training_begins_with_the_rows_of_the_run_and_is_resumed_to_the_same_bits_without_the_run(monday, tmp_path):
    (tmp_path / "sender.py").write_text(SENDER)
    shutil.copytree(monday / "monday", tmp_path / "monday")
    words = ["init_from=monday", f"data.root={monday / 'more'}", *LARGE, "resume=auto"]
    printed = run(tmp_path, *words, "hydra.run.dir=whole")
    assert "Training starts from the head of monday, with rows of a linear probe for new classes" in printed.replace("\n          ", " ")
    run(tmp_path, *words, "hydra.run.dir=parts", "+callbacks.sender._target_=sender.Sender", code=130)
    shutil.rmtree(tmp_path / "monday")
    assert "resuming from" in run(tmp_path, *words, "hydra.run.dir=parts")
    whole, parts = (checkpoint(tmp_path / name, "last")["state_dict"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert result(tmp_path / "whole") == result(tmp_path / "parts")
    shutil.copy(tmp_path / "whole/checkpoints/best.ckpt", tmp_path / "parts/init_from/checkpoints/best.ckpt")
    assert "is the checkpoint of another run" in run(tmp_path, *words, "hydra.run.dir=parts", code=2)
    shutil.rmtree(tmp_path / "parts/init_from")
    assert "which is missing: restore it" in run(tmp_path, *words, "hydra.run.dir=parts", code=2)


def test_at_a_learning_rate_of_zero_the_run_predicts_as_before(monday, tmp_path):
    words = [f"init_from={monday / 'monday'}", f"data.root={monday / 'photos'}", *LARGE, "optimizer.lr=1e-12", "callbacks.best=null"]
    run(tmp_path, *words, "hydra.run.dir=still")
    images = torch.rand(4, 3, 32, 32)
    before, now = load(monday / "monday").logits(images), load(tmp_path / "still").logits(images)  # of last.ckpt
    assert torch.allclose(before, now, atol=1e-4) and load(tmp_path / "still").calibration is not None
    assert result(tmp_path / "still")["init_from/test/difference"] == 0
    copy_start(tmp_path / "still", tmp_path / "copy")  # a further run goes on from last.ckpt too
    assert torch.equal(load(tmp_path / "copy").logits(images), now)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["backbone=resnet18"], "takes the backbone of that run, backbone=glyph, but backbone=resnet18 is given: leave backbone=... out"),
        (["backbone.cut=layer3"], "where backbone.cut is null, but it is layer3 here: leave backbone.cut out"),
        (["head=mlp"], "takes the head of that run, head=linear_probe, but head=mlp is given: leave head=... out"),
        (["recipe=probe"], "init_from works with recipe=finetune only"),
    ],
)
def test_contradictions_are_one_line(monday, words, message):
    given = {word.partition("=")[0]: word for word in ["init_from=monday", "data.root=photos", "hydra.run.dir=refused", *words]}
    assert message in run(monday, *given.values(), code=2)
    assert not (monday / "refused").exists()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (".", "init_from=. has no result of its own: give one of the runs in it ("),
        ("photos", "init_from=photos has no checkpoints/best.ckpt: give the folder of a run that has a result"),
        ("nothing", "init_from=nothing does not exist: give a run, such as "),
        ("mondy", "init_from=mondy does not exist: did you mean monday?"),
        ("monday/config.yaml", "init_from=monday/config.yaml is a file: give the folder of a run"),
    ],
)
def test_a_folder_without_a_result_is_one_line(monday, monkeypatch, tmp_path, run, message):
    monkeypatch.chdir(monday)
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        copy_start(Path(run), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
