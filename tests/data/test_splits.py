"""Random splits are stratified and reproducible, and duplicates across splits are found."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ftlit.data.dataset import Examples
from ftlit.data.images import to_rgb
from ftlit.data.splits import assemble, draw_per_class, find_duplicates, split_off
from ftlit.errors import UserError

strata = st.lists(st.integers(0, 6), min_size=1, max_size=120)
fraction = st.floats(0.01, 0.45)
FRACTIONS = {"val": 0.2, "test": 0.2}


def examples(labels, contents=None) -> Examples:
    return Examples(range(len(labels)), labels, to_rgb, contents or [np.array(i) for i in range(len(labels))])


@given(strata, fraction, fraction, st.integers(0, 9))
def test_splits_partition_the_data(classes, val, test, seed):
    parts = split_off(classes, {"val": val, "test": test}, seed)
    assert sorted(place for places in parts.values() for place in places) == list(range(len(classes)))
    assert all(places == sorted(places) for places in parts.values())


@given(strata, fraction, fraction, st.integers(0, 9))
@example([0] * 18 + [1] * 4, 0.25, 0.375, 0)  # val's part of the second class is a whole number, that of the first is rounded
def test_splits_are_stratified_within_one_image_of_each_class_and_train_has_every_class(classes, val, test, seed):
    parts = split_off(classes, {"val": val, "test": test}, seed)
    for number in set(classes):
        of_class = {split: sum(classes[place] == number for place in places) for split, places in parts.items()}
        n = classes.count(number)
        assert of_class["train"] >= 1
        if n > 1:
            assert abs(of_class["val"] - n * val) < 1 and abs(of_class["test"] - n * test) < 1


@given(st.integers(5, 200), st.integers(2, 4), st.integers(0, 9))
def test_many_small_classes_are_split_in_the_right_proportion(classes, size, seed):
    parts = split_off([number for number in range(classes) for _ in range(size)], FRACTIONS, seed)
    assert all(abs(len(parts[split]) - 0.2 * classes * size) < 2 for split in FRACTIONS)


@given(strata, st.integers(0, 9))
def test_a_split_is_a_function_of_the_seed(classes, seed):
    assert split_off(classes, FRACTIONS, seed) == split_off(classes, FRACTIONS, seed)


def test_another_seed_gives_another_split():
    assert split_off([0, 1] * 50, FRACTIONS, 0) != split_off([0, 1] * 50, FRACTIONS, 1)


def test_a_split_never_changes_between_versions():
    assert split_off([0] * 10, FRACTIONS, 0)["test"] == [0, 5]


@given(st.lists(st.sets(st.integers(0, 5)), min_size=8, max_size=60), st.integers(0, 9))
def test_with_several_labels_train_has_every_label(labels, seed):
    try:
        train = examples([tuple(several) for several in labels])
        collection = assemble({"train": train}, list("abcdef"), fractions=FRACTIONS, split_seed=seed, multilabel=True)
    except UserError as error:
        assume("too few" not in str(error))
        raise
    counts = collection.counts
    assert all(counts["train"][name] for split in counts for name in counts[split] if counts[split][name])


@given(strata, st.integers(1, 5), st.integers(0, 9))
def test_k_images_of_each_class_are_drawn_and_a_larger_k_includes_a_smaller_one(classes, k, seed):
    labels = [(number,) for number in classes]
    few, more = draw_per_class(labels, k, seed), draw_per_class(labels, k + 1, seed)
    assert set(few) <= set(more)
    assert all(sum(classes[place] == number for place in few) == min(k, classes.count(number)) for number in set(classes))


@pytest.mark.parametrize("fractions", [{"val": 0.0, "test": 0.2}, {"val": 0.5, "test": 0.5}, {"val": -1, "test": 0.1}])
def test_fractions_out_of_range_are_an_error(fractions):
    with pytest.raises(UserError, match="above 0 and all together below 1"):
        assemble({"train": examples([(0,), (1,)] * 5)}, ["a", "b"], fractions=fractions, split_seed=0)


def test_too_few_images_to_split_are_an_error():
    with pytest.raises(UserError, match="2 images are too few to split off val and test: no image is left for val and test"):
        assemble({"train": examples([(0,), (1,)])}, ["a", "b"], fractions=FRACTIONS, split_seed=0)


def test_a_single_class_is_an_error():
    with pytest.raises(UserError, match="at least two"):
        assemble({"train": examples([(0,)] * 9)}, ["a"], fractions=FRACTIONS, split_seed=0)


def test_a_single_image_stays_in_train_with_a_note():
    collection = assemble({"train": examples([(0,)] * 10 + [(1,)])}, ["a", "rare"], fractions=FRACTIONS, split_seed=0)
    assert collection.counts["train"]["rare"] == 1
    assert "the only image of rare stays in train" in collection.notes[0]
    assert "val has no image of rare" in collection.notes


def test_a_class_missing_in_train_is_an_error_and_one_missing_in_val_is_a_note():
    labels = {"train": [(0,), (1,)], "val": [(0,)], "test": [(0,), (1,)]}
    splits = {split: examples(some, [np.array([len(split), i]) for i in range(len(some))]) for split, some in labels.items()}
    splits["test"] = examples(labels["test"], [np.array([0, 0]), np.array([0, 1])])
    assert assemble(splits, ["a", "b"], fractions={}, split_seed=0).notes == ["val has no image of b"]
    splits["val"], splits["train"] = splits["train"], splits["val"]
    with pytest.raises(UserError, match="val has classes that train lacks: b"):
        assemble(splits, ["a", "b"], fractions={}, split_seed=0)


def test_duplicates_are_files_of_equal_bytes_in_two_splits(tmp_path):
    texts = {"train": ["one", "two", "two"], "val": ["one", "eno"], "test": ["four", "one"]}
    contents = {split: [tmp_path / f"{split}{i}" for i in range(len(several))] for split, several in texts.items()}
    for split, several in texts.items():
        for path, text in zip(contents[split], several, strict=True):
            path.write_text(text)
    (group,) = find_duplicates(contents)  # "two" is twice in train only, "eno" has the size of "one" but not its bytes
    assert [(split, place) for split, place, _ in group] == [("train", 0), ("val", 0), ("test", 1)]


def test_files_of_a_unique_size_are_not_read(tmp_path, monkeypatch):
    for name in ("a", "bb"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(Path, "open", lambda *a, **k: pytest.fail("read"))
    assert find_duplicates({"train": [tmp_path / "a"], "val": [tmp_path / "bb"]}) == []


def test_duplicates_are_noted_with_names_and_count():
    same = [np.array([1, 2]) for _ in range(2)]
    splits = {split: examples([(0,), (1,)], [same[0], np.array([i, i])]) for i, split in enumerate(("train", "val", "test"), start=5)}
    (note,) = assemble(splits, ["a", "b"], fractions={}, split_seed=0).notes
    assert note == "duplicates across splits, byte for byte (1): train[0] = val[0] = test[0]"
