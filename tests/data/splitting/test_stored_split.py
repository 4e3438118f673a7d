"""The split of a run on disk: images keep it, and a resumed run gets exactly its images."""

import json

import numpy as np
import pytest

from ftlit.data.dataset import SPLITS, Examples
from ftlit.data.images import to_rgb
from ftlit.data.splitting.duplicates import content_hashes
from ftlit.data.splitting.splits import SplitRule, assemble
from ftlit.data.splitting.stored_split import FILE, read_split, write_split
from ftlit.errors import UserError

FRACTIONS = {"val": 0.2, "test": 0.2}


def images(numbers, labels=None) -> Examples:
    return Examples(list(numbers), labels or [(i % 2,) for i in numbers], to_rgb, [np.array([i]) for i in numbers])


def stored(tmp_path, numbers=range(40), seed=5):
    collection = assemble({"train": images(numbers)}, ["a", "b"], SplitRule(FRACTIONS, seed))
    write_split(tmp_path, collection, {split: content_hashes(part) for split, part in collection.splits.items()})
    return collection


def values(collection):
    return {split: [int(content[0]) for content in part.contents] for split, part in collection.splits.items()}


def test_images_keep_the_split_of_the_run_and_others_are_split_by_their_hash(tmp_path):
    before = values(stored(tmp_path))
    collection = assemble({"train": images(range(-20, 40))}, ["a", "b"], SplitRule(FRACTIONS, 0, read_split(tmp_path)))
    after = values(collection)
    assert all(set(before[split]) <= set(after[split]) for split in before)
    assert sum(map(len, after.values())) == 60
    assert any("40 of 60 examples are in the same split as in the run" in note for note in collection.notes)


def test_data_without_any_image_of_the_run_get_a_note(tmp_path):
    """With `init_from`, a folder with tomorrow's photos only."""
    stored(tmp_path)
    (note,) = [
        note
        for note in assemble({"train": images(range(100, 140))}, ["a", "b"], SplitRule(FRACTIONS, 0, read_split(tmp_path))).notes
        if note.startswith("none of the")
    ]
    assert "none of the 40 examples of the run " in note and note.endswith("put both into one data set")


def test_images_that_the_data_give_as_test_are_neither_new_nor_missing(tmp_path):
    before = values(stored(tmp_path))
    rest = [number for number in range(40) if number not in before["test"]]
    collection = assemble(
        {"train": images(rest[1:]), "test": images(before["test"])}, ["a", "b"], SplitRule(FRACTIONS, 0, read_split(tmp_path))
    )
    note = next(note for note in collection.notes if "examples are in the same split" in note)
    assert note.endswith(", 0 are new; 1 example of that run is not in the data")


def test_a_group_whose_images_the_run_had_in_several_splits_goes_to_train(tmp_path):
    before = values(stored(tmp_path))
    together = [f"patient {i}" for i in range(40)]
    for number in (before["train"][0], before["test"][0]):
        together[number] = "both"
    grouped = Examples(list(range(40)), [(i % 2,) for i in range(40)], to_rgb, [np.array([i]) for i in range(40)], together)
    collection = assemble({"train": grouped}, ["a", "b"], SplitRule(FRACTIONS, 0, read_split(tmp_path)))
    assert before["test"][0] in values(collection)["train"]
    assert any(
        "39 of 40 examples are in the same split as in the run" in note
        and "; 1 is in another split now, because the data give that split, or a group is kept together" in note
        for note in collection.notes
    )


@pytest.mark.parametrize("keeps", [True, False])
def test_a_run_that_kept_groups_together_is_followed_with_groups_or_with_a_note(tmp_path, keeps):
    grouped = Examples(*[getattr(images(range(40)), name) for name in ("sources", "labels", "load", "contents")], ["a", "b", "c", "d"] * 10)
    collection = assemble({"train": grouped}, ["a", "b"], SplitRule(FRACTIONS, 0))
    write_split(tmp_path, collection, {split: content_hashes(part) for split, part in collection.splits.items()})
    again = assemble({"train": grouped if keeps else images(range(40))}, ["a", "b"], SplitRule(FRACTIONS, 0, read_split(tmp_path)))
    by_hash = f"new examples are split by a hash of each {'group' if keeps else 'example'} (split_seed=0)"
    assert again.notes[0].startswith(f"the split is that of the run {tmp_path}; {by_hash}")
    assert any("these data have no groups" in note for note in again.notes) is not keeps


def test_an_image_with_copies_in_train_and_test_of_the_run_counts_as_trained_on(tmp_path):
    splits = {"train": images(range(20)), "val": images(range(20, 24)), "test": images([0, 1, 30, 31])}
    collection = assemble(splits, ["a", "b"], SplitRule(FRACTIONS))
    write_split(tmp_path, collection, {split: content_hashes(part) for split, part in splits.items()})
    split_of = read_split(tmp_path).split_of
    assert [split_of[image] for image in content_hashes(splits["test"])] == ["train", "train", "test", "test"]


def test_a_resumed_run_gets_its_images_in_their_order_and_a_note_on_new_ones(tmp_path):
    before = stored(tmp_path)
    rule = SplitRule(FRACTIONS, 5, read_split(tmp_path, is_whole=True))
    again = assemble({"train": images([50, *reversed(range(40))])}, ["a", "b"], rule)
    assert values(again) == values(before) and again.class_names == before.class_names
    assert [part.labels for part in again.splits.values()] == [part.labels for part in before.splits.values()]
    assert again.notes == ["the resumed run keeps the examples that it began with; new ones are ignored (1): number 0 of train"]
    assert assemble({"train": images(range(40))}, ["a", "b"], rule).notes == []


def test_a_resumed_run_reads_each_split_of_the_data_from_its_own_data_set(tmp_path):
    shown = {split: [f"{split}{i}" for i in range(20)] for split in ("train", "test")}
    contents = {"train": [np.array([i]) for i in range(20)], "test": [np.array([i]) for i in range(20, 40)]}
    parts = {split: Examples(range(20), [(i % 2,) for i in range(20)], shown[split].__getitem__, contents[split]) for split in shown}
    before = assemble(parts, ["a", "b"], SplitRule(FRACTIONS, 5))
    write_split(tmp_path, before, {split: content_hashes(part) for split, part in before.splits.items()})
    again = assemble(parts, ["a", "b"], SplitRule(FRACTIONS, 5, read_split(tmp_path, is_whole=True)))
    for split in SPLITS:
        old, new = (found.splits[split] for found in (before, again))
        assert new.load is old.load and [new.load(source) for source in new.sources] == [old.load(source) for source in old.sources]


def test_a_new_class_does_not_change_the_class_numbers_of_a_resumed_run(tmp_path):
    stored(tmp_path)
    labels = [(0,), *((1 + i % 2,) for i in range(40))]
    rule = SplitRule(FRACTIONS, 5, read_split(tmp_path, is_whole=True))
    again = assemble({"train": images([99, *range(40)], labels)}, ["_", "a", "b"], rule)
    assert again.class_names == ["a", "b"] and {label for part in again.splits.values() for (label,) in part.labels} == {0, 1}


@pytest.mark.parametrize(
    ("numbers", "labels", "says"),
    [
        (range(1, 40), None, "found 1 example missing or changed .number 0 of train.: restore them"),
        (range(40), [(1,), (1,), *((i % 2,) for i in range(2, 40))], "found 1 example with other labels .number 0 of train.: restore them"),
    ],
)
def test_a_run_is_not_resumed_without_its_images(tmp_path, numbers, labels, says):
    stored(tmp_path)
    rule = SplitRule(FRACTIONS, 5, read_split(tmp_path, is_whole=True))
    with pytest.raises(UserError, match=says):
        assemble({"train": images(numbers, labels)}, ["a", "b"], rule)


def test_a_split_for_data_with_splits_and_damaged_files_are_one_line(tmp_path):
    stored(tmp_path)
    with pytest.raises(UserError, match="split_from has no effect"):
        whole = {split: images([i, i + 1]) for i, split in enumerate(("train", "val", "test"))}
        assemble(whole, ["a", "b"], SplitRule({}, 0, read_split(tmp_path)))
    for text in ("", "[]", "{}", json.dumps({"format": 1, "splits": {"train": 3}})):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            read_split(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="newer ftlit"):
        read_split(tmp_path)
    with pytest.raises(UserError, match=r"has no split\.json: give the folder of a run"):
        read_split(tmp_path / "other")


@pytest.mark.parametrize(("split", "may_change", "kept"), [("test", ["test"], True), ("train", ["test"], False), ("train", SPLITS, True)])
def test_a_file_that_training_has_not_read_may_change_in_a_resumed_run(tmp_path, split, may_change, kept):
    files = [tmp_path / f"{i}.png" for i in range(40)]
    for i, file in enumerate(files):
        file.write_bytes(b"%d" % i)
    examples = Examples(files, [(i % 2,) for i in range(40)], to_rgb, files)
    before = assemble({"train": examples}, ["a", "b"], SplitRule(FRACTIONS))
    write_split(tmp_path, before, {name: content_hashes(part) for name, part in before.splits.items()})
    changed = before.splits[split].contents[0]
    rule = SplitRule(FRACTIONS, 0, read_split(tmp_path, is_whole=True, may_change=may_change))
    changed.write_bytes(b"repaired")
    if not kept:
        with pytest.raises(UserError, match="1 example missing or changed"):
            assemble({"train": examples}, ["a", "b"], rule)
        return
    again = assemble({"train": examples}, ["a", "b"], rule)
    assert [part.contents for part in again.splits.values()] == [part.contents for part in before.splits.values()]
    assert again.notes == [f"files have changed since the run began (1), but training has not used any of them so far: {changed}"]
    changed.write_bytes(before.splits["val"].contents[0].read_bytes())
    with pytest.raises(UserError, match="1 example missing or changed"):  # a copy of an image of the run
        assemble({"train": examples}, ["a", "b"], rule)
