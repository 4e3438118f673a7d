"""Labels that look alike, or like a missing value."""

import pytest

from ftlit.data.sources.label_notes import label_notes


@pytest.mark.parametrize(
    "names",
    [
        ["1", "1.0"],
        ["True", "TRUE"],
        ["Ant", "ant"],
        ["red fox", "red_fox"],
        ["caf\u00e9", "cafe\u0301"],
        ["0,5", "0.50"],
        ["a ", "a"],
        ["a", "\u200ba"],
        ["3", "3\0"],
        ["hot dog", "hot\tdog"],
    ],
)
def test_labels_that_differ_in_spelling_only_are_noted(names):
    (note,) = label_notes(["other", *names])
    assert note == f"labels that differ only in spelling were read as different classes: {names[0]!r} and {names[1]!r}"


@pytest.mark.parametrize("name", ["nan", "NaN", "None", "null", "N/A", "<NA>"])
def test_labels_that_look_like_a_missing_value_are_noted(name):
    (note,) = label_notes(["ant", name])
    assert note.startswith(f"labels that look like missing values were read as classes: {name!r}")


@pytest.mark.parametrize("names", [["ant", "ants"], ["1", "2", "10"], ["1a", "1b"], ["1", "-1"], ["left", "right"]])
def test_other_labels_are_not_noted(names):
    assert label_notes(names) == []
