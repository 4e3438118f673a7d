"""Invariant 10: the probe reaches the optimum that scikit-learn reaches, and `converged` is true only then."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC

from ftlit.probes.probe_kinds import PROBE_KINDS
from ftlit.probes.solver import TOLERANCE, solve

L2_PENALTIES = [1.0, 1e-2, 1e-4]
NEAR = 1e-4  # of the objective


def outputs(features, weight, bias):
    return features.double() @ weight.double().T + bias.double()


def objective(kind, features, labels, classes, weight, bias, l2) -> float:
    """The objective, written independently."""
    z, n = outputs(features, weight, bias), len(labels)
    signs = (2 * labels - 1)[:, None] if classes == 2 else 2 * torch.nn.functional.one_hot(labels, classes) - 1
    if kind == "softmax":
        z = torch.cat([torch.zeros_like(z), z], dim=1) if classes == 2 else z
        loss = torch.nn.functional.cross_entropy(z, labels)
    else:
        loss = ((1 - signs * z).clamp(min=0) if kind == "svm" else (signs - z) / 2**0.5).square().sum() / n
    return float(loss + l2 / 2 * weight.double().square().sum())


def sklearn_svm(x, labels, classes, c, weight, bias):
    """Return these weights and biases with the rows of at most ten classes by scikit-learn: each class has a problem of its own.

    liblinear penalizes the intercept: a large intercept_scaling makes that negligible.
    """
    weight, bias = weight.double().clone(), bias.double().clone()
    for row in [0] if classes == 2 else sorted({round(i * (classes - 1) / 9) for i in range(10)}):
        one = labels == (1 if classes == 2 else row)
        found = LinearSVC(C=c, loss="squared_hinge", dual=False, tol=1e-10, max_iter=200_000, intercept_scaling=1e3).fit(x, one)
        weight[row], bias[row] = torch.from_numpy(found.coef_[0]), float(found.intercept_[0])
    return weight, bias


def sklearn_solution(kind, features, labels, classes, l2, weight, bias):
    """Return weights and biases of scikit-learn; some rows may be the given ones, see `sklearn_svm`."""
    c, x = 1 / (len(labels) * l2), features.double().numpy()
    if kind == "svm":
        return sklearn_svm(x, labels, classes, c, weight, bias)
    if kind == "softmax":
        found = LogisticRegression(C=c, tol=1e-9, max_iter=20_000).fit(x, labels)
    else:
        signs = (2 * labels - 1)[:, None] if classes == 2 else 2 * torch.nn.functional.one_hot(labels, classes) - 1
        found = Ridge(alpha=len(labels) * l2).fit(x, signs.double().numpy())
    return torch.from_numpy(np.atleast_2d(found.coef_)), torch.from_numpy(np.atleast_1d(found.intercept_))


def assert_same_optimum(kind, features, labels, classes, near=NEAR, agree=1.0):
    """Return for how many L2 penalties scikit-learn reaches the optimum too; there the predictions are compared."""
    path, compared = solve(features, labels, classes, L2_PENALTIES, kind), 0
    assert bool(path.converged.all()) and path.weight.dtype == features.dtype
    for i, l2 in enumerate(L2_PENALTIES):
        ours = objective(kind, features, labels, classes, path.weight[i], path.bias[i], l2)
        assert ours == pytest.approx(float(path.objective[i]), rel=1e-4 if features.dtype == torch.float32 else 1e-9)
        weight, bias = sklearn_solution(kind, features, labels, classes, l2, path.weight[i], path.bias[i])
        their = objective(kind, features, labels, classes, weight, bias, l2)
        assert ours <= their * (1 + near) + 1e-9, (l2, ours, their)
        if their <= ours * (1 + near):  # the same optimum, so the same predictions
            mine, other = (outputs(features, *pair) for pair in ((path.weight[i], path.bias[i]), (weight, bias)))
            same = (mine > 0) == (other > 0) if classes == 2 else mine.argmax(1) == other.argmax(1)
            assert float(same.double().mean()) >= agree
            compared += 1
    return compared


def standard(features):
    deviation, mean = torch.std_mean(features, dim=0, correction=0)
    return (features - mean) / torch.where(deviation > 0, deviation, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", PROBE_KINDS)
@pytest.mark.parametrize("classes", [2, 10])
def test_the_optimum_on_digits_equals_that_of_scikit_learn(kind, classes, dtype):
    digits = load_digits(n_class=classes)
    features = standard(torch.from_numpy(digits.data)).to(dtype)[:600]
    assert assert_same_optimum(kind, features, torch.from_numpy(digits.target)[:600], classes, agree=0.995) == len(L2_PENALTIES)


@st.composite
def problems(draw):
    """Draw features and labels: any number of classes, N < C and N > C, classes of one sample, constant and duplicated features."""
    classes = draw(st.integers(2, 50))
    samples = draw(st.integers(classes, classes + 60))
    width = draw(st.integers(1, 80))
    make = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    labels = torch.cat([torch.arange(classes), torch.randint(draw(st.integers(1, classes)), (samples - classes,), generator=make)])
    centres = torch.randn(classes, width, generator=make, dtype=torch.float64)
    features = centres[labels] + draw(st.sampled_from([0.1, 1.0, 5.0])) * torch.randn(samples, width, generator=make, dtype=torch.float64)
    if draw(st.booleans()):
        features[:, 0] = 3.0
    if draw(st.booleans()):
        features = torch.cat([features, features[:, :1]], dim=1)
    if draw(st.booleans()):
        features, labels = torch.cat([features, features]), torch.cat([labels, labels])
    return standard(features), labels, classes


@pytest.mark.parametrize("kind", PROBE_KINDS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate], derandomize=True)
@given(problems())
def test_the_optimum_on_random_problems_is_no_worse_than_that_of_scikit_learn(kind, problem):
    features, labels, classes = problem
    assert_same_optimum(kind, features, labels, classes, near=1e-5, agree=0.0)


@pytest.mark.parametrize("kind", PROBE_KINDS)
def test_each_l2_penalty_is_fitted_independently_of_the_others_and_of_their_order(kind):
    features, labels = torch.randn(60, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 4
    together = solve(features, labels, 4, [1e-3, 1.0, 1e-1], kind)
    for i, l2 in enumerate([1e-3, 1.0, 1e-1]):
        alone = solve(features, labels, 4, [l2], kind)
        assert float(alone.objective[0]) == pytest.approx(float(together.objective[i]), rel=2e-6)
        assert torch.allclose(alone.weight[0], together.weight[i], atol=1e-2)


@pytest.mark.parametrize("kind", PROBE_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weak_l2_penalties_converge_directly_and_along_a_path(kind, dtype):
    digits = load_digits()
    features, labels = standard(torch.from_numpy(digits.data))[:120].to(dtype), torch.from_numpy(digits.target)[:120]
    for l2_penalties in ([1e-6], [10 ** (-i / 2) for i in range(13)]):  # the classes are separable here, and the objective is near 0
        path = solve(features, labels, 10, l2_penalties, kind)
        assert bool(path.converged.all())
        value = objective(kind, features, labels, 10, path.weight[-1], path.bias[-1], l2_penalties[-1])
        assert value == pytest.approx(float(solve(features.double(), labels, 10, [1e-5, 1e-6], kind).objective[1]), rel=1e-4)


@pytest.mark.parametrize("classes", [2, 10])
def test_float64_is_used_if_rounding_in_float32_stops_the_descent(classes, monkeypatch):
    digits = load_digits(n_class=classes)
    features, labels = standard(torch.from_numpy(digits.data))[:120].float(), torch.from_numpy(digits.target)[:120]
    l2_penalties = [1.0, 1e-2, 1e-4, 1e-6]
    at_once = solve(features, labels, classes, l2_penalties, "softmax")
    monkeypatch.setattr("ftlit.probes.solver.FLOAT32_MIN_SIZE", 0)  # float32 is tried
    found = solve(features, labels, classes, l2_penalties, "softmax")
    assert bool(found.converged.all()) and found.objective.tolist() == pytest.approx(at_once.objective.tolist(), rel=1e-4)


@pytest.mark.parametrize("max_rank", [0, 64])
def test_l_bfgs_and_newtons_method_replace_each_other_for_svm(max_rank, monkeypatch):
    digits = load_digits()
    features, labels = standard(torch.from_numpy(digits.data))[:300], torch.from_numpy(digits.target)[:300]
    expected = solve(features, labels, 10, [1e-2], "svm")
    monkeypatch.setattr("ftlit.probes.optimization.minimum.NEWTON_MAX_RANK", max_rank)
    monkeypatch.setattr(
        "ftlit.probes.optimization.minimum.MAX_NEWTON_STEPS" if max_rank else "ftlit.probes.optimization.lbfgs.MAX_STEPS", 1
    )
    found = solve(features, labels, 10, [1e-2], "svm")
    assert bool(found.converged[0]) and float(found.objective[0]) == pytest.approx(float(expected.objective[0]), rel=1e-6)


def test_a_solution_that_did_not_converge_is_marked(monkeypatch):
    digits = load_digits()
    monkeypatch.setattr("ftlit.probes.optimization.lbfgs.MAX_STEPS", 1)
    features, labels = standard(torch.from_numpy(digits.data))[:300], torch.from_numpy(digits.target)[:300]
    assert not bool(solve(features, labels, 10, [1e-2], "softmax").converged[0])


@pytest.mark.parametrize("kind", ["softmax", "svm"])
def test_left_bounds_the_distance_to_the_optimum(kind, monkeypatch):
    features, labels = torch.randn(80, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.arange(80) % 5
    best = float(solve(features, labels, 5, [1e-3], kind).objective[0])
    seen = []
    monkeypatch.setattr("ftlit.probes.optimization.minimum.MAX_NEWTON_STEPS", 0)
    for steps in (1, 3, 10, 30):
        monkeypatch.setattr("ftlit.probes.optimization.lbfgs.MAX_STEPS", steps)
        path = solve(features, labels, 5, [1e-3], kind)
        gap = float(path.objective[0]) - best
        assert gap <= float(path.left[0] * path.objective[0]) + 1e-12
        assert bool(path.converged[0]) == (float(path.left[0]) <= TOLERANCE[torch.float64])
        seen.append(bool(path.converged[0]))
    assert not seen[0]
