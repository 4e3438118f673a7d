"""A run goes on from its own state, wherever its folder is now, or says in one line why it does not."""

import csv
import json
import os
import shutil
import sys

import pytest
import torch
import warm
from omegaconf import OmegaConf
from paths import ROOT, python_path
from PIL import Image

from ftlit import UserError, load
from ftlit.formats import write_json
from ftlit.recipes.resuming.resume import _command_of, finish_checkpoints
from ftlit.recipes.resuming.yaml_file import load_yaml, write_yaml
from ftlit.run_folder import is_sharded_checkpoint

pytestmark = pytest.mark.e2e

TRAIN = [sys.executable, str(ROOT / "train.py"), "trainer=cpu", "data.num_workers=0", "report=false"]
FITTED = [*TRAIN, "scenario=small_similar", "data.per_class=4"]
TRAINED = [
    *(*TRAIN, "scenario=large_similar", "head=linear", "schedule=all_at_once", "data.per_class=8", "data.batch_size=16"),
    *("trainer.max_epochs=2", "trainer.limit_val_batches=2", "trainer.limit_test_batches=2", "callbacks.last.every_n_steps=1"),
]
SENDER = """
import os, signal
from lightning.pytorch import Callback

class Sender(Callback):
    def __init__(self, hook, number, calls=1):
        self.left, self.number = calls, number
        setattr(self, hook, self.send)

    def send(self, *_, **__):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), getattr(signal, self.number))
"""


def run(folder, command, *words):
    done = warm.run([*command, "hydra.run.dir=run", *words], cwd=folder, env={**os.environ, "PYTHONPATH": python_path(folder)}, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def ended(folder):
    checkpoint = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)
    weights = torch.cat([tensor.double().flatten() for tensor in checkpoint["state_dict"].values()])
    return weights, checkpoint["global_step"], (folder / "run/metrics.csv").read_text(), (folder / "run/result.json").read_text()


def same(one, other):
    return torch.equal(one[0], other[0]) and one[1:] == other[1:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = run(folder, TRAINED, "resume=auto")
    assert done.returncode == 0 and "resuming from" not in done.stdout
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole / "run", tmp_path / "run")
    return tmp_path


def signalled(folder, hook, number, calls=1):
    (folder / "sender.py").write_text(SENDER)
    sender = (f"+callbacks.sender.{name}" for name in ("_target_=sender.Sender", f"hook={hook}", f"number={number}", f"calls={calls}"))
    done = run(folder, TRAINED, *sender, "resume=auto")
    assert done.returncode == 130
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("number", ["SIGINT", "SIGUSR1"])
def test_a_signal_in_training_saves_before_the_next_step_and_the_same_command_goes_on_to_the_same_bits(whole, tmp_path, number):
    line = signalled(tmp_path, "on_train_batch_end", number, calls=3)
    assert line.startswith("interrupted; the last checkpoint is saved. To resume: python ")
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert run(tmp_path, TRAINED, "resume=auto").returncode == 0
    assert same(ended(whole), ended(tmp_path))


def test_a_signal_before_the_first_step_and_one_in_the_test_end_with_a_line_too(whole, tmp_path):
    line = signalled(tmp_path, "on_fit_start", "SIGUSR1")
    assert line.startswith("interrupted before the first step; features that are stored stay in the cache. To resume: ")
    assert signalled(tmp_path, "on_test_start", "SIGTERM").startswith("interrupted; the last checkpoint is saved. To resume: ")
    assert run(tmp_path, TRAINED, "resume=auto").returncode == 0
    assert same(ended(whole), ended(tmp_path))


def test_a_moved_run_keeps_its_best_epoch_and_reads_nothing_at_the_old_place(whole, tmp_path):
    signalled(tmp_path, "on_train_batch_end", "SIGTERM", calls=7)
    best = tmp_path / "run/checkpoints/best.ckpt"
    assert best.is_file()
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "run", tmp_path / "moved/run")
    done = run(tmp_path / "moved", TRAINED, "resume=auto")
    assert done.returncode == 0 and "warning" not in done.stderr and f"{tmp_path}/run" not in done.stdout + done.stderr
    assert same(ended(whole), ended(tmp_path / "moved")) and not best.exists()


def test_checkpoints_that_are_missing_or_of_another_run_are_refused(copy):
    checkpoints, other = copy / "run/checkpoints", copy / "other"
    assert run(copy, TRAINED, "seed=1", f"hydra.run.dir={other}").returncode == 0
    for name in ("best", "last"):
        file = checkpoints / f"{name}.ckpt"
        own = file.rename(copy / "own")
        done = run(copy, TRAINED, "resume=true")
        assert done.returncode == 2 and f"{name}.ckpt" in done.stderr and "is missing" in done.stderr
        shutil.copy(other / f"checkpoints/{name}.ckpt", file)
        done = run(copy, TRAINED, "resume=true")
        assert done.returncode == 2 and f"{name}.ckpt is the checkpoint of another run" in done.stderr
        if name == "best":
            with pytest.raises(UserError, match=r"best\.ckpt is the checkpoint of another run"):
                load(copy / "run")
        file.unlink()
        file.mkdir()
        assert f"{file} is a folder that trainer=fsdp2 has not written" in refused(copy)
        file.rmdir()
        own.replace(file)
    assert run(copy, TRAINED, "resume=true").returncode == 0


def test_a_run_without_its_config_is_said_to_be_so_with_either_value_of_resume(copy):
    (copy / "run/config.yaml").unlink()
    for value in ("true", "auto"):
        done = run(copy, TRAINED, f"resume={value}")
        assert done.returncode == 2 and done.stderr.startswith(
            f"ftlit: resuming this run needs {copy}/run/config.yaml, which is missing"
        ), done.stderr


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def refused(folder, *words):
    """The line of a resume that is refused, which writes nothing into the run's folder."""
    before = contents(folder / "run")
    done = run(folder, TRAINED, "resume=true", *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert contents(folder / "run") == before
    return done.stderr


def without(folder, name):
    """Let `config.yaml` be that of a release that had no such setting."""
    path = folder / "run/config.yaml"
    config = load_yaml(path, remedy="")
    parent, _, leaf = name.rpartition(".")
    del (OmegaConf.select(config, parent) if parent else config)[leaf]
    write_yaml(path, OmegaConf.to_yaml(config))


def test_a_setting_that_a_later_release_adds_is_no_change_and_one_that_the_user_adds_is(copy):
    for name in ("decay_all", "data.augment", "lr_scheduler.warmup", "trainer.strategy"):
        without(copy, name)
    assert "data.augment was None and is now strong" in refused(copy, "data.augment=strong")
    assert "trainer.gradient_clip_val was None and is now 1" in refused(copy, "+trainer.gradient_clip_val=1")
    assert "trainer.strategy was None and is now ddp" in refused(copy, "trainer=ddp_cpu", "trainer.devices=1")
    done = run(copy, TRAINED, "resume=true")
    assert done.returncode == 0, done.stderr
    assert run(copy, TRAINED, "resume=true").returncode == 0  # again, with the config that the resumed run wrote


def test_an_edited_config_is_named_with_the_setting_that_differs(copy):
    path = copy / "run/config.yaml"
    whole = path.read_text()
    path.write_text(whole.replace("max_epochs: 2", "max_epochs: 3"))
    assert "config.yaml was edited or damaged after the run wrote it: trainer.max_epochs is 3 in the file, 2 in this command" in refused(
        copy
    )
    assert "no longer matches the run: restore the file" in refused(copy, "trainer.max_epochs=3")
    path.write_text(f"{whole}# a comment\n")
    assert run(copy, TRAINED, "resume=true").returncode == 0


def test_a_resume_that_is_refused_writes_nothing_whatever_the_reason(copy):
    assert "seed was 0 and is now 1" in refused(copy, "seed=1")
    assert "already holds a run" in refused(copy, "resume=false")
    last = copy / "run/checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    content["exact_resume"]["run"] = "another"
    torch.save(content, last)
    assert "last.ckpt is the checkpoint of another run" in refused(copy)
    last.write_bytes(last.read_bytes()[:-100])
    line = refused(copy)
    assert "last.ckpt is damaged" in line and "run/checkpoints/best.ckpt, the best weights of the old run" in line
    (copy / "run/data.json").write_text("{")
    assert "run/checkpoints/best.ckpt, the best weights of the old run" in refused(copy)


def test_a_table_of_metrics_that_was_cut_is_reported_and_rows_are_never_repeated(whole, copy):
    table = copy / "run/metrics.csv"
    before = table.read_text()
    table.write_text(before[: before.index("\n", len(before) // 2) + 5])
    done = run(copy, TRAINED, "resume=true")
    assert done.returncode == 0 and "metrics.csv was cut off: " in done.stderr
    table.unlink()
    assert "metrics.csv is missing or empty: " in run(copy, TRAINED, "resume=true").stderr
    rows = list(csv.reader(table.open()))
    assert len(rows) == len(set(map(tuple, rows)))


def test_a_head_that_is_only_fitted_writes_each_row_once_however_often_it_is_resumed(tmp_path):
    lists: dict[str, str] = {}
    for resume in ("auto", "auto", "true"):
        assert run(tmp_path, FITTED, f"resume={resume}").returncode == 0
        assert len((tmp_path / "run/metrics.csv").read_text().splitlines()) == 3  # header, val, test
        listed = (tmp_path / "run/suspects.csv").read_text()
        assert listed.startswith("item,label,suggested,probability,") and listed == (lists.setdefault("first", listed))


def test_a_data_folder_may_be_renamed_if_its_images_are_the_same(tmp_path):
    for i in range(24):
        (tmp_path / f"photos/{'ab'[i % 2]}").mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 20), 10 * i).save(tmp_path / f"photos/{'ab'[i % 2]}/{i}.png")
    command = [*(word for word in FITTED if "per_class" not in word), "data=folder", "resume=auto"]
    assert run(tmp_path, command, "data.root=photos").returncode == 0
    (tmp_path / "photos").rename(tmp_path / "pictures")
    done = run(tmp_path, command, "data.root=pictures", "data.on_bad_image=skip")
    assert done.returncode == 0
    for change in ("root was photos when the run began and is now pictures", "on_bad_image was stop when the run began and is now skip"):
        assert f"data.{change}; the data and labels are the same" in " ".join(done.stdout.split())
    names = {split: content["names"] for split, content in json.loads((tmp_path / "run/split.json").read_text())["splits"].items()}
    for grey in (6, 7):  # again, with the split that the resumed run wrote
        Image.new("L", (20, 20), grey).save(tmp_path / names["test"][0])
        done = run(tmp_path, command, "data.root=pictures")
        note = "files have changed since the run began (1), but training has not used any of them so far"
        assert done.returncode == 0 and note in " ".join(done.stdout.split()), done.stderr
    Image.new("L", (20, 20), 5).save(tmp_path / names["train"][0])
    done = run(tmp_path, command, "data.root=pictures")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and names["train"][0] in done.stderr


def test_the_error_of_another_config_knows_the_command_of_the_run(tmp_path):
    assert _command_of(tmp_path) == ""
    (tmp_path / "report").mkdir()
    write_json(tmp_path / "report/run.json", {"plan": [["note", "one"], ["command", "python train.py data=digits"]]})
    assert _command_of(tmp_path) == "python train.py data=digits"


def test_a_complete_checkpoint_without_its_name_gets_it_in_a_resumed_run_only(tmp_path):
    """The program was killed between removing the one before and renaming it; a new run must not take it for its own."""
    part = tmp_path / "checkpoints" / ".last.ckpt.ftlit-part"
    part.mkdir(parents=True)
    (part / "meta.ckpt").touch()
    cfg = OmegaConf.create({"resume": False, "paths": {"run": str(tmp_path)}})
    finish_checkpoints(cfg)
    assert part.exists()
    cfg.resume = True
    for _ in range(2):  # the second time there is nothing to do
        finish_checkpoints(cfg)
        assert is_sharded_checkpoint(part.with_name("last.ckpt")) and not part.exists()
