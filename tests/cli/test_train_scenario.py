"""Scenarios on the command line: scenario=auto measures and advises, small scenarios fit a linear probe without training."""

import json
import re
import sys

import pytest
import torch
import warm
from lanes import nightly
from train_command import train

from ftlit.data.dataset import SPLITS

pytestmark = pytest.mark.e2e


def test_the_default_scenario_auto_measures_once_and_given_settings_override_the_advice(tmp_path):
    arguments = ("data.per_class=5", f"hydra.run.dir={tmp_path}/run", "head=mlp", "trainer.max_epochs=1", "report=false")
    result = train(tmp_path, *arguments)
    assert result.returncode == 0, result.stderr
    assert "scenario=small_similar" in result.stdout and "5 training images per class are few (fewer than 30)" in result.stdout
    assert "fitting linear probes at 5 cuts on 50 images" in result.stdout
    assert "head=mlp" in result.stdout and "schedule=head_only" in result.stdout and "There is no gradient training" not in result.stdout
    written = (tmp_path / "run/advice.json").read_text()
    assert [depth["cut"] for depth in json.loads(written)["measurements"]["depths"]] == ["stem", "layer1", "layer2", "layer3", "layer4"]
    edited = json.loads(written.replace("are few", "are very few"))
    (tmp_path / "run/advice.json").write_text(json.dumps({name: value for name, value in edited.items() if name != "checksum"}))
    other = train(tmp_path, "data.per_class=60", f"hydra.run.dir={tmp_path}/run")
    assert other.returncode == 2 and "already holds a run" in other.stderr
    again = train(tmp_path, *arguments, "resume=true")
    assert again.returncode == 0 and "scenario=small_similar" in again.stdout and "scenario=auto" not in again.stdout, again.stderr
    assert "are very few" in (tmp_path / "run/advice.json").read_text()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["recipe=lr_find"], "does not work with a linear probe"),
        (["head=linear", "doctor=strict", "trainer.max_epochs=1"], "doctor=strict: "),
    ],
)
def test_nothing_is_left_of_a_run_that_is_refused_after_its_advice(tmp_path, words, line):
    command = ("data.per_class=3", *words, "report=false", "hydra.run.dir=run")
    refused = train(tmp_path, *command)
    assert refused.returncode == 2 and line in refused.stderr and "scenario=auto: small_similar" in refused.stdout
    assert not list(tmp_path.glob("run*"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/advice.json").write_text("older")
    assert train(tmp_path, *command).returncode == 2 and (tmp_path / "run/advice.json").exists()


def test_with_one_image_per_class_the_probe_has_a_fixed_l2_penalty(tmp_path):
    result = train(tmp_path, "data.per_class=1", "optimizer.lr=2e-3", "data.augment=none", "report=false", "hydra.run.dir=run")
    assert result.returncode == 0 and "scenario=auto: small_similar. There is only one training image per class" in result.stdout, (
        result.stderr
    )
    output = " ".join(result.stdout.split())
    assert "L2 penalty 0.1." in output and "There is no gradient training, so optimizer.lr=2e-3, data.augment=none are ignored." in output
    assert json.loads((tmp_path / "run/result.json").read_text())["test/accuracy"] > 0.7


def test_a_setting_that_the_advised_scenario_lacks_selects_a_scenario_with_training(tmp_path):
    result = train(tmp_path, "data.per_class=5", "schedule.epoch=1", "trainer.max_epochs=2", "report=false", "hydra.run.dir=run")
    assert (
        result.returncode == 0
        and "small_similar would be the choice, but it does not accept one of the given settings: scenario=large_similar is used instead"
        in result.stdout
        and "scenario=large_similar" in result.stdout
        and "head=linear" in result.stdout  # schedule.epoch is the epoch at which its head-only stage ends
    ), result.stderr


def test_only_one_of_two_processes_measures(tmp_path):
    result = train(tmp_path, "data.per_class=5", "trainer=ddp_cpu", "trainer.devices=2", "report=false", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("computing features of 50 images") <= 1 and result.stdout.count("training images per class are few") == 1
    assert (
        "scenario=small_similar" in result.stdout
        and result.stdout.count("fitted the mean of 2 linear probes") == 1
        and ", 50 training images" in result.stdout
    )


def test_each_job_of_a_sweep_has_its_own_advice(tmp_path):
    short = ("data.batch_size=16", "trainer.max_epochs=3", "report=false", *(f"trainer.limit_{name}_batches=4" for name in SPLITS))
    result = train(tmp_path, "-m", "data.per_class=5,60", *short, "hydra.sweep.dir=sweep")
    assert result.returncode == 0, result.stderr
    found = [json.loads((tmp_path / f"sweep/{job}/advice.json").read_text())["advice"]["scenario"] for job in (0, 1)]
    assert found == ["small_similar", "large_similar"]


@pytest.mark.parametrize(
    ("given", "scenario"),
    [
        ("seed=1", "small_similar"),  # digits: a linear probe has an error of 1 %
        ("optimizer.lr=2e-3", "large_similar"),
        pytest.param("trainer.accumulate_grad_batches=2", "large_similar", marks=pytest.mark.slow),
        ("experiment=seeded", "small_similar"),
        ("experiment=quick", "large_similar"),
        pytest.param("trainer.max_epochs=5", "large_similar", marks=pytest.mark.slow),
        ("backbone.reinit=[-1]", "large_similar"),
        ("trainer.num_sanity_val_steps=0", "small_similar"),
    ],
)
def test_a_setting_that_only_training_reads_selects_a_scenario_with_training(tmp_path, given, scenario):
    (tmp_path / "users_conf/experiment").mkdir(parents=True)
    (tmp_path / "users_conf/experiment/seeded.yaml").write_text("# @package _global_\nseed: 1\n")
    (tmp_path / "users_conf/experiment/quick.yaml").write_text("# @package _global_\noptimizer: {lr: 2e-3}\n")
    result = train(tmp_path, "--config-dir", "users_conf", "recipe=advise", given, "hydra.run.dir=run")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run/advice.json").read_text())["advice"]["scenario"] == scenario


def test_the_advise_recipe_advises_without_training(tmp_path):
    result = warm.run([sys.executable, "-m", "ftlit.cli.main", "advise", "data.per_class=5", "hydra.run.dir=run"], cwd=tmp_path)
    assert result.returncode == 0 and not (tmp_path / "run/checkpoints").exists(), result.stderr
    assert "LogME" in result.stdout and re.search(r"estimated time: small_similar \d+ s, .* large_different \d+ s", result.stdout)
    assert result.stdout.splitlines()[-1] == "ftlit train scenario=small_similar data.per_class=5"
    chosen = train(tmp_path, "recipe=advise", "scenario=large_similar")
    assert (chosen.returncode, chosen.stderr) == (
        2,
        "ftlit: recipe=advise chooses the scenario: leave scenario=large_similar out\n",
    )
    random = train(tmp_path, "recipe=advise", "backbone.weights=null", "hydra.run.dir=other")
    assert random.returncode == 0 and "there is nothing to transfer" in random.stdout
    assert json.loads((tmp_path / "other/advice.json").read_text())["advice"]["scenario"] == "large_different"


def test_the_advice_says_that_a_given_schedule_decides_what_trains(tmp_path):
    result = train(tmp_path, "recipe=advise", "data.per_class=5", "schedule=head_then_all")
    assert "only the head trains" in result.stdout, result.stderr
    assert "But schedule=head_then_all is given, so this schedule, not the advice, decides which layers train." in result.stdout


def test_random_weights_are_trained_without_fitting_a_probe(tmp_path):
    short = ["backbone.weights=null", "trainer.max_epochs=1", "report=false", *(f"trainer.limit_{name}_batches=2" for name in SPLITS)]
    for options, head, stages in ((), "linear", 1), (("head=mlp", "schedule=head_then_all_fast", "trainer.max_epochs=2"), "mlp", 2):
        result = train(tmp_path, *short, *options, f"hydra.run.dir={head}")
        assert result.returncode == 0 and f"head={head}" in result.stdout and "fitted a linear probe" not in result.stdout, result.stderr
        assert f"stage {stages - 1}" in result.stdout and f"stage {stages}" not in result.stdout


def test_a_range_test_uses_the_advised_scenario(tmp_path):
    result = train(tmp_path, "recipe=lr_find", "lr_find.steps=30", "hydra.run.dir=run")
    assert result.returncode == 0 and (tmp_path / "run/lr_find.csv").is_file() and (tmp_path / "run/advice.json").is_file(), result.stderr
    result = train(tmp_path, "recipe=lr_find", "data.per_class=5", "hydra.run.dir=other")
    assert result.returncode == 2 and "does not work with a linear probe, which is fitted without a learning rate" in result.stderr


@pytest.mark.parametrize("scenario", nightly(["small_similar", "small_different"], ["small_different"]))
def test_small_scenarios_fit_a_probe_and_train_nothing(tmp_path, scenario):
    arguments = (f"scenario={scenario}", "report=false", f"hydra.run.dir={tmp_path}/run")
    result = train(tmp_path, *arguments)
    assert result.returncode == 0 and "There is no gradient training" in result.stdout and "of 2 linear probes" in result.stdout, (
        result.stderr
    )
    assert "stage 0" not in result.stdout and "fitted in" in result.stdout
    assert "After validation the head is refitted on train + val" in " ".join(result.stdout.split())
    held = [torch.load(tmp_path / f"run/checkpoints/{name}.ckpt", weights_only=False) for name in ("best", "last")]
    assert all(checkpoint["global_step"] == 0 for checkpoint in held)
    assert torch.equal(*(checkpoint["state_dict"]["head.weight"] for checkpoint in held))
    accuracy = json.loads((tmp_path / "run/result.json").read_text())
    assert accuracy["test/accuracy"] > 0.97
    again = train(tmp_path, *arguments, "resume=true")
    assert again.returncode == 0, again.stderr  # validated again before the refit on train + val, not with the refitted head
    assert json.loads((tmp_path / "run/result.json").read_text()) == accuracy
