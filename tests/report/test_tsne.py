"""The places of t-SNE: as good as scikit-learn's by the divergence that both minimise."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from sklearn.datasets import load_digits
from sklearn.manifold import TSNE
from sklearn.manifold._t_sne import _joint_probabilities

from ftlit.report.tsne import tsne

DIGITS = load_digits().data.astype(np.float32)


@pytest.mark.parametrize(("number", "draws"), [(12, 10), (100, 10), (300, 1)])
def test_the_divergence_is_not_above_that_of_scikit_learn(number, draws):
    """In the mean over draws: of few vectors, rounding decides which of several local minima either finds."""
    ours, theirs, perplexity = 0.0, 0.0, min(30, (number - 1) / 3)
    for draw in range(draws):
        values = DIGITS[draw * number : (draw + 1) * number]
        places = tsne(values, perplexity)
        assert places.shape == (number, 2)
        ours += divergence_of(places, values, perplexity)
        theirs += TSNE(init="pca", perplexity=perplexity, method="exact", max_iter=500, random_state=0).fit(values).kl_divergence_
    assert ours < 1.1 * theirs


def divergence_of(places, values, perplexity):
    """The Kullback-Leibler divergence, with the neighbourhoods of scikit-learn."""
    likely = _joint_probabilities(squareform(pdist(values, "sqeuclidean")).astype(np.float32), perplexity, 0)
    near = 1 / (1 + pdist(places.astype(float), "sqeuclidean"))
    return 2 * float((likely * np.log(likely / (near / (2 * near.sum())))).sum())


def test_equal_vectors_and_vectors_of_one_number_have_places():
    for values in (np.ones((20, 5)), np.arange(20.0)[:, None], np.repeat(DIGITS[:10], 2, axis=0)):
        assert np.isfinite(tsne(values, 5)).all()


def test_the_places_are_the_same_each_time():
    assert np.array_equal(tsne(DIGITS[:50], 10), tsne(DIGITS[:50], 10))
