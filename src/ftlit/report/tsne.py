"""t-SNE (van der Maaten and Hinton 2008) of up to about a thousand vectors; to import scikit-learn's would take longer than to compute it.

Shapes: N vectors of C numbers, in float32.
"""

import numpy as np

from ftlit.report.contents import Array

EARLY_STEPS, LATE_STEPS = 250, 250  # the first with exaggerated attraction and a low momentum
EXAGGERATION = 12.0  # and momentum and learning rate are scikit-learn's
MIN_LEARNING_RATE = 50.0
SPREAD = 1e-4  # standard deviation of the first coordinate at the start
SEARCH_STEPS = 40


def tsne(values_NC: Array, perplexity: float) -> Array:
    """Places (N, 2) at which neighbours are those of the vectors; the start are the first two principal components.

    Args:
        values_NC: two vectors or more.
        perplexity: effective number of neighbours, below N.
    """
    centred = (values_NC - values_NC.mean(axis=0)).astype(np.float32)
    likely = _neighbours(_squared_distances(centred), perplexity)
    flat = _principal_components(centred)
    rate = max(len(flat) / EXAGGERATION / 4, MIN_LEARNING_RATE)
    for steps, momentum, target in ((EARLY_STEPS, 0.5, EXAGGERATION * likely), (LATE_STEPS, 0.8, likely)):
        step, gains = np.zeros_like(flat), np.ones_like(flat)
        for _ in range(steps):
            gradient = _gradient(flat, target)
            gains = np.where(step * gradient < 0, gains + 0.2, np.maximum(gains * 0.8, 0.01))
            step = momentum * step - rate * gains * gradient
            flat = flat + step
    return flat


def _squared_distances(points: Array) -> Array:
    squares = np.square(points).sum(axis=1)
    found: Array = -2 * points @ points.T
    found += squares[:, None]
    found += squares
    return np.maximum(found, 0, out=found)


def _principal_components(centred: Array) -> Array:
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    found = np.zeros((len(centred), 2), np.float32)
    found[:, : min(2, len(sizes))] = (left * sizes)[:, :2]
    deviation = float(found[:, 0].std())
    found *= SPREAD / (deviation or 1.0)
    return found


def _neighbours(distances: Array, perplexity: float) -> Array:
    """Joint probabilities (N, N) of being neighbours: normal distributions around each vector, with the entropy of the perplexity."""
    own = np.eye(len(distances), dtype=bool)
    distances = np.where(own, 0, distances - np.where(own, np.inf, distances).min(axis=1, keepdims=True))
    mean = distances.mean(axis=1, keepdims=True)
    scale = 1 / np.where(mean > 0, mean, 1)
    low, high = np.full_like(scale, -30.0), np.full_like(scale, 30.0)  # bounds of the logarithm of the precision, relative to the scale
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        precision = np.exp(middle) * scale
        likely = np.where(own, 0, np.exp(-precision * distances))
        total = likely.sum(axis=1, keepdims=True)
        entropy = np.log(total) + precision * (likely * distances).sum(axis=1, keepdims=True) / total
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    likely = likely / total
    joint: Array = ((likely + likely.T) / (2 * len(likely))).astype(np.float32)
    return joint


def _gradient(flat: Array, likely: Array) -> Array:
    """Of the Kullback-Leibler divergence of the neighbourhoods at these places from `likely`."""
    near = _squared_distances(flat)
    near += 1
    np.reciprocal(near, out=near)
    np.fill_diagonal(near, 0)
    pull = near * (-1 / near.sum())
    pull += likely
    pull *= near
    gradient: Array = 4 * (pull.sum(axis=1, keepdims=True) * flat - pull @ flat)
    return gradient
