"""Class weights of a linear probe: the objective and the optimum are those of scikit-learn (invariant 10)."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.svm import LinearSVC

from ftlit.errors import UserError
from ftlit.probes.cross_validation import scales
from ftlit.probes.fitted_head.calibration import fit_temperature
from ftlit.probes.linear_probe import fit_probe
from ftlit.probes.objectives import losses_of
from ftlit.probes.probe_kinds import PROBE_KINDS, ProbeKind
from ftlit.probes.solver import solve

L2 = 1e-2
NEAR = 1e-4
KINDS = ("softmax", "svm", "ridge")


def problem(classes, samples=150, width=8):
    """Draw overlapping classes, the first one ten times as frequent as the last."""
    make = torch.Generator().manual_seed(classes)
    shares = torch.linspace(10, 1, classes)
    labels = torch.cat(
        [torch.arange(classes).repeat(2), torch.multinomial(shares, samples - 2 * classes, replacement=True, generator=make)]
    )
    return torch.randn(samples, width, generator=make, dtype=torch.float64) + torch.eye(width, dtype=torch.float64)[labels], labels


def balanced(labels):
    counts = torch.bincount(labels)
    return (len(labels) / (len(counts) * counts)).tolist()


def objective(kind, features, labels, weights, weight, bias, l2=L2):
    """The objective, written independently: the mean over samples of the weight of the class times the loss, and the penalty."""
    z, classes = features @ weight.T + bias, int(labels.max()) + 1
    if kind == "softmax":
        losses = -(torch.cat([0 * z, z], dim=1) if classes == 2 else z).log_softmax(dim=1)[torch.arange(len(z)), labels]
    else:
        signs = (2 * labels - 1)[:, None] if classes == 2 else 2 * torch.nn.functional.one_hot(labels, classes) - 1
        losses = ((1 - signs * z).clamp(min=0).square() if kind == "svm" else (signs - z).square() / 2).sum(dim=1)
    return float((torch.tensor(weights)[labels] * losses).sum() / len(labels) + l2 / 2 * weight.square().sum())


def sklearn_solution(kind, features, labels, given):
    """Fit by scikit-learn with `class_weight`. That of LinearSVC leaves the rest of one-against-the-rest without weights: there, several
    classes have `sample_weight`.
    """
    x, classes, c = features.numpy(), int(labels.max()) + 1, 1 / (len(labels) * L2)
    class_weight = given if given == "balanced" else dict(enumerate(given))
    weights = torch.tensor(balanced(labels) if given == "balanced" else given)
    if kind == "softmax":
        found = [LogisticRegression(C=c, tol=1e-10, max_iter=20_000, class_weight=class_weight).fit(x, labels)]
    elif kind == "ridge":
        found = [RidgeClassifier(alpha=len(labels) * L2, class_weight=class_weight).fit(x, labels)]
    else:
        svm = {"C": c, "dual": False, "tol": 1e-10, "max_iter": 200_000, "intercept_scaling": 1e3}
        ones = [labels == k for k in range(classes)]
        found = [LinearSVC(**svm).fit(x, one, sample_weight=weights[labels].numpy()) for one in ones]
        found = [LinearSVC(**svm, class_weight=class_weight).fit(x, labels)] if classes == 2 else found
    weight, bias = (np.concatenate([np.atleast_1d(getattr(one, name)) for one in found]) for name in ("coef_", "intercept_"))
    return torch.from_numpy(np.atleast_2d(weight)), torch.from_numpy(bias)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("explicit", [False, True])
def test_the_optimum_with_class_weights_equals_that_of_scikit_learn(kind, classes, explicit):
    features, labels = problem(classes)
    given = [0.5 + 3 * k for k in range(classes)] if explicit else "balanced"
    weights = given if explicit else balanced(labels)
    path = solve(features, labels, classes, [L2], kind, class_weights=weights)
    mine = objective(kind, features, labels, weights, path.weight[0], path.bias[0])
    weight, bias = sklearn_solution(kind, features, labels, given)
    assert mine == pytest.approx(objective(kind, features, labels, weights, weight, bias), rel=NEAR)
    assert mine == pytest.approx(float(path.objective[0]), rel=1e-9) and bool(path.converged[0])
    outputs, theirs = (features @ one.T + other for one, other in ((path.weight[0], path.bias[0]), (weight, bias)))
    if kind == "softmax" and classes > 2:  # the same number added to all logits changes nothing
        outputs, theirs = outputs.log_softmax(dim=1), theirs.log_softmax(dim=1)
    torch.testing.assert_close(outputs, theirs, rtol=0, atol=2e-2)
    moved = objective(kind, features, labels, weights, 0.98 * path.weight[0], path.bias[0] + 0.02)
    assert moved > mine  # a minimum of the weighted objective


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("width", [5, 200])
def test_an_image_of_weight_two_counts_as_two_images(kind, classes, width):
    features, labels = problem(classes, samples=60, width=max(width, classes))
    twice = torch.cat([torch.arange(60), torch.nonzero(labels == 1)[:, 0]])
    path = solve(features, labels, classes, [L2], kind, class_weights=[1.0, 2.0, *[1.0] * (classes - 2)])
    repeated = solve(features[twice], labels[twice], classes, [L2 * 60 / len(twice)], kind)
    assert float(path.objective[0]) == pytest.approx(float(repeated.objective[0]) * len(twice) / 60, rel=2e-6)
    outputs, others = (features @ found.weight[0].T + found.bias[0] for found in (path, repeated))
    torch.testing.assert_close(outputs, others, rtol=0, atol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_common_factor_of_the_weights_is_one_of_the_l2_penalty(kind):
    features, labels = problem(3)
    one, ten = (solve(features, labels, 3, [factor * L2], kind, class_weights=[factor * w for w in (1.0, 2.0, 5.0)]) for factor in (1, 1e4))
    torch.testing.assert_close(one.weight, ten.weight, rtol=1e-6, atol=1e-9)
    assert float(ten.objective[0]) == pytest.approx(1e4 * float(one.objective[0]))
    plain, ones = solve(features, labels, 3, [L2], kind), solve(features, labels, 3, [L2], kind, class_weights=[1.0] * 3)
    assert float(plain.objective[0]) == pytest.approx(float(ones.objective[0]), rel=2e-6)


def test_float32_features_that_are_many_converge_with_class_weights(monkeypatch):
    features, labels = problem(5)
    exact = solve(features, labels, 5, [L2], "softmax", class_weights=balanced(labels))
    monkeypatch.setattr("ftlit.probes.solver.FLOAT32_MIN_SIZE", 0)
    found = solve(features.float(), labels, 5, [L2], "softmax", class_weights=balanced(labels))
    assert bool(found.converged[0]) and float(found.objective[0]) == pytest.approx(float(exact.objective[0]), rel=NEAR)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("views", [0, 2])
def test_a_probe_with_views_is_the_optimum_on_all_rows_which_are_standardised_without_weights(kind, views):
    features, labels = problem(4)
    others = [features + 0.1 * (i + 1) for i in range(views)]
    probe = fit_probe(features, labels, views=others, kind=kind, l2=L2, class_weights="balanced")
    rows, every = torch.cat([features, *others]), labels.repeat(1 + views)
    mean, inverse = scales(rows)
    standard = (rows - mean) * inverse
    weight, bias = sklearn_solution(kind, standard, every, "balanced")
    theirs = objective(kind, standard, every, balanced(every), weight, bias)
    assert probe.objective == pytest.approx(theirs, rel=NEAR) and probe.class_weights == pytest.approx(balanced(labels))
    assert "class weights from " in probe.summary and "class weights" not in fit_probe(features, labels, kind=kind, l2=L2).summary


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_losses_have_the_weights_of_the_whole_training_set(kind):
    features, labels = problem(3)
    probe = fit_probe(features, labels, kind=kind, l2=[1.0, L2], class_weights="balanced")
    held_out = probe.held_out
    outputs = held_out.logits[0]
    expected = torch.tensor(balanced(labels))[held_out.labels] * losses_of(outputs, held_out.labels, kind)
    torch.testing.assert_close(held_out.losses[0], expected)
    assert probe.scores[probe.l2] == float(held_out.correct.double().mean())  # the accuracy has no weights


def test_balanced_is_counted_again_where_the_probe_is_refitted_on_train_and_val():
    features, labels = problem(2)
    train, val = torch.arange(100), torch.arange(100, 150)
    valid = (features[val], labels[val])
    options = {"l2": [L2], "class_weights": "balanced"}
    probe = fit_probe(features[train], labels[train], valid=valid, **options)
    alone = fit_probe(features, labels, **options)
    assert probe.class_weights == pytest.approx(balanced(labels)) and probe.objective == pytest.approx(alone.objective)
    first = fit_probe(features[train], labels[train], **options)
    outputs = features[val] @ (first.weight[1] - first.weight[0]) + first.bias[1] - first.bias[0]
    losses = torch.tensor(balanced(labels[train]))[labels[val]] * losses_of(outputs[:, None], labels[val], "softmax")
    assert probe.losses[L2] == pytest.approx(float(losses.mean()), rel=1e-6)


def test_rare_classes_are_found_more_often_with_balanced_weights():
    features, labels = problem(2, samples=400)
    recall = [
        float((fit_probe(features, labels, l2=L2, class_weights=given).predict(features)[labels == 1] == 1).double().mean())
        for given in (None, "balanced", [1.0, 100.0])
    ]
    assert recall[0] < recall[1] < recall[2]


def test_the_temperature_of_logits_for_weighted_classes_is_measured_with_the_weights():
    labels = torch.tensor([0] * 90 + [1] * 10)
    right = torch.tensor([True] * 72 + [False] * 18 + [True] * 8 + [False] * 2)  # 80 % of each class: logits of -log 4 and log 4
    predicted = torch.where(right, labels, 1 - labels)
    logits = 3 * torch.nn.functional.one_hot(predicted, 2) * np.log(4.0)
    assert fit_temperature(logits, labels, class_weights=[100 / 180, 5.0]) == pytest.approx(3, rel=0.1)
    assert fit_temperature(logits, labels) == pytest.approx(fit_temperature(logits, labels, class_weights=[1.0, 1.0]))
    missed = torch.where(labels == 1, 0, predicted)  # all of the rare class
    temperatures = [fit_temperature(3.0 * torch.nn.functional.one_hot(missed, 2), labels, class_weights=[1.0, w]) for w in (1.0, 9.0)]
    assert temperatures[0] < temperatures[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0], "class_weights has 1 number, but there are 2 classes: give one number for each class, or balanced"),
        ([1.0, 0.0], "class_weights contains 0.0: give numbers above 0"),
        ([1.0, float("nan")], "class_weights contains nan: give numbers above 0"),
        ("balance", "class_weights=balance is not valid: did you mean 'balanced'? There are: balanced, null"),
    ],
)
def test_wrong_weights_are_an_error(given, message):
    with pytest.raises(UserError) as caught:
        fit_probe(*problem(2), l2=L2, class_weights=given)
    assert str(caught.value) == message


def test_a_custom_kind_without_weights_refuses_them(monkeypatch):
    monkeypatch.setattr(PROBE_KINDS, "_parts", {**PROBE_KINDS})
    PROBE_KINDS.register("own")(
        ProbeKind(lambda *given: solve(*given, "ridge"), lambda outputs, labels: losses_of(outputs, labels, "ridge"))
    )
    assert fit_probe(*problem(2), kind="own", l2=L2).kind == "own"
    with pytest.raises(UserError, match="this kind of probe does not support class weights"):
        fit_probe(*problem(2), kind="own", l2=L2, class_weights="balanced")
