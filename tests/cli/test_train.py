"""The command line as a user calls it: what it prints, what it leaves behind, how it fails, how it goes on."""

import csv
import json
import os
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
from paths import ROOT
from PIL import Image

pytestmark = pytest.mark.e2e

FAST = ("debug=fast", "trainer.max_epochs=3", "trainer=cpu")


def train(folder, *arguments, **environment):
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return warm.run(command, cwd=folder, env={**os.environ, **environment}, timeout=300)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    result = train(folder, *FAST, f"hydra.run.dir={folder}")
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_the_plan_comes_first_and_the_table_last(done):
    _, output = done
    words = (
        "backbone",
        "shipped glyph.safetensors",
        "1,078",
        "stage",
        "epoch 0",
        "resume",
        "fitted a linear probe",
        "macro F1",
        "trained in",
    )
    order = [output.index(word) for word in words]
    assert order == sorted(order)


def test_the_folder_holds_what_a_run_leaves(done):
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
    "++se=1": "no option 'se'",
    "optimizer.lr=-1": "Invalid learning rate",
}


@pytest.mark.parametrize(("word", "meant"), USER_ERRORS.items())
def test_an_error_of_the_user_is_one_line_and_status_2(tmp_path, word, meant):
    result = train(tmp_path, word)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and meant in result.stderr and "Traceback" not in result.stdout + result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("how", ["trainer=gpu", "trainer.accelerator=cuda"])
def test_a_gpu_that_is_not_there(tmp_path, how):
    result = train(tmp_path, how)
    assert (result.returncode, result.stderr) == (
        2,
        "ftlit: trainer: no GPU that torch can use is here: take trainer=auto or trainer=cpu\n",
    )


FAULTY = """
def broken(in_features, num_classes):
    return {}["missing"]
"""


def test_a_fault_shows_its_traceback(tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY)
    result = train(tmp_path, "head._target_=faulty.broken", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1 and "KeyError: 'missing'" in result.stderr and "Traceback" in result.stderr


def test_the_traceback_is_there_for_who_asks(tmp_path):
    assert "Traceback" in train(tmp_path, "backbone.cut=layr3", HYDRA_FULL_ERROR="1").stderr


def test_after_ctrl_c_the_printed_command_goes_on(tmp_path):
    asked = ("trainer=cpu", "trainer.max_epochs=8", "scenario=large_similar", "data.per_class=60", "report=false")
    command = [sys.executable, str(ROOT / "train.py"), *asked, f"hydra.run.dir={tmp_path}/run"]
    with (tmp_path / "out").open("w") as out:
        process = warm.start(command, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT)
        best, last = tmp_path / "run/checkpoints/best.ckpt", tmp_path / "run/checkpoints/last.ckpt"
        deadline = time.monotonic() + 120
        while not best.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    output = (tmp_path / "out").read_text()
    assert best.exists() and last.exists() and "Traceback" not in output
    resume = shlex.split(re.search(r"To resume: (.*)", output)[1])
    assert resume[:1] == ["python"]
    changed = warm.run([sys.executable, *resume[1:], "optimizer.lr=0.5"], cwd=tmp_path)
    assert changed.returncode == 2 and "needs the config of the run: optimizer.lr was 0.001, now 0.5" in changed.stderr
    result = warm.run([sys.executable, *resume[1:]], cwd=tmp_path)
    assert result.returncode == 0 and "resuming from" in result.stdout, result.stderr
    steps = [int(row["step"]) for row in csv.DictReader((tmp_path / "run/metrics.csv").open()) if row["train/loss"]]
    assert steps == sorted(set(steps)) and len(steps) == 8  # one file, no epoch twice


def test_the_default_measures_which_scenario_once_and_what_is_given_wins(tmp_path):
    asked = ("data.per_class=5", "data.num_workers=0", f"hydra.run.dir={tmp_path}/run", "head=mlp", "trainer.max_epochs=1")
    result = train(tmp_path, *asked)
    assert result.returncode == 0, result.stderr
    assert "scenario=small_similar" in result.stdout and "5 training images per class are few (many: 30 or more)" in result.stdout
    assert "head=mlp" in result.stdout and "schedule=head_only" in result.stdout and "No gradient training" not in result.stdout
    written = (tmp_path / "run/advice.json").read_text()
    assert [depth["cut"] for depth in json.loads(written)["measurements"]["depths"]] == ["stem", "layer1", "layer2", "layer3", "layer4"]
    (tmp_path / "run/advice.json").write_text(written.replace("are few", "are very few"))
    other = train(tmp_path, "data.per_class=60", f"hydra.run.dir={tmp_path}/run")
    assert other.returncode == 2 and "holds a run already" in other.stderr
    again = train(tmp_path, *asked, "resume=true")
    assert again.returncode == 0 and "scenario=small_similar" in again.stdout and "scenario=auto" not in again.stdout, again.stderr
    assert "are very few" in (tmp_path / "run/advice.json").read_text()


def test_one_image_a_class_solves_a_head_of_a_given_l2_penalty(tmp_path):
    result = train(tmp_path, "data.per_class=1", "optimizer.lr=2e-3", "hydra.run.dir=run")
    assert result.returncode == 0 and "scenario=auto: small_similar. One training image per class is few" in result.stdout, result.stderr
    output = " ".join(result.stdout.split())
    assert "L2 penalty 0.1." in output and "No gradient training: optimizer.lr=2e-3 is ignored." in output
    assert json.loads((tmp_path / "run/result.json").read_text())["test/accuracy"] > 0.7


def test_a_value_that_the_advised_scenario_has_not_is_one_of_full_training(tmp_path):
    result = train(tmp_path, "data.per_class=5", "schedule.epoch=1", "trainer.max_epochs=2", "hydra.run.dir=run")
    assert (
        result.returncode == 0
        and "small_similar does not have a setting that was given: large_similar replaces it" in result.stdout
        and "scenario=large_similar" in result.stdout
        and "head=linear" in result.stdout  # whose stage of its own that value is about
    ), result.stderr


def test_one_of_two_processes_measures(tmp_path):
    result = train(tmp_path, "data.per_class=5", "trainer=ddp_cpu", "trainer.devices=2", "hydra.run.dir=run", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("computing features of 50 images") <= 1 and result.stdout.count("training images per class are few") == 1
    assert (
        "scenario=small_similar" in result.stdout
        and result.stdout.count("fitted a linear probe") == 1
        and ", 50 training images" in result.stdout
    )


def test_each_job_of_a_sweep_is_advised(tmp_path):
    result = train(
        tmp_path, "-m", "data.per_class=5,60", "data.num_workers=0", "data.batch_size=8", "trainer.max_epochs=3", "hydra.sweep.dir=sweep"
    )
    assert result.returncode == 0, result.stderr
    found = [json.loads((tmp_path / f"sweep/{job}/advice.json").read_text())["advice"]["scenario"] for job in (0, 1)]
    assert found == ["small_similar", "large_similar"]


@pytest.mark.parametrize(
    ("given", "scenario"),
    [
        ("seed=1", "small_similar"),  # digits, where a linear probe errs on one in a hundred
        ("optimizer.lr=2e-3", "large_similar"),
        ("trainer.accumulate_grad_batches=2", "large_similar"),
        ("experiment=seeded", "small_similar"),
        ("experiment=quick", "large_similar"),
        ("trainer.max_epochs=5", "large_similar"),
        ("backbone.reinit=[-1]", "large_similar"),
        ("trainer.num_sanity_val_steps=0", "small_similar"),
    ],
)
def test_what_only_training_reads_asks_for_it(tmp_path, given, scenario):
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/seeded.yaml").write_text("# @package _global_\nseed: 1\n")
    (tmp_path / "own/experiment/quick.yaml").write_text("# @package _global_\noptimizer: {lr: 2e-3}\n")
    result = train(tmp_path, "--config-dir", "own", "recipe=advise", given, "hydra.run.dir=run")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run/advice.json").read_text())["advice"]["scenario"] == scenario


def test_several_processes_started_side_by_side_are_asked_to_give_a_scenario(tmp_path):
    elastic = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    result = train(tmp_path, "trainer=ddp_cpu", "trainer.devices=2", **elastic)
    assert result.returncode == 2 and "give the scenario that `ftlit advise` names" in result.stderr
    assert train(tmp_path, **(elastic | {"RANK": "1"})).returncode == 2


def test_advice_without_training(tmp_path):
    command = [sys.executable, "-c", "from ftlit.cli.main import main; main()", "advise", "data.per_class=5", "hydra.run.dir=run"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and not (tmp_path / "run/checkpoints").exists(), result.stderr
    assert "LogME" in result.stdout and re.search(r"estimated time: small_similar \d+ s, .* large_different \d+ s", result.stdout)
    assert result.stdout.splitlines()[-1] == "python train.py scenario=small_similar data.per_class=5"
    chosen = train(tmp_path, "recipe=advise", "scenario=large_similar")
    assert (chosen.returncode, chosen.stderr) == (
        2,
        "ftlit: scenario=large_similar: recipe=advise chooses the scenario; leave it out\n",
    )
    random = train(tmp_path, "recipe=advise", "backbone.weights=null", "hydra.run.dir=other")
    assert random.returncode == 0 and "there is nothing to transfer" in random.stdout
    assert json.loads((tmp_path / "other/advice.json").read_text())["advice"]["scenario"] == "large_different"


def test_random_weights_train_at_once_and_no_head_is_solved_on_what_they_give(tmp_path):
    short = ["backbone.weights=null", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    for own, head, stages in ((), "linear", 1), (("head=mlp", "schedule=head_then_all_fast", "trainer.max_epochs=2"), "mlp", 2):
        result = train(tmp_path, *short, *own, f"hydra.run.dir={head}")
        assert result.returncode == 0 and f"head={head}" in result.stdout and "fitted a linear probe" not in result.stdout, result.stderr
        assert f"stage {stages - 1}" in result.stdout and f"stage {stages}" not in result.stdout


def test_a_range_test_is_of_the_advised_scenario(tmp_path):
    result = train(tmp_path, "recipe=lr_find", "lr_find.steps=30", "hydra.run.dir=run")
    assert result.returncode == 0 and (tmp_path / "run/lr_find.csv").is_file() and (tmp_path / "run/advice.json").is_file(), result.stderr
    result = train(tmp_path, "recipe=lr_find", "data.per_class=5", "hydra.run.dir=other")
    assert result.returncode == 2 and "this head is a linear probe, without gradient training" in result.stderr


@pytest.mark.parametrize("scenario", ["small_similar", "small_different"])
def test_small_scenarios_solve_their_head_and_train_nothing(tmp_path, scenario):
    asked = (f"scenario={scenario}", "data.num_workers=0", f"hydra.run.dir={tmp_path}/run")
    result = train(tmp_path, *asked)
    assert result.returncode == 0 and "No gradient training" in result.stdout and "fitted a linear probe" in result.stdout, result.stderr
    assert "stage 0" not in result.stdout and "fitted in" in result.stdout
    assert "After validation the head is refitted on train + val" in " ".join(result.stdout.split())
    held = [torch.load(tmp_path / f"run/checkpoints/{name}.ckpt", weights_only=False) for name in ("best", "last")]
    assert all(checkpoint["global_step"] == 0 for checkpoint in held)
    assert torch.equal(*(checkpoint["state_dict"]["head.weight"] for checkpoint in held))
    accuracy = json.loads((tmp_path / "run/result.json").read_text())
    assert accuracy["test/accuracy"] > 0.97
    again = train(tmp_path, *asked, "resume=true")
    assert again.returncode == 0, again.stderr  # val judges a head that has not seen it here too, not the one that was kept
    assert json.loads((tmp_path / "run/result.json").read_text()) == accuracy


def test_a_sweep_runs_each_job_in_its_own_folder(tmp_path):
    result = train(tmp_path, "-m", "scenario=small_similar,large_different", *FAST)
    assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.glob("runs/sweeps/*/*/[01]/checkpoints/best.ckpt"))) == 2


def test_help_names_the_groups(tmp_path):
    output = train(tmp_path, "--help").stdout
    assert (
        "scenario: auto, large_different, large_similar, small_different, small_similar" in output
        and "backbone: " in output
        and "_zoo" not in output
    )


def test_a_folder_of_odd_pictures_trains(tmp_path):
    for name in ("ants", "bees"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i, mode in enumerate(["L", "RGBA", "P", "CMYK", "RGB", "1"] * 2):
            noise = np.random.default_rng(i + 100 * (name == "ants")).integers(0, 255, (20 + i, 31, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).convert(mode)
            picture.save(tmp_path / "photos" / name / f"{i}.{'jpg' if mode == 'CMYK' else 'png'}")
    result = train(tmp_path, "data=folder", "data.root=photos", *FAST)
    assert result.returncode == 0 and "ants" in result.stdout, result.stderr


def test_two_processes_train_through_the_command(tmp_path):
    result = train(tmp_path, "trainer=ddp_cpu", *FAST[:2], f"hydra.run.dir={tmp_path}/run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trained in") == 1 and result.stdout.count("shipped glyph.safetensors") == 1


def test_a_run_is_not_overwritten(tmp_path):
    assert train(tmp_path, "hydra.run.dir=run", *FAST).returncode == 0
    kept = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()
    again = train(tmp_path, "hydra.run.dir=run", *FAST)
    assert again.returncode == 2 and "run holds a run already: give resume=true" in again.stderr
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == kept


def test_a_run_that_ended_before_its_first_step_begins_again_by_its_resume_line(tmp_path):
    arguments = [*FAST, f"hydra.run.dir={tmp_path}"]
    assert train(tmp_path, *arguments).returncode == 0
    shutil.rmtree(tmp_path / "checkpoints")
    other = train(tmp_path, *arguments, "resume=true", "seed=5")
    assert other.returncode == 2 and "seed was 0, now 5" in other.stderr
    assert train(tmp_path, *arguments, "resume=true").returncode == 0


def test_a_run_that_is_still_going_on_is_not_resumed_beside_itself(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "trainer=cpu",
        "trainer.max_epochs=500",
        "schedule=all_at_once",
        f"hydra.run.dir={tmp_path}",
    ]
    going = warm.start(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "checkpoints" / "last.ckpt").exists():
            assert going.poll() is None
            time.sleep(0.1)
        before = (tmp_path / "config.yaml").stat().st_mtime_ns
        second = train(tmp_path, *command[2:], "resume=true")
        assert second.returncode == 2 and "a run is still active in" in second.stderr and "Traceback" not in second.stderr
        assert (tmp_path / "config.yaml").stat().st_mtime_ns == before
    finally:
        going.kill()
        going.wait()
