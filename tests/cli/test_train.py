"""The command line as a user calls it: its output, the files of a run, errors, and resuming."""

import csv
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import warm
from paths import ROOT, python_path
from PIL import Image
from train_command import FAST, train

from ftlit.run_folder import read_result

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    result = train(folder, *FAST, f"hydra.run.dir={folder}")
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_the_output_begins_with_the_plan_and_ends_with_the_results(done):
    _, output = done
    texts = (
        "backbone",
        "shipped glyph.safetensors",
        "1,070",
        "stage",
        "epoch 0",
        "resume",
        "fitted the mean of 2 linear probes",
        "macro F1",
        "trained in",
    )
    order = [output.index(text) for text in texts]
    assert order == sorted(order)


def test_a_run_writes_its_files_to_its_folder(done):
    folder, _ = done
    for name in ("config.yaml", "metrics.csv", "class_names.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (folder / name).stat().st_size > 0, name


USER_ERRORS = {
    "backbone=resnet51": "'resnet50'",
    "backbone.cut=layr3": "'layer3'",
    "optimizer.lr=high": "a number",
    "data=folder": "data.root=",
    "head._target_=torch.nn.Linaer": "did you mean 'Linear'",
    "+sede=1": "did you mean 'seed'",
    "++se=1": "there is no option 'se'",
    "optimizer.lr=-1": "give a number above 0",
}


@pytest.mark.parametrize(("override", "message"), USER_ERRORS.items())
def test_a_user_error_is_one_line_and_status_2(tmp_path, override, message):
    result = train(tmp_path, override)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and message in result.stderr and "Traceback" not in result.stdout + result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("override", ["trainer=gpu", "trainer.accelerator=cuda"])
def test_a_missing_gpu_is_a_user_error(tmp_path, override):
    result = train(tmp_path, override)
    assert (result.returncode, result.stderr) == (
        2,
        "ftlit: trainer: torch finds no GPU: give trainer=auto or trainer=cpu\n",
    )


FAULTY = """
def broken(in_features, num_classes):
    return {}["missing"]
"""


@pytest.mark.parametrize("full", ["", "1"])
def test_an_error_in_the_users_code_names_its_line_and_shows_the_traceback_on_request(tmp_path, full):
    (tmp_path / "faulty.py").write_text(FAULTY)
    environment = {"HYDRA_FULL_ERROR": full} if full else {}
    result = train(tmp_path, "head._target_=faulty.broken", *FAST, PYTHONPATH=python_path(tmp_path), **environment)
    assert result.returncode != 0 and "KeyError: 'missing'" in result.stderr and "faulty.py" in result.stderr
    assert ("Traceback" in result.stderr) == bool(full)


def test_hydra_full_error_shows_the_traceback_of_a_user_error(tmp_path):
    assert "Traceback" in train(tmp_path, "backbone.cut=layr3", HYDRA_FULL_ERROR="1").stderr


def test_a_sweep_runs_each_job_in_its_own_folder(tmp_path):
    result = train(tmp_path, "-m", "scenario=small_similar,large_different", *FAST)
    assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.glob("runs/sweeps/*/*/[01]/checkpoints/best.ckpt"))) == 2
    results = [read_result(folder) for folder in sorted(tmp_path.glob("runs/sweeps/*/*/[01]"))]
    assert all(own["train/images"] == 1070 for own in results)
    assert [own.get("ignored") for own in results] == [["trainer.max_epochs"], None]  # a fitted head has no epochs


def test_a_folder_of_images_in_unusual_modes_trains(tmp_path):
    for name in ("ants", "bees"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i, mode in enumerate(["L", "RGBA", "P", "CMYK", "RGB", "1"] * 2):
            noise = np.random.default_rng(i + 100 * (name == "ants")).integers(0, 255, (20 + i, 31, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).convert(mode)
            picture.save(tmp_path / "photos" / name / f"{i}.{'jpg' if mode == 'CMYK' else 'png'}")
    result = train(tmp_path, "data=folder", "data.root=photos", *FAST)
    assert result.returncode == 0 and "ants" in result.stdout, result.stderr


def test_the_command_trains_in_two_processes_and_prints_once(tmp_path):
    result = train(tmp_path, "trainer=ddp_cpu", *FAST[:2], f"hydra.run.dir={tmp_path}/run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trained in") == 1 and result.stdout.count("shipped glyph.safetensors") == 1


def test_after_ctrl_c_the_printed_command_resumes_the_run(tmp_path):
    arguments = ("trainer=cpu", "trainer.max_epochs=8", "scenario=large_similar", "data.per_class=10", "report=false")
    command = [sys.executable, str(ROOT / "train.py"), *arguments, f"hydra.run.dir={tmp_path}/run"]
    with (tmp_path / "out").open("w") as out:
        process = warm.start(command, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT)
        best, last = tmp_path / "run/checkpoints/best.ckpt", tmp_path / "run/checkpoints/last.ckpt"
        deadline = time.monotonic() + 120
        while not best.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    output = (tmp_path / "out").read_text()
    assert best.exists() and last.exists() and "Traceback" not in output
    resume = shlex.split(re.search(r"To resume: (.*)", output)[1])
    assert resume[:1] == ["python"]
    changed = warm.run([sys.executable, *resume[1:], "optimizer.lr=0.5"], cwd=tmp_path)
    assert changed.returncode == 2 and "needs the same config: optimizer.lr was 0.001 and is now 0.5" in changed.stderr
    result = warm.run([sys.executable, *resume[1:]], cwd=tmp_path)
    where = re.search(r"resuming from .*last.ckpt \(epoch \d+, after \d+ optimizer steps?\)", result.stdout)
    assert result.returncode == 0 and where, result.stderr
    steps = [int(row["step"]) for row in csv.DictReader((tmp_path / "run/metrics.csv").open()) if row["train/loss"]]
    assert steps == sorted(set(steps)) and len(steps) == 8  # one file, and no epoch occurs twice


def test_a_run_is_not_overwritten_and_one_that_ended_before_its_first_step_is_resumed_from_the_start(tmp_path):
    arguments = [*FAST, f"hydra.run.dir={tmp_path}/run"]
    assert train(tmp_path, *arguments).returncode == 0
    kept = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()
    again = train(tmp_path, *arguments)
    assert again.returncode == 2 and "run already holds a run: give resume=true" in again.stderr
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == kept
    shutil.rmtree(tmp_path / "run/checkpoints")
    other = train(tmp_path, *arguments, "resume=true", "seed=5")
    assert other.returncode == 2 and "seed was 0 and is now 5" in other.stderr
    assert train(tmp_path, *arguments, "resume=true").returncode == 0


def test_an_active_run_is_not_resumed_by_a_second_process(tmp_path):
    short = ("scenario=large_similar", "head=linear", "schedule=all_at_once", "data.per_class=2", "trainer.limit_val_batches=1")
    command = [sys.executable, ROOT / "train.py", "trainer=cpu", "trainer.max_epochs=500", *short, f"hydra.run.dir={tmp_path}"]
    active = warm.start(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "checkpoints" / "last.ckpt").exists():
            assert active.poll() is None
            time.sleep(0.02)
        active.send_signal(signal.SIGSTOP)  # it leaves its time to the other
        before = (tmp_path / "config.yaml").stat().st_mtime_ns
        second = train(tmp_path, *command[2:], "resume=true")
        assert second.returncode == 2 and "another run is active in" in second.stderr and "Traceback" not in second.stderr
        assert (tmp_path / "config.yaml").stat().st_mtime_ns == before
    finally:
        active.kill()
        active.wait()
