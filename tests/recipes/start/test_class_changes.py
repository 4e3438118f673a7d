"""Classes are found by name, and a class with another name by its images."""

from pathlib import Path

import pytest

from ftlit import UserError
from ftlit.data.splitting.stored_split import StoredSplit
from ftlit.recipes.start.class_changes import match_classes


def split(labels):
    images = {"train": [(image, (label,), image) for image, label in labels.items()], "val": [], "test": []}
    return StoredSplit(Path("run"), ["ant", "bee", "wasp"], images, is_whole=False)


def test_classes_are_new_gone_or_renamed():
    before = split({"1": 0, "2": 1, "3": 1, "4": 1, "5": 2})
    found = match_classes(["ant", "bee", "wasp"], ["ant", "bees", "fly"], before, {"1": (0,), "2": (1,), "3": (1,), "4": (2,)}, "run")
    assert found.known == {0: 0, 1: 1} and found.renamed == {"bee": "bees"}
    assert found.new == ["fly"] and found.gone == ["wasp"]
    assert found.describe() == "2 known, 1 new (fly), bee is now called bees, 1 of that run no longer in the data (wasp)"


@pytest.mark.parametrize("labels", [{"2": (1,), "3": (2,)}, {"2": (0,), "3": (0,)}, {}], ids=["divided", "merged", "unknown"])
def test_a_class_whose_images_are_divided_or_merged_is_gone(labels):
    found = match_classes(["ant", "bee"], ["ant", "bees", "fly"], split({"2": 1, "3": 1}), labels, "run")
    assert found.known == {0: 0} and found.gone == ["bee"] and not found.renamed


def test_data_without_any_class_of_the_run_are_refused():
    with pytest.raises(UserError, match=r"none of the classes of that run \(ant, bee\) is in these data \(cat, dog\)"):
        match_classes(["ant", "bee"], ["cat", "dog"], None, {}, "run")
