"""Invariants of the split by hashes: an image keeps its split when others are added or removed."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ftlit.data.splitting.hash_split import split_by_hash

FRACTIONS = {"val": 0.2, "test": 0.2}
classes = st.lists(st.integers(0, 4), min_size=1, max_size=80)
fraction = st.floats(0.01, 0.45)


def sides(numbers, fractions=FRACTIONS, seed=0, units=None, **how):
    units = [f"image {i}" for i in range(len(numbers))] if units is None else units
    parts = split_by_hash(units, [(number,) for number in numbers], fractions, seed, **how)
    return {units[i]: split for split, places in parts.places.items() for i in places}, parts


@given(classes, fraction, fraction, st.integers(0, 9))
def test_the_parts_partition_the_images_and_classes_have_what_they_can(numbers, val, test, seed):
    _, parts = sides(numbers, {"val": val, "test": test}, seed)
    assert sorted(place for places in parts.places.values() for place in places) == list(range(len(numbers)))
    for number, count in Counter(numbers).items():
        of_class = {split: sum(numbers[place] == number for place in places) for split, places in parts.places.items()}
        assert of_class["train"] >= 1
        if min(Counter(numbers).values()) > 2:
            assert of_class["test"] >= 1 and of_class["val"] >= 1
        assert count > 1 or of_class["train"] == 1


@given(classes, st.lists(st.integers(0, 6), max_size=60), st.integers(0, 9))
def test_images_that_are_added_move_at_most_those_that_were_moved(numbers, added, seed):
    (before, first), (after, second) = sides(numbers, seed=seed), sides([*numbers, *added], seed=seed)
    moved = Counter(number for parts in (first, second) for several in parts.moved.values() for number in several)
    changed = Counter(number for i, number in enumerate(numbers) if before[f"image {i}"] != after[f"image {i}"])
    assert all(count <= moved[number] for number, count in changed.items())


def test_of_large_classes_no_image_moves_and_the_sizes_are_about_right():
    before, parts = sides([0, 1] * 300)
    after, _ = sides([0, 1] * 300 + [1, 2, 3] * 40)
    assert not parts.moved and all(after[unit] == split for unit, split in before.items())
    sizes = Counter(before.values())
    assert all(abs(sizes[split] - 120) < 40 for split in FRACTIONS)


def test_another_seed_gives_another_split_and_the_order_of_the_images_does_not_matter():
    numbers = [0, 1] * 50
    assert sides(numbers, seed=0)[0] != sides(numbers, seed=1)[0]
    units = [f"image {i}" for i in range(100)]
    assert sides(numbers[::-1], units=units[::-1])[0] == sides(numbers, units=units)[0]


def test_a_larger_val_fraction_leaves_test_as_it_is():
    few, many = (sides([0] * 200, {"val": val, "test": 0.2})[0] for val in (0.1, 0.4))
    assert {u for u, split in few.items() if split == "test"} == {u for u, split in many.items() if split == "test"}


def test_a_split_never_changes_between_versions():
    assert split_by_hash([str(i) for i in range(12)], [(0,)] * 12, FRACTIONS, 0).places == PINNED


def test_units_keep_the_split_that_is_known():
    known = {f"image {i}": "test" for i in range(30)}
    found, _ = sides([0] * 100, known=known)
    assert all(found[unit] == "test" for unit in known)


PINNED = {"train": [0, 3, 5, 8, 9, 11], "val": [1, 2, 7, 10], "test": [4, 6]}
