"""`final=true` trains on all images, by a recipe that was chosen before."""

import json
import os
import shutil
import sys

import pytest
import torch
import warm
from digit_folders import write_digits
from omegaconf import OmegaConf
from paths import ROOT

from ftlit import load
from ftlit.recipes.resuming.stored_data import train_examples

pytestmark = pytest.mark.e2e

OPTIONS = ["trainer=cpu", "data.num_workers=0", "data=folder", "data.root=photos", "final=true"]
TRAIN = [sys.executable, str(ROOT / "train.py"), *OPTIONS]
LARGE = ["scenario=large_similar", "trainer.max_epochs=2", "data.augment=none", "report=false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with 60 images of 3 classes, 12 of them in `test`."""
    folder = tmp_path_factory.mktemp("final")
    write_digits(folder / "photos/train", dict.fromkeys(range(3), 20))
    for path in sorted((folder / "photos/train").rglob("*.png"))[::5]:
        target = folder / "photos/test" / path.relative_to(folder / "photos/train")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
    return folder


def run(folder, *words, code=0):
    done = warm.run([*TRAIN, *words], cwd=folder, env={**os.environ}, timeout=300)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1] if code else done.stdout


def test_a_head_is_fitted_on_all_images_and_there_are_no_scores(folder, monkeypatch):
    printed = run(folder, "scenario=small_similar", "hydra.run.dir=small")
    assert "train 60; val 0; test 0 images of 3 classes" in printed and "fitted" in printed
    assert "asked: " not in printed and "val has no example" not in printed  # of splits that the run does not have
    assert "final=true: trained on all 60 images (train + val + test); no scores" in printed
    found = json.loads((folder / "small/result.json").read_text())
    assert found["images"] == 60 and not any("accuracy" in name for name in found)
    splits = json.loads((folder / "small/split.json").read_text())["splits"]
    assert [len(splits[name]["hashes"]) for name in ("train", "val", "test")] == [60, 0, 0]
    assert "no scores" in (folder / "small/report.html").read_text()
    monkeypatch.chdir(folder)
    train, _ = train_examples(folder / "small", load(folder / "small"))  # which ftlit demo shows
    assert len(train) == 60
    assert load(folder / "small")(torch.rand(3, 32, 32)).label.startswith("digit")
    (folder / "flat").mkdir()
    for path in sorted(path for split in ("train", "test") for path in (folder / "photos" / split).iterdir()):
        shutil.copytree(path, folder / "flat" / path.name, dirs_exist_ok=True)
    error = run(folder, "init_from=small", "data.root=flat", "final=false", "hydra.run.dir=after", code=2)
    assert "because all examples of the run small were in train (final=true), and they stay there: add new examples, or" in error
    assert "trained on all 60 images" in run(folder, "scenario=small_similar", "hydra.run.dir=small", "resume=true")


def test_layers_train_to_the_end_and_the_last_weights_are_the_best_checkpoint(folder):
    printed = run(folder, *LARGE, "hydra.run.dir=large")
    assert "linear probe" in printed and "epoch 1 (all): train/accuracy" in printed and "val/" not in printed.partition("epoch 0")[2]
    best, last = (torch.load(folder / f"large/checkpoints/{name}.ckpt", weights_only=True)["state_dict"] for name in ("best", "last"))
    assert best.keys() == last.keys() and all(torch.equal(best[name], last[name]) for name in best)
    again = run(folder, "init_from=large", *LARGE, "hydra.run.dir=again")
    assert "the network of large, its head too; classes: 3 known" in again


def test_the_linear_probe_is_fitted_again_with_its_augmentation_where_it_was_the_result_and_options_that_are_not_taken_are_named(folder):
    measured = [*(word for word in LARGE if word != "report=false"), "optimizer.lr=1e-9", "data.batch_size=4", "probe.l2=[0.5]"]
    run(folder, *measured, "final=false", "hydra.run.dir=measured")
    printed = run(folder, "init_from=measured", "report=false", "hydra.run.dir=refitted").replace("\n", " ")
    line = printed[printed.index("init_from=measured: ") :]
    assert ", data.augment=none; its result was the linear probe, so the linear probe is fitted; not taken: data.batch_size=4" in line
    assert "not taken: data.batch_size=4, data.augment" not in line and "probe.l2=[0.5]" in line
    assert OmegaConf.load(folder / "refitted/config.yaml").data.augment == "none" and "epoch 0" not in printed and "fitted" in printed
    assert json.loads((folder / "refitted/result.json").read_text())["init_from/run"] == "measured"  # for the model card
    kept, again = (torch.load(folder / f"{name}/checkpoints/best.ckpt", weights_only=True) for name in ("measured", "refitted"))
    assert kept["ftlit"]["head"] == again["ftlit"]["head"]  # the same network: it reads the same layers
    own = run(folder, "init_from=measured", "data.augment=photo", "data.views=2", "report=false", "hydra.run.dir=own")
    assert "data.augment=none" not in own and "2 augmented views" in own.replace("\n", " ")
    refused = run(folder, "init_from=measured", "scenario=auto", "hydra.run.dir=chosen", code=2)
    assert "would choose one: leave scenario=auto out" in refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "final=true trains by a recipe that was chosen before, but scenario=auto would choose one: give init_from=RUN"),
        (
            [*LARGE, "callbacks.best.monitor=val/f1"],
            "so there is no val to choose the best epoch on: leave callbacks.best.monitor=val/f1 out",
        ),
        ([*LARGE, "average=wise"], "so there is no val to choose the weights of average=wise on"),
        ([*LARGE, "lr_scheduler=plateau"], "but the learning rate follows val/loss"),
        ([*LARGE, "trainer.limit_val_batches=2"], "no val and no test: leave trainer.limit_val_batches=2 out"),
        (
            [*LARGE, "+callbacks.early._target_=lightning.pytorch.callbacks.EarlyStopping", "+callbacks.early.monitor=val/loss"],
            "so there is no val to stop early on",
        ),
        ([*LARGE, "data.per_class=3"], "final=true trains on all images, but data.per_class=3 leaves some out"),
        (["recipe=probe"], "final=true works with recipe=finetune only"),
    ],
)
def test_what_needs_val_is_refused_in_one_line(folder, words, message):
    assert message in run(folder, *words, "hydra.run.dir=refused", code=2)
