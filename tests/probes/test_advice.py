"""Advice: size and similarity decide the scenario. LogME: the evidence of a Bayesian linear model."""

import math

import pytest
import torch

from ftlit import UserError
from ftlit.probes.advice import THRESHOLDS, CutReason, Depth, Measurements, SizeReason, advise
from ftlit.probes.logme import logme


def measured(top, below, *, images=1000, classes=10, steps=1000.0, majority=0.1, below_logme=0.0) -> Measurements:
    depths = [Depth("layer1", 0.3, 0.0), Depth("layer2", below, below_logme), Depth("layer3", top, 0.0)]
    return Measurements(images, classes, depths, min(images, 2000), majority, steps)


@pytest.mark.parametrize(
    ("top", "below", "images", "scenario", "size", "cut"),
    [
        (0.9, 0.8, 1000, "large_similar", "many_images", "top_most_accurate"),
        (0.8, 0.9, 1000, "large_different", "many_images", "lower_more_accurate"),
        (0.900, 0.901, 1000, "large_different", "many_images", "lower_more_accurate"),
        (0.9, 0.9, 1000, "large_similar", "many_images", "top_most_accurate"),
        (0.9, 0.8, 100, "small_similar", "few_images", "top_by_accuracy_and_logme"),
        (0.5, 0.9, 100, "small_similar", "few_images", "top_by_accuracy_and_logme"),  # LogME is not higher below
        (1.0, 1.0, 100, "small_similar", "few_images", "top_by_accuracy_and_logme"),
        (0.3, 0.3, 20, "small_similar", "few_images", "too_few_to_choose"),
    ],
)
def test_size_and_similarity_decide_the_scenario(top, below, images, scenario, size, cut):
    advice = advise(measured(top, below, images=images))
    assert (advice.scenario, advice.cut, advice.reason.size, advice.reason.cut) == (scenario, "layer3", size, cut)
    numbers = advice.reason.numbers
    assert (numbers.top.accuracy, numbers.images_per_class) == (top, images / 10)
    assert numbers.best.cut == ("layer3" if scenario.endswith("similar") else "layer2")


def test_layers_that_cannot_be_dropped_are_kept():
    advice = advise(measured(0.5, 0.9, images=100, below_logme=0.1), droppable=False)
    assert (advice.scenario, advice.cut, advice.reason.cut) == ("small_similar", "layer3", CutReason.NOT_DROPPABLE)
    advice = advise(measured(0.5, 0.999), droppable=False)
    assert advice.scenario == "large_different" and advice.reason.numbers.probe_error == 0.5  # error of the probe at the top


def test_layers_are_dropped_where_accuracy_and_logme_agree():
    def advice(*pairs):
        return advise(Measurements(100, 2, [Depth(f"layer{i}", *pair) for i, pair in enumerate(pairs)], 100, 0.5, 30.0))

    for pairs, cut, reason in (
        (((0.8, -0.7), (0.9, -0.4), (0.9, -0.5)), "layer1", CutReason.LOWER_BY_LOGME),
        (((0.8, -0.7), (0.9, -0.5), (0.9, -0.4)), "layer2", CutReason.TOP_BY_ACCURACY_AND_LOGME),
        (((0.8, -0.3), (0.9, -0.5), (0.9, -0.4)), "layer2", CutReason.TOP_BY_ACCURACY_AND_LOGME),  # less accurate
        (((0.8, -0.3), (0.9, -0.4), (0.9, -0.5)), "layer1", CutReason.LOWER_BY_LOGME),  # the best by LogME is less accurate
        (((0.8, -0.7), (0.9, -0.5), (0.7, -0.4)), "layer2", CutReason.TOP_BY_ACCURACY_AND_LOGME),
        (((0.8, -0.7), (0.9, -0.3), (0.7, -0.4)), "layer1", CutReason.LOWER_MORE_ACCURATE),
    ):
        assert (advice(*pairs).cut, advice(*pairs).reason.cut) == (cut, reason)


def test_few_images_drop_no_layer():
    enough = int(THRESHOLDS["cut"].value)
    for images, scenario, cut, reason in (
        (enough, "small_different", "layer2", CutReason.LOWER_MORE_ACCURATE),
        (enough - 1, "small_similar", "layer3", CutReason.TOO_FEW_TO_CHOOSE),
    ):
        advice = advise(measured(0.7, 0.9, images=images, classes=2, below_logme=0.2))
        assert (advice.scenario, advice.cut, advice.reason.cut) == (scenario, cut, reason)
        assert advice.reason.numbers.measured_images == images


def test_a_value_equal_to_the_threshold_counts_as_many():
    few, steps = (int(THRESHOLDS[name].value) for name in ("few", "steps"))
    for values, size in (
        ({"images": 10 * few}, SizeReason.MANY_IMAGES),
        ({"images": 10 * few - 1}, SizeReason.FEW_IMAGES),
        ({"steps": steps}, SizeReason.MANY_IMAGES),
        ({"steps": steps - 1}, SizeReason.FEW_STEPS),
    ):
        advice = advise(measured(0.9, 0.8, **values))
        assert advice.reason.size is size and advice.scenario.startswith("large") == (size is SizeReason.MANY_IMAGES)


def test_only_the_head_trains_on_many_images_if_a_probe_leaves_little_to_gain():
    part = THRESHOLDS["errors"].value
    little, more = 1 - 0.9 * part + 1e-6, 1 - 0.9 * part - 1e-6  # of ten classes of the same size
    advice = advise(measured(little, 0.8))
    assert (advice.scenario, advice.cut, advice.reason.size) == ("small_similar", "layer3", SizeReason.LITTLE_TO_GAIN)
    assert advice.reason.numbers.full_scenario == "large_similar" and advice.reason.numbers.probe_error == pytest.approx(0.018, abs=1e-5)
    requested = advise(measured(little, 0.8), requested="trainer.max_epochs=3")
    assert requested.scenario == "large_similar" and requested.reason.size is SizeReason.REQUESTED
    assert requested.reason.requested == "trainer.max_epochs=3"
    assert advise(measured(more, 0.8)) == advise(measured(more, 0.8), requested="trainer.max_epochs=3")
    assert advise(measured(0.5, little, below_logme=0.1)).scenario == "small_different"
    assert advise(measured(0.99, 0.98, classes=2, majority=0.98)).scenario == "large_similar"  # half of the rare class is wrong


def test_missing_measurements_are_an_error():
    with pytest.raises(UserError, match="at least one cut"):
        Measurements(10, 2, [], 10, 0.5, 100.0)
    with pytest.raises(UserError, match="there are no features"):
        logme(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize(("samples", "width"), [(40, 7), (12, 30)])
def test_logme_equals_the_maximum_of_the_evidence(samples, width):
    torch.manual_seed(0)
    labels = torch.arange(samples) % 3
    features = torch.randn(samples, width, dtype=torch.float64) + labels[:, None]

    def evidence(target, alpha, beta):
        """Log density of target ~ N(0, features features^T / alpha + 1 / beta), Bishop 2006, equation 3.77."""
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
    assert math.isclose(logme(features, labels), sum(best) / 3, abs_tol=2e-2 if width > samples else 1e-3)


@pytest.mark.parametrize("features", [torch.zeros(40, 8), 1e8 * torch.randn(40, 90), torch.ones(6, 1)])
def test_logme_of_degenerate_features_is_finite(features):
    assert math.isfinite(logme(features, torch.arange(len(features)) % 2))


def test_logme_does_not_depend_on_the_scale_of_the_features():
    torch.manual_seed(0)
    features = torch.randn(40, 90)
    assert math.isclose(logme(features, torch.arange(40) % 2), logme(1e6 * features, torch.arange(40) % 2), rel_tol=1e-6)


def test_logme_is_higher_if_the_features_separate_the_classes():
    torch.manual_seed(0)
    labels = torch.arange(90) % 3
    noise = torch.randn(90, 8)
    assert logme(noise + 3 * torch.nn.functional.one_hot(labels, 8), labels) > logme(noise, labels) + 0.3
