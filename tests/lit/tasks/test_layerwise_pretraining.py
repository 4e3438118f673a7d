"""Greedy layer-wise pretraining: each layer, from the lowest, learns to reconstruct its inputs."""

import csv
import os
import sys

import pytest
import torch
import warm
from paths import ROOT
from safetensors.torch import load_file
from torch import nn

from ftlit import UserError, load_backbone
from ftlit.finetuning.layerwise_objectives import Reconstruction, RestrictedBoltzmann, mirror

pytestmark = pytest.mark.e2e

MLP = ("recipe=pretrain", "backbone=mlp", "backbone.hidden=[24,12]", "backbone.input_spec.size=8", "data=digits", "pretrain.epochs=2")


@pytest.mark.parametrize(
    ("given", "gives"),
    [
        ((8, 4, 4), (3, 8, 8)),
        ((8, 3, 3), (4, 9, 9)),
        ((8, 4, 4), (6, 4, 4)),
        ((5, 6, 6), (3, 13, 13)),
        ((7,), (3, 4, 4)),
        ((7,), (9,)),
        ((5, 8), (5, 6)),
    ],
)
def test_a_decoder_reconstructs_the_shape_of_the_inputs(given, gives):
    assert mirror(given, gives)(torch.randn(2, *given)).shape[1:] == gives


def test_there_is_no_decoder_from_tokens_to_a_map():
    with pytest.raises(UserError, match="no decoder from features"):
        mirror((5, 8), (3, 4, 4))


def flattened(activation=None):
    return nn.Sequential(nn.Flatten(1), nn.Linear(12, 6), activation or nn.ReLU())


def test_a_linear_autoencoder_reaches_the_error_of_principal_components():
    """Baldi and Hornik 1989: without activations the best is the subspace of the largest variances."""
    torch.manual_seed(0)
    data = torch.randn(400, 10) @ torch.diag(torch.tensor([5.0, 4, 3, 1, 1, 1, 1, 1, 1, 1]))
    layer = nn.Linear(10, 3)
    objective = Reconstruction(layer, None, data)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for _ in range(1500):
        optimizer.zero_grad()
        objective.loss(data)[0].backward()
        optimizer.step()
    variances = torch.linalg.eigvalsh(torch.cov(data.T)).flip(0)
    assert float(objective.error(data).detach()) == pytest.approx(float(variances[3:].sum() / variances.sum()), rel=0.02)


def test_a_decoder_begins_at_the_mean():
    for layer, shape in ((flattened(), (12,)), (nn.Conv2d(3, 4, 3, padding=1), (3, 6, 6)), (nn.Conv2d(3, 4, 2, stride=2), (3, 6, 6))):
        torch.manual_seed(0)
        data = 100 + torch.randn(200, *shape)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
        assert float(Reconstruction(layer, None, data).error(data).detach()) == pytest.approx(1.0, abs=0.05)


def test_denoising_hides_values_in_training_only():
    torch.manual_seed(0)
    data = torch.rand(50, 12) + 1
    objective = Reconstruction(flattened(), None, data, noise=0.5)
    assert float(objective.loss(data)[1]) != float(objective.loss(data)[1]) and float(objective.error(data).detach()) == float(
        objective.error(data).detach()
    )


def test_the_gradient_is_that_of_contrastive_divergence(monkeypatch):
    torch.manual_seed(0)
    data = torch.randint(2, (20, 12)).float()
    below = nn.Sequential(nn.Linear(4, 12), nn.Sigmoid())
    machine = RestrictedBoltzmann(flattened(nn.Sigmoid()), below, data, k=2)
    assert machine.visible == "binary" and not machine.rectified
    monkeypatch.setattr(torch, "bernoulli", lambda share: (share > 0.5).float())  # a chain that can be written down
    machine.loss(data)[0].backward()
    with torch.no_grad():
        weight, hidden_bias, visible_bias = machine.linear.weight, machine.linear.bias, machine.bias
        up = lambda v: (torch.sigmoid(v @ weight.T + hidden_bias) > 0.5).float()  # noqa: E731
        first = hidden = up(data)
        for _ in range(2):
            chain = torch.sigmoid(hidden @ weight + visible_bias)
            hidden = up(chain)
        assert torch.allclose(weight.grad, -(first.T @ data - hidden.T @ chain) / 20, atol=1e-6)
        assert torch.allclose(hidden_bias.grad, -(first - hidden).mean(dim=0), atol=1e-6)
        assert torch.allclose(visible_bias.grad, -(data - chain).mean(dim=0), atol=1e-6)


def test_a_machine_learns_to_reconstruct_its_inputs_and_the_standardisation_is_folded_in():
    torch.manual_seed(0)
    prototypes = 30 * torch.rand(4, 12) + 100
    prototypes[:, 3] = 7  # constant
    data = prototypes[torch.arange(200) % 4] + torch.randn(200, 12) * (prototypes.std(dim=0) > 0)
    layer = flattened()
    machine = RestrictedBoltzmann(layer, None, data)
    assert machine.visible == "gaussian" and machine.rectified
    before = float(machine.error(data).detach())
    optimizer = torch.optim.SGD(machine.parameters(), lr=1e-2, momentum=0.9)
    for _ in range(300):
        optimizer.zero_grad()
        machine.loss(data)[0].backward()
        optimizer.step()
    assert float(machine.error(data).detach()) < 0.3 < before
    hidden = machine._expected((data - machine.mean) / machine.scale)
    machine.finish()
    assert torch.allclose(layer(data), hidden, atol=1e-3)


def test_noisy_rectified_units_are_sampled_with_the_variance_of_the_paper():
    """Nair and Hinton 2010, section 2.1: max(0, x + N(0, sigmoid(x)))."""
    torch.manual_seed(0)
    machine = RestrictedBoltzmann(flattened(), None, torch.randn(50, 12))
    machine.linear.bias.data.fill_(4.0)
    machine.linear.weight.data.zero_()
    sampled = machine._sampled(torch.zeros(20000, 12))
    assert float(sampled.mean()) == pytest.approx(4.0, abs=0.02)
    assert float(sampled.var()) == pytest.approx(float(torch.sigmoid(torch.tensor(4.0))), rel=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RestrictedBoltzmann(nn.Conv2d(3, 4, 3), None, torch.zeros(2, 3, 8, 8)), "this layer has Conv2d"),
        (lambda: RestrictedBoltzmann(flattened(nn.Tanh()), None, torch.zeros(2, 12)), "this layer has Linear, Tanh"),
        (lambda: RestrictedBoltzmann(flattened(), None, torch.zeros(2, 12), k=0), "pretrain.k=0"),
        (lambda: Reconstruction(flattened(), None, torch.zeros(2, 12), noise=1.0), "pretrain.noise=1.0"),
    ],
)
def test_an_unsupported_layer_or_argument_is_an_error(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


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


def test_a_pretraining_leaves_curves_a_picture_and_a_file_that_a_run_takes(whole):
    folder, output = whole
    with (folder / "run/pretrain.csv").open() as file:
        rows = [(row["layer"], float(row["val/error"])) for row in csv.DictReader(file)]
    assert [layer for layer, _ in rows] == ["layer1", "layer1", "layer2", "layer2"]
    assert rows[1][1] < rows[0][1] and rows[3][1] < rows[2][1]
    assert "features of 1,438 images at layer1: 1,438 computed" in output and (folder / "run/pretrain.png").stat().st_size > 5000
    file = folder / "run/backbone.safetensors"
    backbone = load_backbone("mlp", weights=file, hidden=[24, 12], input_spec={"size": 8})
    layers = {name: load_file(folder / f"run/layers/{name}.safetensors") for name in backbone.cuts}
    for name, layer in backbone.items():
        assert all(torch.equal(tensor, layers[name][key].half().float()) for key, tensor in layer.state_dict().items())
    tuned = train(folder, *MLP[1:5], f"backbone.weights={file}", "scenario=large_similar", "trainer.max_epochs=1", "hydra.run.dir=tuned")
    assert tuned.returncode == 0 and "weights: file" in tuned.stdout, tuned.stderr


def test_a_pretraining_that_stopped_between_layers_resumes_to_the_same_bits(whole):
    folder, _ = whole
    (folder / "stopped/layers").mkdir(parents=True)
    (folder / "stopped/layers/layer1.safetensors").write_bytes((folder / "run/layers/layer1.safetensors").read_bytes())
    rows = (folder / "run/pretrain.csv").read_bytes().splitlines(keepends=True)
    (folder / "stopped/pretrain.csv").write_bytes(b"".join(rows[:3]))
    (folder / "stopped/config.yaml").write_bytes((folder / "run/config.yaml").read_bytes())
    refused = train(folder, *MLP, "pretrain=autoencoder", "hydra.run.dir=stopped")
    assert refused.returncode == 2 and "give resume=true to continue it" in refused.stderr
    done = train(folder, *MLP, "pretrain=autoencoder", "hydra.run.dir=stopped", "resume=true")
    assert "layer1: already trained" in done.stdout and "layer1, epoch" not in done.stdout
    for name in ("backbone.safetensors", "pretrain.csv", "layers/layer2.safetensors"):
        assert (folder / "stopped" / name).read_bytes() == (folder / "run" / name).read_bytes(), name


def test_a_network_of_maps_and_one_of_machines_are_pretrained_on_images_without_labels(tmp_path):
    from PIL import Image

    (tmp_path / "photos/deeper").mkdir(parents=True)
    draw = torch.Generator().manual_seed(0)
    for i in range(30):
        pixels = torch.randint(256, (20, 20, 3), generator=draw, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / ("deeper" if i % 2 else ".") / f"{i}.png")
    data = ("recipe=pretrain", "data=unlabelled", "data.root=photos", "pretrain.epochs=1")
    maps = train(tmp_path, *data, "backbone=glyph", "backbone.weights=null", "pretrain=denoising", "hydra.run.dir=maps")
    assert maps.returncode == 0 and "train 24, val 3, test 3 images" in maps.stdout and "layer4, epoch 0" in maps.stdout, maps.stderr
    machines = train(tmp_path, *data, "backbone=mlp", "backbone.activation=sigmoid", "pretrain=rbm", "hydra.run.dir=machines")
    assert machines.returncode == 0 and "layer3, epoch 0" in machines.stdout, machines.stderr
    for arguments, message in (
        (("data=unlabelled", "data.root=photos"), "these images have no labels to learn"),
        ((*data, "pretrain=rbm", "backbone=glyph"), "layer 'stem': pretrain=rbm supports fully connected layers"),
        ((*data, "pretrain=autoencoder", "trainer=ddp_cpu", "trainer.devices=2"), "in one process"),
        ((*data, "pretrain=autoencoder", "data.root=maps/layers"), "holds no image file (5 others)"),
    ):
        mistake = train(tmp_path, *arguments)
        assert mistake.returncode == 2 and message in mistake.stderr and mistake.stderr.count("\n") == 1, mistake.stderr


def test_layers_that_were_trained_with_another_config_are_not_continued(whole):
    folder, _ = whole
    for other, name in (("pretrain=denoising", "pretrain"), ("seed=1", "data"), ("backbone.hidden=[24,13]", "backbone")):
        arguments = [*MLP, "pretrain=autoencoder", other, "hydra.run.dir=run", "resume=true"]
        mistake = train(folder, *arguments)
        assert mistake.returncode == 2 and f"trained with another {name}" in mistake.stderr and mistake.stderr.count("\n") == 1, (
            mistake.stderr
        )


def test_a_batch_norm_of_the_layer_counts_each_batch_once():
    import lightning.pytorch as pl

    from ftlit.lit.tasks.layer_pretrainer import LayerPretrainer

    layer = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    images = torch.randn(12, 3, 6, 6)
    module = LayerPretrainer(Reconstruction(layer, None, images), torch.optim.Adam)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    pl.Trainer(max_epochs=2, **options).fit(module, torch.utils.data.DataLoader(images, 4))
    assert int(layer[1].num_batches_tracked) == 6


def test_the_error_of_one_image_is_measured_by_the_spread_of_all():
    torch.manual_seed(0)
    data = torch.randn(64, 12)
    for objective in (RestrictedBoltzmann(flattened(), None, data), Reconstruction(flattened(), None, data)):
        alone = torch.stack([objective.error(row[None]) for row in data]).mean()
        assert torch.allclose(alone, objective.error(data), rtol=1e-4)


def test_without_hydra_the_same_class_trains_and_freezes_every_layer(tmp_path):
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
    with pytest.raises(UserError, match="already holds a pretraining"):
        pretrainer.fit(backbone, data)
    assert pretrainer.fit(backbone, data, resume=True) == curves
