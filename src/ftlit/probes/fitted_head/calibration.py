"""Calibration on held-out examples: the temperature of a head's logits (Guo et al. 2017, "On calibration of modern neural networks")."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn.functional import cross_entropy

PRIOR = 3.0  # weight of (log T)^2 / 2 beside the sum of the losses
RANGE = (-5.0, 5.0)  # of log T
STEPS = 60  # of the golden section: log T to 1e-11
GOLDEN = (math.sqrt(5) - 1) / 2


def _itself(logits: Tensor) -> Tensor:
    return logits


def fit_temperature(
    logits: Tensor,
    labels: Tensor,
    combined: Callable[[Tensor], Tensor] = _itself,
    class_weights: Sequence[float] | None = None,
) -> float:
    """The temperature T that minimises the summed loss of `combined(logits / T)` on M held-out examples, plus `PRIOR` / 2 (log T)^2.

    Dividing all logits by one number changes no prediction. Few examples need two corrections, else a dozen images that are all right
    would make T 0: the target of a label is (M + 1) / (M + 2) instead of 1 (Platt 1999, section 2.2), and the last term, that of a normal
    prior of log T, keeps T near 1.

    Args:
        logits: (M, K), or (P, M, K) of the P parts of a head, of examples that the head was not fitted on.
        labels: class numbers (M,).
        combined: logits of the parts -> logits (M, K).
        class_weights: factors of the loss of each class, with which the head was fitted, scaled to a mean of 1 over the examples; without
            them a temperature would make up for frequencies that the head was not fitted for. `None`: all 1.
    """
    logits, classes = logits.double(), logits.shape[-1]
    smoothing = classes / (classes - 1) / (len(labels) + 2)  # torch spreads it over all classes, the label's among them

    weights = None if class_weights is None else logits.new_tensor(class_weights)[labels]

    def objective(log_t: float) -> float:
        scaled = combined(logits / math.exp(log_t))
        if weights is None:
            return float(cross_entropy(scaled, labels, reduction="sum", label_smoothing=smoothing)) + PRIOR / 2 * log_t**2
        losses = cross_entropy(scaled, labels, reduction="none", label_smoothing=smoothing)
        return float((weights / weights.mean() * losses).sum()) + PRIOR / 2 * log_t**2

    return math.exp(_minimum(objective, *RANGE))


def _minimum(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum is least, by golden-section search."""
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = function(right)
    return (low + high) / 2
