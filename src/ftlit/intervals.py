"""The 95 % interval of an accuracy."""

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
