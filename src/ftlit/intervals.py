"""95 % intervals of an accuracy, and of the difference of two on the same images."""

from collections.abc import Sequence
from math import sqrt

Z_95 = 1.959963984540054  # standard deviations of a normal distribution that hold 95 % of it


def accuracy_interval(accuracy: float, number: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy on `number` images that were drawn at random (Wilson 1927).

    >>> print("{:.3f} to {:.3f}".format(*accuracy_interval(0.9, 100)))
    0.826 to 0.945
    """
    if not number:
        return 0.0, 1.0
    shrink = 1 + Z_95**2 / number
    center = (accuracy + Z_95**2 / (2 * number)) / shrink
    half = Z_95 * sqrt(accuracy * (1 - accuracy) / number + (Z_95 / (2 * number)) ** 2) / shrink
    return max(0.0, center - half), min(1.0, center + half)


def paired_interval(better: int, worse: int, number: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two accuracies on the same images that were drawn at random (Agresti and Min 2005: Wald's
    interval after adding half an image to each of the four counts).

    Args:
        better: images that only the second model predicts correctly.
        worse: images that only the first one does.
        number: of all images.

    >>> print("{:.3f} to {:.3f}".format(*paired_interval(8, 2, 100)))
    -0.004 to 0.122
    """
    size, difference, changed = number + 2, better - worse, better + worse + 1
    half = Z_95 * sqrt(changed - difference**2 / size)
    return max(-1.0, (difference - half) / size), min(1.0, (difference + half) / size)


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float, float]:
    """The accuracy of a second model minus that of the first on the same images, and the ends of its 95 % interval, see `paired_interval`.

    Args:
        first: whether the first model is right, for each image; at least one.
        second: whether the second one is, in the same order.

    >>> print("{:+.2f}, {:.3f} to {:.3f}".format(*paired_difference([True] * 90 + [False] * 10, [True] * 88 + [False] * 4 + [True] * 8)))
    +0.06, -0.004 to 0.122
    """
    pairs = list(zip(first, second, strict=True))
    better, worse = pairs.count((False, True)), pairs.count((True, False))
    return (better - worse) / len(pairs), *paired_interval(better, worse, len(pairs))
