"""The temperature of a head: what it minimises, where few examples cannot tell, and what it leaves as it is."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from ftlit.probes.fitted_head.calibration import PRIOR, fit_temperature
from ftlit.probes.fitted_head.head_probe import HeadProbe
from ftlit.probes.linear_probe import fit_probe


def labelled_logits(number: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Calibrated logits, and labels that are drawn from their probabilities."""
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(number, classes, generator=draw)
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=draw)[:, 0]


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_of_many_examples_the_temperature_is_the_scale_of_the_logits(scale):
    logits, labels = labelled_logits(20_000)
    assert fit_temperature(logits * scale, labels) == pytest.approx(scale, rel=0.03)


def test_the_temperature_is_where_the_smoothed_loss_with_the_prior_is_least():
    logits, labels = labelled_logits(30)
    targets = torch.full((30, 3), 1 / 32 / 2).scatter(1, labels[:, None], 31 / 32)

    def objective(log_t: float) -> float:
        return float(cross_entropy(3 * logits / torch.tensor(log_t).exp(), targets, reduction="sum")) + PRIOR / 2 * log_t**2

    best = torch.tensor(fit_temperature(3 * logits, labels)).log().item()
    assert objective(best) < min(objective(best - 0.02), objective(best + 0.02))


def test_a_few_examples_that_are_all_right_do_not_make_a_head_certain():
    logits = 4 * torch.eye(2).repeat(6, 1)
    temperature = fit_temperature(logits, torch.arange(2).repeat(6))
    assert temperature > 1 and float((logits / temperature).softmax(dim=1).amax()) < 0.98


@pytest.mark.parametrize("kind", ["softmax", "ridge", "svm"])
def test_a_temperature_changes_probabilities_and_no_prediction(kind):
    draw = torch.Generator().manual_seed(1)
    features, labels = torch.randn(60, 5, generator=draw), torch.arange(60) % 3
    probe = fit_probe(features, labels, kind=kind, l2=0.1)
    hot, plain = (HeadProbe([probe], temperature=t).as_head()(features) for t in (2.5, 1.0))
    torch.testing.assert_close(hot * 2.5, plain)
    assert torch.equal(hot.argmax(dim=1), plain.argmax(dim=1)) and torch.equal(plain, HeadProbe([probe]).as_head()(features))
