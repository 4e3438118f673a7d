"""Exact t-SNE (van der Maaten and Hinton 2008) of up to a thousand points: scikit-learn's takes longer, and its import as long again."""

from typing import Any

import numpy as np

Floats = np.ndarray[Any, Any]
ITERATIONS, EXAGGERATED = 500, 250  # steps of gradient descent, and the first of them, with exaggerated similarities
EXAGGERATION = 12
BISECTIONS = 40


def tsne(values_ND: Floats, perplexity: float) -> Floats:
    """Place points on a plane so that near ones stay near, beginning with their principal components.

    Args:
        values_ND: points, float (N, D), D at least 2.
        perplexity: effective number of neighbours of a point, below N.

    Returns:
        Coordinates, float32 (N, 2).

    Raises:
        ValueError: values that are not finite.
    """
    if not np.isfinite(values_ND).all():
        raise ValueError("features are not finite")
    centred_ND = (values_ND - values_ND.mean(axis=0)).astype(np.float32)
    similarities_NN = _similarities(_squared_distances(centred_ND), perplexity)
    _, _, axes = np.linalg.svd(centred_ND, full_matrices=False)
    flat_N2: Floats = centred_ND @ axes[:2].T
    flat_N2 *= 1e-4 / flat_N2[:, 0].std().clip(1e-12)
    rate = max(len(flat_N2) / EXAGGERATION / 4, 50)  # Belkina et al. 2019
    for factor, momentum, steps in ((EXAGGERATION, 0.5, EXAGGERATED), (1, 0.8, ITERATIONS - EXAGGERATED)):
        pulls_NN, step_N2, gains_N2 = factor * similarities_NN, np.zeros_like(flat_N2), np.ones_like(flat_N2)
        for _ in range(steps):
            gradient_N2 = _gradient(flat_N2, pulls_NN)
            gains_N2 = np.maximum(np.where(gradient_N2 * step_N2 < 0, gains_N2 + 0.2, gains_N2 * 0.8), 0.01)
            step_N2 = momentum * step_N2 - rate * gains_N2 * gradient_N2
            flat_N2 = flat_N2 + step_N2
    return flat_N2


def _squared_distances(values_ND: Floats) -> Floats:
    squares_N = np.square(values_ND).sum(axis=1)
    distances_NN: Floats = np.maximum(squares_N[:, None] + squares_N - 2 * values_ND @ values_ND.T, 0)
    return distances_NN


def _similarities(distances_NN: Floats, perplexity: float) -> Floats:
    """Symmetric similarities with sum 1. The bandwidth of each point gives its neighbours this perplexity; it is found by bisection."""
    np.fill_diagonal(distances_NN, np.inf)
    nearest_N1 = distances_NN.min(axis=1, keepdims=True)
    beyond_NN = distances_NN - nearest_N1  # the nearest neighbour has weight 1, whatever the bandwidth
    np.fill_diagonal(beyond_NN, 0)
    scale_N1 = beyond_NN.mean(axis=1, keepdims=True) + 1e-12
    low_N1, high_N1 = np.full_like(scale_N1, -15), np.full_like(scale_N1, 15)  # logarithms of the inverse bandwidth
    for _ in range(BISECTIONS):
        middle_N1 = (low_N1 + high_N1) / 2
        inverse_N1 = np.exp(middle_N1) / scale_N1
        weights_NN = np.exp(-beyond_NN * inverse_N1)
        np.fill_diagonal(weights_NN, 0)
        total_N1 = weights_NN.sum(axis=1, keepdims=True)
        entropy_N1 = np.log(total_N1) + inverse_N1 * (weights_NN * beyond_NN).sum(axis=1, keepdims=True) / total_N1
        flat = entropy_N1 > np.log(perplexity)
        low_N1, high_N1 = np.where(flat, middle_N1, low_N1), np.where(flat, high_N1, middle_N1)
    weights_NN /= total_N1
    similarities_NN: Floats = (weights_NN + weights_NN.T) / (2 * len(weights_NN))
    return similarities_NN


def _gradient(flat_N2: Floats, pulls_NN: Floats) -> Floats:
    """Gradient of the Kullback-Leibler divergence (their equation 5)."""
    closeness_NN = 1 / (1 + _squared_distances(flat_N2))
    np.fill_diagonal(closeness_NN, 0)
    forces_NN = (pulls_NN - closeness_NN / closeness_NN.sum()) * closeness_NN
    gradient_N2: Floats = 4 * (forces_NN.sum(axis=1, keepdims=True) * flat_N2 - forces_NN @ flat_N2)
    return gradient_N2
