"""Jobs of a sweep are checked before the first one: a mistake in any of them refuses the sweep, in one line that names the job."""

from urllib.error import URLError

import pytest
from hydra import compose
from omegaconf import read_write
from torch import nn

from ftlit import UserError
from ftlit.cli.sweep import sweep_jobs
from ftlit.recipes.checks.check_jobs import REMOTE_LAUNCHERS, check_jobs
from ftlit.recipes.config.hydra_internals import initialize_hydra, use_hydra_config
from ftlit.sweeps import running

MINE = f"head._target_={__name__}"


class Wide(nn.Linear):
    def __init__(self, in_features, num_classes, width: int = 1):
        super().__init__(in_features, num_classes)


class Narrow(nn.Linear):
    def __init__(self, in_features, num_classes):
        super().__init__(in_features, num_classes)


@pytest.fixture
def config(tmp_path):
    with initialize_hydra():
        config = compose("train", [f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.mode=MULTIRUN"], return_hydra_config=True)
        with use_hydra_config(config):
            yield config


def error_of(config, *jobs):
    with pytest.raises(UserError) as caught:
        check_jobs(config, dict(enumerate(jobs)))
    return str(caught.value)


def test_a_mistake_in_one_job_names_it_and_the_others(config):
    good, bad = ["optimizer.lr=0.1", "seed=1"], ["optimizer.lr=x", "seed=1"]
    check_jobs(config, {0: good, 3: ["optimizer.lr=0.2", "seed=1"]})
    line = error_of(config, good, bad)
    assert (
        line.startswith("no job has run, because job 1 (optimizer.lr=x) could not begin: optimizer.lr='x': give a number")
        and "other" not in line
    )
    two = error_of(config, bad, ["optimizer.lr=-1"], good)
    assert two.startswith(line.replace("job 1", "job 0")) and "; job 1 (optimizer.lr=-1) could not begin: optimizer.lr=-1: give" in two
    same = error_of(config, ["loss=bce", "optimizer.lr=1"], ["optimizer.lr=1"], ["loss=bce", "optimizer.lr=2"])
    assert "jobs 0 (loss=bce optimizer.lr=1), 2 (loss=bce optimizer.lr=2) could not begin: this data has one label per example" in same
    many = error_of(config, good, *([f"optimizer.lr={letter}"] for letter in "abcde"))
    assert many.count("give a number") == 3 and many.endswith("; 2 other jobs could not begin either")


def test_a_mistake_that_all_jobs_share_has_the_message_of_a_single_run(config):
    wrong = "trainer.max_epochs=-3"
    assert error_of(config, [wrong, "optimizer.lr=0.1"], [wrong, "optimizer.lr=0.2"]).startswith(f"{wrong}: give a whole number")
    assert error_of(config, ["seed=1", wrong], ["seed=2", wrong]).startswith(f"{wrong}: give a whole number")
    assert error_of(config, ["optimizer.lrr=1"], ["optimizer.lrr=2"]).startswith("there is no option 'optimizer.lrr'")


def test_jobs_that_cannot_be_composed_are_errors_too(config):
    line = error_of(config, ["backbone=nope"], ["backbone=nor_this"], ["backbone=glyph"])
    assert "job 0 (backbone=nope) could not begin: backbone has no option 'nope'" in line
    assert "; job 1 (backbone=nor_this) could not begin: backbone has no option 'nor_this'" in line


def test_a_backbone_whose_file_is_not_in_the_folder_of_weights_is_found_before_any_job(config, tmp_path):
    for name in ("resnet50", "vgg11"):
        (tmp_path / f"{name}.pth").touch()
    jobs = [[f"backbone={name}", f"backbone.weights={tmp_path}"] for name in ("resnet50", "resnet18")]
    line = error_of(config, *jobs)
    assert f"job 1 (backbone=resnet18) could not begin: backbone.weights={tmp_path} has no resnet18.pth" in line
    assert "(files there: resnet50.pth, vgg11.pth)" in line
    check_jobs(config, {0: jobs[0], 1: ["backbone=glyph", f"backbone.weights={tmp_path}"]})  # the second one keeps its shipped weights


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of torchvision's cache, without network access; it holds a file for resnet50."""

    def no_network(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet50-11ad3fa6.pth").touch()
    return folder


def test_missing_weights_are_found_before_any_job_of_each_network_once(config, cache, capfd):
    jobs = [[f"backbone={name}", f"seed={seed}"] for name in ("resnet50", "resnet18", "regnet_y_400mf") for seed in (1, 2)]
    line = error_of(config, *jobs)
    assert "job 2 (backbone=resnet18) could not begin: cannot download https://download.pytorch.org/models/resnet18-" in line
    assert line.endswith(". The weights of regnet_y_400mf, which other jobs need, are missing too") and str(cache) in line
    assert capfd.readouterr().out.count("Downloading") == 1  # without a network each try may take half a minute
    check_jobs(config, {0: jobs[0], 1: ["backbone=regnet_y_400mf", "backbone.weights=null"]})
    assert error_of(config, *jobs[2:4]).startswith("cannot download")  # one network: the message of a single run


def test_a_mistake_is_found_before_anything_is_downloaded(config, cache, capfd):
    assert "optimizer.lr=x" in error_of(config, ["backbone=resnet18"], ["backbone=resnet18", "optimizer.lr=x"])
    assert "Downloading" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("backbone.cut=layer3", "backbone.cut=layer9", "there is no layer 'layer9': did you mean 'layer4'?"),
        ("backbone.reinit=[-1]", "backbone.reinit=[layr4]", "there is no layer 'layr4': did you mean 'layer4'?"),
        ("head.cuts=[layer4]", "head.cuts=[layer3,top]", "there is no layer 'top'"),
        (
            "trainer.max_epochs=9",
            "trainer.max_epochs=3",
            "would never begin, because max_epochs=3 ends the run before",
        ),
    ],
)
def test_layers_and_the_length_of_training_are_checked_before_any_job(config, good, bad, message):
    fixed = ["backbone=glyph", "scenario=large_similar", "schedule=top_down", "schedule.every=1", "trainer.max_epochs=9"]
    line = error_of(config, [*fixed, good], [*fixed, bad])
    assert f"job 1 ({bad}) could not begin: " in line and message in line
    check_jobs(config, {0: [*fixed, good]})


def test_an_argument_that_an_own_part_does_not_take_is_found_before_any_job(config):
    jobs = [[f"{MINE}.{name}", "+head.width=2"] for name in ("Wide", "Narrow")]
    line = error_of(config, *jobs)
    assert f"job 1 ({MINE}.Narrow) could not begin: " in line and "head.width" in line
    assert "width='x'" in error_of(config, jobs[0], [f"{MINE}.Wide", "+head.width=x"])


@pytest.mark.parametrize("launcher", REMOTE_LAUNCHERS)
def test_jobs_on_other_machines_are_not_checked_here(config, launcher):
    with read_write(config.hydra.runtime):
        config.hydra.runtime.choices["hydra/launcher"] = launcher
    check_jobs(config, {0: ["data=folder", "data.root=/only/there"]})


def test_a_refused_sweep_prints_nothing_and_leaves_no_folder(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "SWEEPS", {})
    with pytest.raises(UserError, match="job 1"):
        sweep_jobs.plan_jobs(config, [["optimizer.lr=0.1"], ["optimizer.lr=x"]])
    assert capsys.readouterr().out == "" and not (tmp_path / "sweep").exists() and not running.SWEEPS
