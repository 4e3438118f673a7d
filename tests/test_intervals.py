"""Intervals of accuracies are those of scipy."""

import pytest
from scipy.stats import binomtest

from ftlit.intervals import accuracy_interval


@pytest.mark.parametrize(("right", "number"), [(0, 5), (5, 5), (1, 3), (365, 368), (9_000, 10_000)])
def test_the_interval_is_wilsons(right, number):
    expected = binomtest(right, number).proportion_ci(0.95, method="wilson")
    assert accuracy_interval(right / number, number) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_without_images_any_accuracy_is_possible():
    assert accuracy_interval(float("nan"), 0) == (0.0, 1.0)
