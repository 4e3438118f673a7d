"""Size and similarity decide; LogME is the evidence of a Bayesian linear model."""

import math

import pytest
import torch

from ftlit import UserError
from ftlit.probes.advice import THRESHOLDS, Depth, Measurements, advise
from ftlit.probes.logme import logme


def measured(top, below, *, images=1000, classes=10, steps=1000.0, commonest=0.1, below_logme=0.0) -> Measurements:
    depths = [Depth("layer1", 0.3, 0.0), Depth("layer2", below, below_logme), Depth("layer3", top, 0.0)]
    return Measurements(images, classes, depths, min(images, 2000), commonest, steps)


@pytest.mark.parametrize(
    ("top", "below", "images", "scenario", "cut"),
    [
        (0.9, 0.8, 1000, "large_similar", "layer3"),
        (0.8, 0.9, 1000, "large_different", "layer3"),
        (0.900, 0.901, 1000, "large_different", "layer3"),
        (0.9, 0.9, 1000, "large_similar", "layer3"),
        (0.9, 0.8, 100, "small_similar", "layer3"),
        (0.5, 0.9, 100, "small_similar", "layer3"),  # LogME does not say so
        (1.0, 1.0, 100, "small_similar", "layer3"),
        (0.3, 0.3, 20, "small_similar", "layer3"),
    ],
)
def test_both_questions_decide(top, below, images, scenario, cut):
    advice = advise(measured(top, below, images=images))
    assert (advice.scenario, advice.cut) == (scenario, cut)
    assert f"{top:.3f}" in advice.reason and f"{images // 10} training images" in advice.reason


def test_layers_that_cannot_be_dropped_stay():
    advice = advise(measured(0.5, 0.9, images=100, below_logme=0.1), droppable=False)
    assert (advice.scenario, advice.cut) == ("small_similar", "layer3") and "No layer can be dropped here" in advice.reason
    assert advise(measured(0.5, 0.999), droppable=False).scenario == "large_different"  # the head alone errs by what the top does


def test_layers_are_dropped_where_accuracy_and_logme_agree():
    def depths(*pairs):
        return Measurements(100, 2, [Depth(f"layer{i}", *pair) for i, pair in enumerate(pairs)], 100, 0.5, 30.0)

    assert advise(depths((0.8, -0.7), (0.9, -0.4), (0.9, -0.5))).cut == "layer1"
    assert advise(depths((0.8, -0.7), (0.9, -0.5), (0.9, -0.4))).cut == "layer2"
    assert advise(depths((0.8, -0.3), (0.9, -0.5), (0.9, -0.4))).cut == "layer2"  # less accurate
    assert advise(depths((0.8, -0.3), (0.9, -0.4), (0.9, -0.5))).cut == "layer1"  # the best by LogME is less accurate
    assert advise(depths((0.8, -0.7), (0.9, -0.5), (0.7, -0.4))).cut == "layer2"


def test_few_images_drop_no_layer():
    def advice(images):
        return advise(measured(0.7, 0.9, images=images, classes=2, below_logme=0.2))

    enough = int(THRESHOLDS["cut"].value)
    assert (advice(enough).scenario, advice(enough).cut) == ("small_different", "layer2")
    assert (advice(enough - 1).scenario, advice(enough - 1).cut) == ("small_similar", "layer3")
    assert f"{enough - 1} images cannot choose a lower cut (from {enough} on they can)" in advice(enough - 1).reason


def test_the_edge_of_few_is_many():
    few, steps = (int(THRESHOLDS[name].value) for name in ("few", "steps"))
    assert advise(measured(0.9, 0.8, images=10 * few)).scenario.startswith("large")
    assert advise(measured(0.9, 0.8, images=10 * few - 1)).scenario.startswith("small")
    assert advise(measured(0.9, 0.8, steps=steps)).scenario.startswith("large")
    assert advise(measured(0.9, 0.8, steps=steps - 1)).scenario.startswith("small")


def test_many_images_train_the_head_alone_where_it_leaves_little_to_gain():
    part = THRESHOLDS["errors"].value
    little, more = 1 - 0.9 * part + 1e-6, 1 - 0.9 * part - 1e-6  # of ten classes as common as each other
    advice = advise(measured(little, 0.8))
    assert (advice.scenario, advice.cut) == ("small_similar", "layer3")
    assert "many, but the head alone errs on 1.8%: little to gain (scenario=large_similar trains all layers)" in advice.reason
    asked = advise(measured(little, 0.8), asked="trainer.max_epochs=3")
    assert asked.scenario == "large_similar" and "all layers train, as trainer.max_epochs=3 was given" in asked.reason
    assert advise(measured(more, 0.8)).reason == advise(measured(more, 0.8), asked="trainer.max_epochs=3").reason
    assert advise(measured(0.5, little, below_logme=0.1)).scenario == "small_different"
    assert advise(measured(0.99, 0.98, classes=2, commonest=0.98)).scenario == "large_similar"  # half of the rare class is wrong


def test_advice_of_nothing_is_one_line():
    with pytest.raises(UserError, match="at least one cut"):
        Measurements(10, 2, [], 10, 0.5, 100.0)
    with pytest.raises(UserError, match="LogME needs images"):
        logme(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize(("samples", "features"), [(40, 7), (12, 30)])
def test_logme_is_the_best_evidence(samples, width):
    torch.manual_seed(0)
    labels = torch.arange(samples) % 3
    features = torch.randn(samples, width, dtype=torch.float64) + labels[:, None]

    def evidence(target, alpha, beta):
        """Of target ~ N(0, features features^T / alpha + 1 / beta), Bishop 2006, equation 3.77."""
        covariance = features @ features.T / alpha + torch.eye(samples, dtype=torch.float64) / beta
        return torch.distributions.MultivariateNormal(torch.zeros(samples, dtype=torch.float64), covariance).log_prob(target) / samples

    best = []
    for label in range(3):
        target, logs = (labels == label).double(), torch.zeros(2, dtype=torch.float64, requires_grad=True)
        search = torch.optim.LBFGS([logs], max_iter=200, line_search_fn="strong_wolfe")

        def loss(target=target, logs=logs, search=search):
            search.zero_grad()
            value = -evidence(target, *logs.exp())
            value.backward()
            return value

        search.step(loss)
        best.append(-float(loss().detach()))
    assert math.isclose(logme(features, labels), sum(best) / 3, abs_tol=2e-2 if features.shape[1] > samples else 1e-3)


@pytest.mark.parametrize("features", [torch.zeros(40, 8), 1e8 * torch.randn(40, 90), torch.ones(6, 1)])
def test_logme_of_odd_features_is_a_number(features):
    assert math.isfinite(logme(features, torch.arange(len(features)) % 2))


def test_logme_does_not_depend_on_the_size_of_the_features():
    torch.manual_seed(0)
    features = torch.randn(40, 90)
    assert math.isclose(logme(features, torch.arange(40) % 2), logme(1e6 * features, torch.arange(40) % 2), rel_tol=1e-6)


def test_logme_is_higher_where_features_tell_the_classes_apart():
    torch.manual_seed(0)
    labels = torch.arange(90) % 3
    noise = torch.randn(90, 8)
    assert logme(noise + 3 * torch.nn.functional.one_hot(labels, 8), labels) > logme(noise, labels) + 0.3
