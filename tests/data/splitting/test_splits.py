"""Invariants of data sets in three splits."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ftlit.data.dataset import Examples
from ftlit.data.images import to_rgb
from ftlit.data.splitting.duplicates import content_hashes
from ftlit.data.splitting.splits import SplitRule, assemble, draw_per_class, draw_share
from ftlit.errors import UserError

strata = st.lists(st.integers(0, 6), min_size=1, max_size=120)
FRACTIONS = {"val": 0.2, "test": 0.2}


def examples(labels, contents=None) -> Examples:
    return Examples(range(len(labels)), labels, to_rgb, contents or [np.array(i) for i in range(len(labels))])


@given(st.lists(st.sets(st.integers(0, 5)), min_size=8, max_size=60), st.integers(0, 9))
def test_with_several_labels_train_has_every_label(labels, seed):
    try:
        train = examples([tuple(several) for several in labels])
        collection = assemble({"train": train}, list("abcdef"), SplitRule(FRACTIONS, seed), multilabel=True)
    except UserError as error:
        assume("nothing is left for" not in str(error))
        raise
    counts = collection.counts
    assert all(counts["train"][name] for split in counts for name in counts[split] if counts[split][name])


def drawn(classes, k, seed, images=None) -> set[int]:
    """The images of which k of each class are drawn, by their numbers."""
    numbers = list(range(len(classes)) if images is None else images)
    places = draw_per_class(examples([(number,) for number in classes]), [f"hash {number}" for number in numbers], k, seed)
    assert places == sorted(places)
    return {numbers[place] for place in places}


@given(strata, st.integers(1, 5), st.integers(0, 9))
def test_k_images_of_each_class_are_drawn_and_a_larger_k_includes_a_smaller_one(classes, k, seed):
    few, more = drawn(classes, k, seed), drawn(classes, k + 1, seed)
    assert few <= more
    assert all(sum(classes[place] == number for place in few) == min(k, classes.count(number)) for number in set(classes))


@given(strata, strata, st.integers(1, 5), st.integers(0, 9))
def test_an_added_image_takes_the_place_of_at_most_one_of_its_class(before, added, k, seed):
    old, new = drawn(before, k, seed), drawn([*before, *added], k, seed)
    for number in range(7):
        left = [image for image in old - new if before[image] == number]
        entered = [image for image in new - old if [*before, *added][image] == number]
        assert all(image >= len(before) for image in entered) and len(left) <= len(entered)


def test_the_order_of_the_images_does_not_change_the_draw_and_another_seed_does():
    classes = [0, 1] * 40
    assert drawn(classes, 5, 0) == drawn(classes[::-1], 5, 0, range(79, -1, -1)) != drawn(classes, 5, 1)
    images = Examples(range(80), [(number,) for number in classes], to_rgb, [np.array(i) for i in range(80)])
    share = draw_share(images, content_hashes(images), 0.1, 0)
    assert len(share) == 8 and set(share) <= set(draw_per_class(images, content_hashes(images), 5, 0))


@pytest.mark.parametrize("fractions", [{"val": 0.0, "test": 0.2}, {"val": 0.5, "test": 0.5}, {"val": -1, "test": 0.1}])
def test_fractions_out_of_range_are_an_error(fractions):
    with pytest.raises(UserError, match="above 0, and their sum below 1"):
        assemble({"train": examples([(0,), (1,)] * 5)}, ["a", "b"], SplitRule(fractions))


def test_too_few_images_to_split_are_an_error():
    few, needs = "nothing is left for val and test, because ", "and train needs one {} of each of the 2 classes: add {}s of each class$"
    with pytest.raises(UserError, match=f"^{few}the data have only 2 examples, {needs.format('example', 'example')}"):
        assemble({"train": examples([(0,), (1,)])}, ["a", "b"], SplitRule(FRACTIONS))
    grouped = replace(examples([(0,), (1,)] * 2), groups=["x", "y"] * 2)
    grouped_few = f"^{few}the 4 examples form only 2 groups, {needs.format('group', 'group')}"
    with pytest.raises(UserError, match=grouped_few):
        assemble({"train": grouped}, ["a", "b"], SplitRule(FRACTIONS))


def test_copies_are_named_where_they_make_a_data_set_too_small():
    copies = Examples(range(8), [(0,)] * 4 + [(1,)] * 4, to_rgb, [np.zeros(2)] * 4 + [np.ones(2)] * 4)
    line = "the 8 examples are copies of only 2 different ones, and .*: add different examples of each class$"
    with pytest.raises(UserError, match=line):
        assemble({"train": copies}, ["a", "b"], SplitRule(FRACTIONS))


def test_a_single_class_is_an_error():
    with pytest.raises(UserError, match="at least two"):
        assemble({"train": examples([(0,)] * 9)}, ["a"], SplitRule(FRACTIONS))


def test_a_single_image_stays_in_train_with_a_note():
    collection = assemble({"train": examples([(0,)] * 10 + [(1,)])}, ["a", "rare"], SplitRule(FRACTIONS))
    assert collection.counts["train"]["rare"] == 1
    assert "classes with only one example keep it in train: rare" in collection.notes[0]
    assert "val has no example of rare" in collection.notes


def test_a_class_missing_in_train_is_an_error_and_one_missing_in_val_is_a_note():
    labels = {"train": [(0,), (1,)], "val": [(0,)], "test": [(0,), (1,)]}
    splits = {split: examples(some, [np.array([len(split), i]) for i in range(len(some))]) for split, some in labels.items()}
    splits["test"] = examples(labels["test"], [np.array([0, 0]), np.array([0, 1])])
    assert assemble(splits, ["a", "b"], SplitRule({})).notes == ["val has no example of b"]
    splits["val"], splits["train"] = splits["train"], splits["val"]
    with pytest.raises(UserError, match=r"val has classes that train lacks \(b\): add examples of them to train, or remove them from val"):
        assemble(splits, ["a", "b"], SplitRule({}))


def test_duplicates_are_noted_with_names_and_count():
    same = [np.array([1, 2]) for _ in range(2)]
    splits = {split: examples([(0,), (1,)], [same[0], np.array([i, i])]) for i, split in enumerate(("train", "val", "test"), start=5)}
    (note,) = assemble(splits, ["a", "b"], SplitRule({})).notes
    assert note == "exact duplicates are in several splits (1): train[0] = val[0] = test[0]"


def test_the_note_on_the_split_gives_sizes_and_classes_whose_image_may_move():
    contents = [np.array([number, i]) for number in (0, 1) for i in range((200, 2)[number])]
    collection = assemble({"train": examples([(0,)] * 200 + [(1,)] * 2, contents)}, ["many", "two"], SplitRule(FRACTIONS))
    note = collection.notes[0]
    assert note.startswith("val and test taken from the 202 examples by a hash of each example (split_seed=0)") and "(asked: 20%)" in note
    assert {split: counts["two"] for split, counts in collection.counts.items()} == {"train": 1, "val": 0, "test": 1}


def test_classes_of_two_images_leave_one_for_val():
    collection = assemble({"train": examples([(0,), (0,), (1,), (1,)])}, ["a", "b"], SplitRule(FRACTIONS))
    assert {split: len(images) for split, images in collection.splits.items()} == {"train": 2, "val": 1, "test": 1}


def test_copies_and_groups_stay_in_one_split():
    labels = [(i % 2,) for i in range(60)]
    copies = [np.array(i // 3) for i in range(60)]
    train = Examples(range(60), labels, to_rgb, copies)
    videos = [f"video {i // 6}" if i < 54 else None for i in range(60)]
    grouped = Examples(range(60), labels, to_rgb, [np.array(i) for i in range(60)], videos)
    for images, unit in ((train, 3), (grouped, 6)):
        splits = assemble({"train": images}, ["a", "b"], SplitRule({"val": 0.3, "test": 0.3})).splits
        sides = {place // unit: split for split, part in splits.items() for place in part.sources if place < 54}
        assert all(sides[place // unit] == split for split, part in splits.items() for place in part.sources if place < 54)
        assert len(set(sides.values())) == 3


def test_groups_that_the_data_divide_are_noted():
    splits = {
        split: Examples(range(2), [(0,), (1,)], to_rgb, [np.array([i, j]) for j in range(2)], ["p1" if i < 2 else "p2", None])
        for i, split in enumerate(("train", "val", "test"))
    }
    assert assemble(splits, ["a", "b"], SplitRule({})).notes == ["groups are in more than one split (1): p1 (train, val)"]


def test_a_class_in_another_spelling_is_named():
    splits = {split: examples([(0,), (i,)], [np.array([i, 0]), np.array([i, 1])]) for i, split in enumerate(("train", "val", "test"))}
    with pytest.raises(UserError, match="the class ant of val is named Ant in train: give it one name in all splits"):
        assemble(splits, ["Ant", "ant", "bee"], SplitRule({}))


def test_notes_and_errors_on_splits_speak_of_examples_which_may_be_texts():
    texts = [f"text {i}" for i in range(20)]
    labels = [(i % 2,) for i in range(19)] + [(2,)]
    train = Examples(texts, labels, str, [np.frombuffer(text.encode(), np.uint8) for text in texts])
    rule = SplitRule({"val": 0.2, "test": 0.2})
    collection = assemble({"train": train}, ["a", "b", "rare"], rule)
    with pytest.raises(UserError) as caught:
        assemble({"train": train.subset(range(2))}, ["a", "b"], rule)
    unknown = assemble({"train": Examples(texts, labels, str)}, ["a", "b", "rare"], rule)
    lines = [*collection.notes, *unknown.notes, str(caught.value)]
    assert any("example" in line for line in lines) and not any("image" in line for line in lines)
