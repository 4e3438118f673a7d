"""LogME, a score of how well features fit classes, without training (You et al. 2021)."""

from math import log, pi

import torch
from torch import Tensor

from ftlit.errors import UserError

TURNS = 100  # of LogME's fixed point


TINY = 1e-12


STILL = 1e-3  # relative change of alpha / beta at which it ends


def logme(features_NC: Tensor, labels_N: Tensor) -> float:
    """Mean over the classes of the log evidence, for each image, of a Bayesian linear model of "is it this class?", its two precisions at
    their best: You et al. 2021 (LogME), section 4, by its fixed point in the singular vectors of the features. Higher is better.

    Raises:
        UserError: no class has an image.
    """
    if not len(labels_N):
        raise UserError("LogME needs images")
    features = features_NC.double()
    features = features / features.abs().max().clamp(min=TINY)  # the evidence does not depend on their size
    left, singular, _ = torch.linalg.svd(features, full_matrices=False)
    squares, (n, width) = singular.square(), features.shape
    evidences = []
    for label in sorted(set(labels_N.tolist())):
        target = (labels_N == label).double()
        along = (left.T @ target).square()
        beyond = max(float(target.square().sum() - along.sum()), 0.0)
        alpha, beta = 1.0, 1.0
        for _ in range(TURNS):
            ratio = alpha / beta
            used = min(max(float((squares / (squares + ratio)).sum()), TINY), n - 1e-6)
            length = float((squares * along / (squares + ratio).square()).sum())
            apart = float((along / (1 + squares / ratio).square()).sum()) + beyond
            alpha, beta = used / max(length, TINY), (n - used) / max(apart, TINY)
            if abs(alpha / beta - ratio) <= STILL * ratio:
                break
        spread = float(torch.log(alpha + beta * squares).sum()) + (width - len(squares)) * log(alpha)
        fit = width * log(alpha) + n * log(beta / (2 * pi))
        evidences.append((fit - spread - beta * apart - alpha * length) / (2 * n))
    return sum(evidences) / len(evidences)
