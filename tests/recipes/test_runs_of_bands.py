"""Runs on images of several bands: trained, resumed, loaded, predicted and exported with mean and std of the training images."""

import json
import os
import re
import sys

import numpy as np
import pytest
import torch
import warm
from omegaconf import OmegaConf
from paths import ROOT
from PIL import Image

from ftlit import UserError, load
from ftlit.data.input_spec import InputSpec
from ftlit.export.hand_over import export_run
from ftlit.inference.predict import PredictOptions, predict, rows_of
from ftlit.recipes.resuming.data_record import with_recorded_bands

pytestmark = pytest.mark.e2e

COMMAND = ("trainer=cpu", "data=folder", "data.num_workers=0", "data.augment=none", "scenario=small_similar", "report=false")


def write_scenes(root, bands=4, count=60):
    """Two classes of made-up satellite images, of 16 bits, that only the fourth band tells apart; of three bands as photos."""
    random = np.random.default_rng(0)
    for i in range(count):
        values = random.normal(1000, 300, (16, 16, 4))
        values[..., 3] += 500 * (i % 2)
        path = root / ("forest", "water")[i % 2] / f"{i}{'.npy' if bands == 4 else '.png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if bands == 4:
            np.save(path, values.clip(0).astype(np.uint16))
        else:
            Image.fromarray((values[..., :3] / 8).clip(0, 255).astype(np.uint8)).save(path)
    return root


def train(folder, *arguments, fails=False):
    done = warm.run([sys.executable, str(ROOT / "train.py"), *COMMAND, *arguments], cwd=folder, env=dict(os.environ), timeout=300)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def accuracy(run):
    return json.loads((run / "result.json").read_text())["test/accuracy"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bands")
    write_scenes(folder / "scenes")
    words = ("data.root=scenes", "backbone.in_chans=4", "hydra.run.dir=run", "checkpoint=full")
    (folder / "printed").write_text(re.sub(r"\s+", " ", train(folder, *words)))
    return folder


def test_only_the_fourth_band_tells_the_classes_apart(folder):
    write_scenes(folder / "photos", bands=3)
    train(folder, "data.root=photos", "hydra.run.dir=three")
    assert accuracy(folder / "run") > 0.95 and 0.2 < accuracy(folder / "three") < 0.8


def test_mean_and_std_are_printed_recorded_and_loaded(folder):
    spec, printed = load(folder / "run").input_spec, (folder / "printed").read_text()
    assert spec.channels == 4 and spec.normalisation in printed and "first convolution adapted to 4 channels" in printed
    assert np.allclose(spec.mean[:3], 1000, atol=20) and np.allclose(spec.std[:3], 300, atol=20) and spec.std[3] > 320
    bands = json.loads((folder / "run/data.json").read_text())["bands"]
    assert (tuple(bands["mean"]), tuple(bands["std"])) == (spec.mean, spec.std)


def test_a_resumed_run_takes_the_recorded_mean_and_std(folder):
    spec = load(folder / "run").input_spec
    unknown = InputSpec().with_channels(4)
    for resume, expected in ((True, (spec.mean, spec.std)), (False, ((), ()))):
        cfg = OmegaConf.create({"resume": resume, "paths": {"run": str(folder / "run")}})
        found = with_recorded_bands(cfg, unknown)
        assert (found.mean, found.std) == expected


def test_files_and_tensors_are_predicted_and_exported(folder, tmp_path):
    network, path = load(folder / "run"), folder / "scenes/water/1.npy"
    bands = torch.from_numpy(np.load(path).astype(np.float32)).permute(2, 0, 1).contiguous()
    prediction = network(path)
    assert prediction.label == "water" and network(bands) == prediction
    exported, usage = export_run(folder / "run", "torch", tmp_path / "net.pt2")
    assert "float32 bands (N, 4, 32, 32), 8-bit values divided by 255 and others as in the files" in usage
    assert "predict.py scene.npy" in usage and "python predict.py scene.npy\n" in (tmp_path / "README.md").read_text()
    mean, std = (torch.tensor(values)[:, None, None] for values in (network.input_spec.mean, network.input_spec.std))
    logits = torch.export.load(exported).module()((network.as_input(path) * std + mean)[None])
    assert torch.allclose(logits, network.logits(network.as_input(path)[None]), atol=1e-3)
    with pytest.raises(UserError, match=r"ndarray .* give torch.from_numpy"):
        network(np.load(path))


def test_onnx_takes_bands(folder, tmp_path):
    pytest.importorskip("onnxscript")
    exported, usage = export_run(folder / "run", "onnx", tmp_path / "net.onnx")  # which compares the logits
    assert exported.stat().st_size > 0 and "float32 bands (N, 4, 32, 32)" in usage


def test_a_further_run_takes_mean_and_std_of_the_weights(folder):
    weights = "backbone.weights=run/checkpoints/best.ckpt"
    printed = train(folder, "data.root=scenes", "backbone.in_chans=4", weights, "hydra.run.dir=again")
    assert "as measured on" not in printed and load(folder / "again").input_spec == load(folder / "run").input_spec
    line = train(folder, "data.root=scenes", weights, "hydra.run.dir=wrong", fails=True)
    assert "backbone.in_chans=3, but these weights are of a network of 4 channels: give backbone.in_chans=4" in line


def test_predict_reads_arrays_and_names_a_file_of_other_bands(folder, tmp_path, capsys):
    np.save(tmp_path / "good.npy", np.load(folder / "scenes/forest/0.npy"))
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    assert predict(str(folder / "run"), [str(tmp_path)], PredictOptions(workers=0), rows_of) == 1
    out = capsys.readouterr().out
    assert "good.npy,forest," in out and "photo.png has 3 bands, but backbone.in_chans=4" in out


def test_images_in_other_units_than_those_of_training_are_reported(folder, tmp_path, capsys, recwarn):
    path, network = folder / "scenes/forest/0.npy", load(folder / "run")
    network(path)
    network(torch.zeros(4, 16, 16))  # no data
    assert not [warning for warning in recwarn if "units" in str(warning.message)]
    np.save(tmp_path / "small.npy", (np.load(path) / 16).clip(0, 255).astype(np.uint8))
    with pytest.warns(UserWarning, match=r"^images have values from 0 to 1, .* with a mean of up to 1,\d+: the predictions are pr"):
        network(tmp_path / "small.npy")
    done = warm.run([sys.executable, "-m", "ftlit.cli.main", "predict", str(folder / "run"), str(tmp_path)], env=dict(os.environ))
    assert sum(line.startswith("ftlit: warning: images have values") for line in done.stderr.splitlines()) == 1
