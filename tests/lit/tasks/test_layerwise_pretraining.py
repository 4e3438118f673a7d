"""Greedy layer-wise pretraining: each layer, from the lowest, learns to reconstruct its inputs."""

import csv
import os
import re
import shutil
import sys

import pytest
import torch
import warm
from paths import ROOT
from safetensors.torch import load_file
from torch import nn

from ftlit import UserError, load_backbone
from ftlit.finetuning.layerwise_objectives import Reconstruction

pytestmark = pytest.mark.e2e

MLP = ("recipe=pretrain", "backbone=mlp", "backbone.hidden=[24,12]", "backbone.input_spec.size=8", "data=digits", "pretrain.epochs=2")


def train(folder, *arguments):
    command = [sys.executable, str(ROOT / "train.py"), "trainer=cpu", *arguments]
    environment = {**os.environ, "FTLIT_CACHE": str(folder / "store")}
    return warm.run(command, cwd=folder, env=environment, timeout=300)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layerwise")
    done = train(folder, *MLP, "pretrain=autoencoder", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_pretraining_writes_curves_a_picture_and_weights_that_a_run_loads(whole):
    folder, output = whole
    with (folder / "run/pretrain.csv").open() as file:
        rows = [(row["layer"], float(row["val/error"])) for row in csv.DictReader(file)]
    assert [layer for layer, _ in rows] == ["layer1", "layer1", "layer2", "layer2"]
    assert rows[1][1] < rows[0][1] and rows[3][1] < rows[2][1]
    assert re.search(r"features of ([\d,]+) images at layer1: \1 computed", output) and (folder / "run/pretrain.png").stat().st_size > 5000
    file = folder / "run/backbone.safetensors"
    backbone = load_backbone("mlp", weights=file, hidden=[24, 12], input_spec={"size": 8})
    layers = {name: load_file(folder / f"run/layers/{name}.safetensors") for name in backbone.cuts}
    for name, layer in backbone.items():
        assert all(torch.equal(tensor, layers[name][key].half().float()) for key, tensor in layer.state_dict().items())
    tuned = train(folder, *MLP[1:5], f"backbone.weights={file}", "scenario=large_similar", "trainer.max_epochs=1", "hydra.run.dir=tuned")
    assert tuned.returncode == 0 and "weights: file" in tuned.stdout, tuned.stderr


def test_pretraining_stopped_between_layers_is_resumed_with_the_same_bits(whole):
    folder, _ = whole
    (folder / "stopped/layers").mkdir(parents=True)
    (folder / "stopped/layers/layer1.safetensors").write_bytes((folder / "run/layers/layer1.safetensors").read_bytes())
    rows = (folder / "run/pretrain.csv").read_bytes().splitlines(keepends=True)
    (folder / "stopped/pretrain.csv").write_bytes(b"".join(rows[:3]))
    (folder / "stopped/config.yaml").write_bytes((folder / "run/config.yaml").read_bytes())
    not_resumed = train(folder, *MLP, "pretrain=autoencoder", "hydra.run.dir=stopped")
    assert not_resumed.returncode == 2 and "give resume=true to continue it" in not_resumed.stderr
    done = train(folder, *MLP, "pretrain=autoencoder", "hydra.run.dir=stopped", "resume=true")
    assert "layer1: already trained" in done.stdout and "layer1, epoch" not in done.stdout
    for name in ("backbone.safetensors", "pretrain.csv", "layers/layer2.safetensors"):
        assert (folder / "stopped" / name).read_bytes() == (folder / "run" / name).read_bytes(), name


def test_a_layer_whose_error_is_not_finite_is_an_error(tmp_path):
    diverging = ("pretrain.optimizer._target_=torch.optim.SGD", "pretrain.optimizer.lr=1000", "data.per_class=5")
    done = train(tmp_path, *MLP, "pretrain=autoencoder", *diverging, "hydra.run.dir=run")
    assert done.returncode == 2 and " is not finite: give a lower pretrain.optimizer.lr" in done.stderr


def test_a_convolutional_net_and_boltzmann_machines_are_pretrained_on_unlabelled_images(tmp_path):
    from PIL import Image

    (tmp_path / "photos/deeper").mkdir(parents=True)
    draw = torch.Generator().manual_seed(0)
    for i in range(30):
        pixels = torch.randint(256, (20, 20, 3), generator=draw, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / ("deeper" if i % 2 else ".") / f"{i}.png")
    data = ("recipe=pretrain", "data=unlabelled", "data.root=photos", "pretrain.epochs=1")
    maps = train(tmp_path, *data, "backbone=glyph", "backbone.weights=null", "pretrain=denoising", "hydra.run.dir=maps")
    assert maps.returncode == 0 and "layer4, epoch 0" in maps.stdout, maps.stderr
    sizes = [int(size) for size in re.search(r"train (\d+), val (\d+), test (\d+) images", maps.stdout).groups()]
    assert sum(sizes) == 30 and min(sizes) > 0
    machines = train(tmp_path, *data, "backbone=mlp", "backbone.activation=sigmoid", "pretrain=rbm", "hydra.run.dir=machines")
    assert machines.returncode == 0 and "layer3, epoch 0" in machines.stdout, machines.stderr
    for arguments, message in (
        (("data=unlabelled", "data.root=photos"), "the data have no labels"),
        ((*data, "pretrain=rbm", "backbone=glyph"), "layer 'stem': pretrain=rbm needs layers of one Linear with bias"),
        ((*data, "pretrain=autoencoder", "trainer=ddp_cpu", "trainer.devices=2"), "in one process"),
        ((*data, "pretrain=autoencoder", "data.root=maps/layers"), "has no image files, only 5 other files: give a folder with images"),
    ):
        mistake = train(tmp_path, *arguments)
        assert mistake.returncode == 2 and message in mistake.stderr and mistake.stderr.count("\n") == 1, mistake.stderr


def test_pretraining_with_another_config_is_not_resumed(whole):
    folder, _ = whole
    others = (("pretrain=denoising", "pretrain.noise"), ("seed=1", "seed"), ("backbone.hidden=[24,13]", "backbone.hidden"))
    for other, name in others:
        arguments = [*MLP, "pretrain=autoencoder", other, "hydra.run.dir=run", "resume=true"]
        mistake = train(folder, *arguments)
        assert mistake.returncode == 2 and mistake.stderr.count("\n") == 1, mistake.stderr
        assert re.search(rf"needs the same config: \S*{re.escape(name)} was", mistake.stderr), mistake.stderr


def test_a_pretraining_without_its_config_or_of_an_earlier_format_is_refused_with_this_reason(whole):
    folder, _ = whole
    shutil.copytree(folder / "run/layers", folder / "early/layers")
    for text, message in ((None, "early holds no run"), ("recipe: pretrain\n", "is from an older version of ftlit")):
        if text:
            (folder / "early/config.yaml").write_text(text)
        done = train(folder, *MLP, "pretrain=autoencoder", "hydra.run.dir=early", "resume=true")
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_the_number_of_workers_may_change_when_a_pretraining_is_resumed(whole):
    folder, _ = whole
    done = train(folder, *MLP, "pretrain=autoencoder", "hydra.run.dir=run", "resume=true", "data.num_workers=1")
    assert done.returncode == 0 and "layer2: already trained" in done.stdout, done.stderr


def test_a_batchnorm_in_the_layer_counts_each_batch_once():
    import lightning.pytorch as pl

    from ftlit.lit.tasks.layer_pretrainer import LayerPretrainer

    layer = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    images = torch.randn(12, 3, 6, 6)
    module = LayerPretrainer(Reconstruction(layer, None, images), torch.optim.Adam)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    pl.Trainer(max_epochs=2, **options).fit(module, torch.utils.data.DataLoader(images, 4))
    assert int(layer[1].num_batches_tracked) == 6


def test_layerwise_pretrainer_trains_and_freezes_every_layer_without_hydra(tmp_path):
    from functools import partial

    import lightning.pytorch as pl

    from ftlit import LayerwisePretrainer
    from ftlit.lit.datamodules.image_sources import digits_data
    from ftlit.lit.tasks.layer_pretrainer import autoencoder

    backbone = load_backbone("mlp", weights=None, hidden=[24, 12], input_spec={"size": 8})
    data = digits_data(backbone.input_spec, num_workers=0)
    trainer = partial(pl.Trainer, accelerator="cpu", devices=1)
    pretrainer = LayerwisePretrainer(autoencoder(torch.optim.Adam, epochs=2), tmp_path, trainer=trainer)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    curves = pretrainer.fit(backbone, data)
    assert list(curves) == ["layer1", "layer2"] and all(errors[-1][1] < errors[0][1] < 1.1 for errors in curves.values())
    assert all(not torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    with pytest.raises(UserError, match="already contains a pretraining run"):
        pretrainer.fit(backbone, data)
    assert pretrainer.fit(backbone, data, resume=True) == curves
