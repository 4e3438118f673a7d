"""Objectives of layer-wise pretraining: reconstruction by a decoder, and contrastive divergence of a restricted Boltzmann machine."""

import pytest
import torch
from torch import nn

from ftlit import UserError
from ftlit.finetuning.layerwise_objectives import Reconstruction, RestrictedBoltzmann, mirror


@pytest.mark.parametrize(
    ("features", "inputs"),
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
def test_a_decoder_reconstructs_the_shape_of_the_inputs(features, inputs):
    assert mirror(features, inputs)(torch.randn(2, *features)).shape[1:] == inputs


def test_a_decoder_from_tokens_to_a_map_is_an_error():
    with pytest.raises(UserError, match="cannot reconstruct shape"):
        mirror((5, 8), (3, 4, 4))


def flattened(activation=None):
    return nn.Sequential(nn.Flatten(1), nn.Linear(12, 6), activation or nn.ReLU())


def test_a_linear_autoencoder_reaches_the_error_of_principal_components():
    """Baldi and Hornik 1989: without activations the optimum is the subspace of the largest variances."""
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


def test_a_decoder_starts_with_the_mean_of_the_inputs():
    for layer, shape in ((flattened(), (12,)), (nn.Conv2d(3, 4, 3, padding=1), (3, 6, 6)), (nn.Conv2d(3, 4, 2, stride=2), (3, 6, 6))):
        torch.manual_seed(0)
        data = 100 + torch.randn(200, *shape)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
        assert float(Reconstruction(layer, None, data).error(data).detach()) == pytest.approx(1.0, abs=0.05)


def test_denoising_drops_values_in_training_only():
    torch.manual_seed(0)
    data = torch.rand(50, 12) + 1
    objective = Reconstruction(flattened(), None, data, noise=0.5)
    assert float(objective.loss(data)[1]) != float(objective.loss(data)[1]) and float(objective.error(data).detach()) == float(
        objective.error(data).detach()
    )


def test_the_gradient_equals_that_of_contrastive_divergence(monkeypatch):
    torch.manual_seed(0)
    data = torch.randint(2, (20, 12)).float()
    below = nn.Sequential(nn.Linear(4, 12), nn.Sigmoid())
    machine = RestrictedBoltzmann(flattened(nn.Sigmoid()), below, data, k=2)
    assert machine.visible == "binary" and not machine.rectified
    monkeypatch.setattr(torch, "bernoulli", lambda share: (share > 0.5).float())  # a deterministic chain
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


def test_a_boltzmann_machine_learns_to_reconstruct_and_folds_the_standardisation_into_its_layer():
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
        (lambda: RestrictedBoltzmann(nn.Conv2d(3, 4, 3), None, torch.zeros(2, 3, 8, 8)), "a layer of this backbone has Conv2d"),
        (lambda: RestrictedBoltzmann(flattened(nn.Tanh()), None, torch.zeros(2, 12)), "a layer of this backbone has Linear, Tanh"),
        (lambda: RestrictedBoltzmann(flattened(), None, torch.zeros(2, 12), k=0), "pretrain.k=0"),
        (lambda: Reconstruction(flattened(), None, torch.zeros(2, 12), noise=1.0), "pretrain.noise=1.0"),
    ],
)
def test_an_unsupported_layer_or_argument_is_an_error(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_the_mean_error_of_single_images_equals_the_error_of_all_images():
    torch.manual_seed(0)
    data = torch.randn(64, 12)
    for objective in (RestrictedBoltzmann(flattened(), None, data), Reconstruction(flattened(), None, data)):
        alone = torch.stack([objective.error(row[None]) for row in data]).mean()
        assert torch.allclose(alone, objective.error(data), rtol=1e-4)
