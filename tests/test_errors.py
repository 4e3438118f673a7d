"""Errors name options on the command line, and arguments in Python."""

import pickle
import sys
from pathlib import Path
from threading import Event

import pytest
import warm
from composed_configs import composed

from ftlit import FeatureData, InputSpec, UserError, load_backbone
from ftlit.cli import train
from ftlit.errors import closest, closest_path, in_python, named_options, nearest, unknown
from ftlit.formats import DamagedFile
from ftlit.lit.datamodules.image_sources import digits_data, folder_data
from ftlit.recipes.config.hydra_internals import fresh_hydra


@pytest.fixture
def in_a_script(monkeypatch):
    monkeypatch.setattr("ftlit.errors._options_named", Event())


MISTAKES = [
    (lambda: load_backbone("resnet18", weights="none.pth"), "set weights=/path/to/file.pth, or weights=None for random weights"),
    (lambda: load_backbone("resnet18", weights=None, in_chans=0), "in_chans=0: give a whole number of channels"),
    (lambda: FeatureData(digits_data(InputSpec(size=8)), dtype="float8"), "dtype=float8 is not valid"),
    (lambda: folder_data(InputSpec(size=8), root="nowhere"), ""),
]


@pytest.mark.parametrize(("wrong", "part"), MISTAKES)
def test_in_a_script_errors_name_arguments(in_a_script, wrong, part):
    with pytest.raises(UserError) as caught:
        wrong()
    text = str(caught.value)
    assert part in text and not any(group in text for group in ("backbone.", "cache.", "data.", "=null", "=true", "=false"))
    assert str(pickle.loads(pickle.dumps(caught.value))) == text
    with named_options(), pytest.raises(UserError) as caught:
        wrong()
    assert in_python(str(caught.value)) == text


@pytest.mark.parametrize(
    ("text", "python"),
    [
        ("give trainer.precision=bf16-mixed, or leave it out", 'give Trainer(precision="bf16-mixed"), or leave it out'),
        ("(trainer.devices=...); trainer.limit_val_batches=1.0.", "(Trainer(devices=...)); Trainer(limit_val_batches=1.0)."),
        ("add +trainer.max_steps=3 or 'trainer.devices=[0,1]'.", "add Trainer(max_steps=3) or Trainer(devices=[0,1])."),
        ("trainer.logger=false and trainer.max_time=null", "Trainer(logger=False) and Trainer(max_time=None)"),
        ("give until={metric: val/accuracy, threshold: 0.9}, or", 'give until=Until("val/accuracy", threshold=0.9), or'),
    ],
)
def test_calls_are_python(text, python):
    assert in_python(text) == python == in_python(python)


@pytest.mark.parametrize(
    "text",
    [
        "pattern 'backbone.layer4' matches no parameter",
        "runs/data.root=photos,trainer.max_epochs=3/best.ckpt is damaged",
        "head.weight is in no group; cache=none",
    ],
)
def test_names_of_parameters_and_paths_stay(text):
    assert in_python(text).startswith(text.split(",")[0])


def test_a_script_is_told_arguments_and_a_command_options(tmp_path):
    (tmp_path / "script.py").write_text("import ftlit\nftlit.load_backbone('resnet18', weights='none.pth')")
    python = warm.run([sys.executable, "script.py"], cwd=tmp_path)
    assert python.stderr.endswith("set weights=/path/to/file.pth, or weights=None for random weights\n")
    command = warm.run([sys.executable, "-m", "ftlit.cli.main", "train", "backbone=resnet18", "backbone.weights=none.pth"], cwd=tmp_path)
    assert "set backbone.weights=/path/to/file.pth, or backbone.weights=null" in command.stderr and command.returncode == 2


def test_errors_with_fields_keep_them(in_a_script, tmp_path):
    error = DamagedFile(tmp_path, "cut off", "give backbone.weights=...")
    assert error.path == tmp_path and "cut off" in str(pickle.loads(pickle.dumps(error)))


def test_a_job_in_a_process_of_a_launcher_names_options(in_a_script, tmp_path, monkeypatch, capsys):
    """Such a process calls the function that Hydra's `main` decorates, and nothing of `main` itself."""
    monkeypatch.chdir(tmp_path)
    with fresh_hydra(), pytest.raises(SystemExit):
        train._train.__wrapped__(composed("data=digits", "data.batch_size=0"))
    assert capsys.readouterr().err.startswith("ftlit: data.batch_size=0: give ")


@pytest.mark.parametrize(
    ("given", "names", "meant"),
    [
        ("efficientnet", ["efficientnet_b0", "efficientnet_b1", "efficientnet_b7"], "efficientnet_b0"),
        ("resnet51", ["resnet18", "resnet50"], "resnet50"),
        ("layer5", ["stem", "layer1", "layer2", "layer3", "layer4"], "layer4"),
        ("ResNet-50", ["resnet18", "resnet50"], "resnet50"),
    ],
)
def test_of_names_that_are_as_close_by_their_letters_the_likeliest_is_proposed(given, names, meant):
    assert closest(given, names) == meant


def test_other_names_that_are_almost_as_close_are_proposed_too_but_not_for_a_mere_slip():
    names = ["efficientnet_b0", "efficientnet_b1", "efficientnet_lite0", "efficientnet_v2_m", "efficientnet_v2_s", "squeezenet1_1"]
    assert nearest("efficentnet", names) == ["efficientnet_b0", "efficientnet_v2_m", "efficientnet_lite0"]
    proposed = "did you mean 'efficientnet_b0', 'efficientnet_v2_m' or 'efficientnet_lite0'? There are: "
    assert proposed in str(unknown("option", "efficentnet", names, owner="backbone"))
    assert nearest("efficientnet_b00", names) == ["efficientnet_b0"] and nearest("vit", names) == []


def test_a_path_is_proposed_only_if_its_name_is_similar_and_it_is_accepted(tmp_path):
    for name in ("fine", "photos"):
        (tmp_path / name).mkdir()
    (tmp_path / "photo.csv").touch()
    assert closest_path(tmp_path / "photo", Path.is_dir) == tmp_path / "photos"
    assert closest_path(tmp_path / "photo", Path.is_file) is closest_path(tmp_path / "nope") is closest_path(tmp_path / "no/ne") is None
