"""Numbers as text."""

import pytest

from ftlit.formatting import shown_folder, size_in_words


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (5e13, "5e+04 GB")])
def test_sizes_have_three_digits_and_a_unit(size, text):
    assert size_in_words(size) == text


@pytest.mark.parametrize(
    ("folder", "text"), [("/home/me/.cache/ftlit", "~/.cache/ftlit"), ("~/.cache/ftlit", "~/.cache/ftlit"), ("/data/store", "/data/store")]
)
def test_a_folder_has_one_form_however_it_is_given(monkeypatch, folder, text):
    monkeypatch.setenv("HOME", "/home/me")
    assert shown_folder(folder) == text
