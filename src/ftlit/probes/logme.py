"""LogME: a transferability score of features for given classes, without training (You et al. 2021)."""

from math import log, pi

import torch
from torch import Tensor

from ftlit.errors import UserError
from ftlit.threads import threads_for

MAX_ITERATIONS = 100  # of the fixed point
REL_TOLERANCE = 1e-3  # change of alpha / beta at which the iteration ends
EPS = 1e-12  # lower bound of denominators


def logme(features_NC: Tensor, labels_N: Tensor) -> float:
    """Log evidence per image of a Bayesian linear model of each class against the rest, at its best two precisions, averaged over the
    classes: You et al. 2021, section 4, by fixed-point iteration in the singular vectors of the features.

    Args:
        features_NC: of N images.
        labels_N: class numbers.

    Returns:
        The score; higher is better.

    Raises:
        UserError: there are no images.
    """
    if not len(labels_N):
        raise UserError("there are no features: give the features and the class number of at least one image")
    with threads_for(features_NC.numel() * min(features_NC.shape)):
        return _logme(features_NC, labels_N)


def _logme(features_NC: Tensor, labels_N: Tensor) -> float:
    features = features_NC.double()
    features = features / features.abs().max().clamp(min=EPS)  # the evidence does not depend on their scale
    left, singular, _ = torch.linalg.svd(features, full_matrices=False)
    squares, (n, width) = singular.square(), features.shape
    evidences = []
    for label in sorted(set(labels_N.tolist())):
        target = (labels_N == label).double()
        along = (left.T @ target).square()
        beyond = max(float(target.square().sum() - along.sum()), 0.0)
        alpha, beta = 1.0, 1.0
        for _ in range(MAX_ITERATIONS):
            ratio = alpha / beta
            used = min(max(float((squares / (squares + ratio)).sum()), EPS), n - 1e-6)
            length = float((squares * along / (squares + ratio).square()).sum())
            residual = float((along / (1 + squares / ratio).square()).sum()) + beyond
            alpha, beta = used / max(length, EPS), (n - used) / max(residual, EPS)
            if abs(alpha / beta - ratio) <= REL_TOLERANCE * ratio:
                break
        spread = float(torch.log(alpha + beta * squares).sum()) + (width - len(squares)) * log(alpha)
        fit = width * log(alpha) + n * log(beta / (2 * pi))
        evidences.append((fit - spread - beta * residual - alpha * length) / (2 * n))
    return sum(evidences) / len(evidences)
