"""The feature map: neighbours stay neighbours, and similarities have the perplexity that was asked for."""

import numpy as np
import pytest
from sklearn.manifold import TSNE

from ftlit.report.tsne import _gradient, _similarities, _squared_distances, tsne

POINTS_ND = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)


def divergence(flat_N2: np.ndarray, similarities_NN: np.ndarray) -> float:
    closeness_NN = 1 / (1 + np.square(flat_N2[:, None] - flat_N2).sum(axis=-1, dtype=np.float64))
    np.fill_diagonal(closeness_NN, 0)
    shares_NN = closeness_NN / closeness_NN.sum()
    held = similarities_NN > 0
    return float((similarities_NN[held] * np.log(similarities_NN[held] / shares_NN[held])).sum())


def test_the_map_is_as_good_as_that_of_scikit_learn():
    similarities_NN = _similarities(_squared_distances(POINTS_ND), 10)
    theirs = TSNE(init="pca", perplexity=10, random_state=0, max_iter=500, method="exact").fit_transform(POINTS_ND)
    assert divergence(tsne(POINTS_ND, 10), similarities_NN) < 1.1 * divergence(theirs, similarities_NN)


def test_groups_that_are_far_apart_stay_apart():
    groups = np.repeat(np.arange(4), 15)
    flat_N2 = tsne(POINTS_ND + 20 * np.eye(5)[groups], 8)
    distances_NN = _squared_distances(flat_N2) + np.diag(np.full(60, np.inf))
    assert (groups[distances_NN.argmin(axis=1)] == groups).all()


def test_similarities_are_a_distribution_of_the_given_perplexity_at_any_scale():
    circle_N2 = np.stack([np.cos(angles := np.arange(40) * np.pi / 20), np.sin(angles)], axis=1)  # all points alike: symmetric rows
    for scale in (1e-3, 1, 1e3):
        rows_NN = 40 * _similarities(_squared_distances(scale * circle_N2), 7)
        entropy_N = -(rows_NN * np.log(rows_NN + 1e-30)).sum(axis=1)
        assert np.allclose(np.exp(entropy_N), 7, rtol=1e-3) and np.allclose(rows_NN.sum(axis=1), 1, rtol=1e-5)


def test_the_gradient_is_that_of_the_divergence():
    similarities_NN, flat_N2 = _similarities(_squared_distances(POINTS_ND.astype(float)), 10), POINTS_ND[:, :2].astype(float)
    ahead, back = flat_N2.copy(), flat_N2.copy()
    ahead[3, 1] += 1e-4
    back[3, 1] -= 1e-4
    slope = (divergence(ahead, similarities_NN) - divergence(back, similarities_NN)) / 2e-4
    assert _gradient(flat_N2, similarities_NN)[3, 1] == pytest.approx(slope, rel=1e-4)


def test_equal_points_and_repeated_calls_give_equal_maps():
    assert np.array_equal(tsne(POINTS_ND, 10), tsne(POINTS_ND.copy(), 10))
    assert np.isfinite(tsne(np.ones((12, 3)), 3)).all()
    with pytest.raises(ValueError, match="not finite"):
        tsne(np.full((12, 3), np.inf), 3)
