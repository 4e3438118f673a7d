"""Numbers as text."""

import pytest

from ftlit.formatting import size_in_words


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (5e13, "5e+04 GB")])
def test_sizes_have_three_digits_and_a_unit(size, text):
    assert size_in_words(size) == text
