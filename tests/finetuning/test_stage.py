"""A metric ends a stage if it reaches a threshold or no longer improves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftlit.errors import UserError
from ftlit.finetuning.stage import Until

VALUES = st.lists(st.floats(-1, 1), max_size=8)


@given(VALUES, st.floats(-1, 1))
def test_a_threshold_is_compared_with_the_last_value_only(values, threshold):
    assert Until("a", threshold=threshold).reached(values) == (bool(values) and values[-1] >= threshold)
    assert Until("a", "min", threshold=threshold).reached(values) == (bool(values) and values[-1] <= threshold)


@given(VALUES, st.integers(1, 4))
def test_mode_min_equals_mode_max_on_negated_values(values, patience):
    more, less = Until("a", "max", patience=patience), Until("a", "min", patience=patience)
    assert more.reached(values) == less.reached([-value for value in values])


@pytest.mark.parametrize(
    ("values", "reached"),
    [
        ([], False),
        ([1.0], False),
        ([1.0, 1.0], False),
        ([1.0, 1.0, 1.0], True),  # an equal value is no improvement
        ([1.0, 1.05, 1.09], True),  # nor is an improvement of at most min_delta
        ([1.0, 0.5, 1.2, 1.1], False),
        ([1.0, 0.5, 1.2, 1.1, 1.25], True),
        ([float("nan"), float("nan")], True),
        ([float("nan"), 0.1], False),
    ],
)
def test_patience_counts_consecutive_values_without_improvement(values, reached):
    assert Until("a", patience=2, min_delta=0.1).reached(values) == reached


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "add a threshold, a patience"),
        ({"patience": 0}, "give a whole number, 1 or more"),
        ({"patience": 1, "min_delta": -1}, "give a number, 0 or more"),
        ({"patience": 1, "mode": "mx"}, "did you mean 'max'"),
    ],
)
def test_a_value_out_of_its_range_is_an_error(fields, message):
    with pytest.raises(UserError, match=message):
        Until("a", **fields)
