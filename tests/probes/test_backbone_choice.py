"""The choice among backbones, on measurements that a reader can hold in mind."""

import pytest
import torch

from ftlit.errors import UserError
from ftlit.probes.backbone_choice import MeasuredBackbone, choose_backbone

IMAGES = 100


def right(*wrong: int) -> torch.Tensor:
    """All images right but these."""
    correct = torch.ones(IMAGES, dtype=torch.bool)
    correct[list(wrong)] = False
    return correct


def choice(speeds: dict[str, float], correct: dict[str, torch.Tensor], images: int = IMAGES):
    asked = []

    def measure(name, number):
        asked.append((name, number))
        return MeasuredBackbone(correct[name], speeds[name], 4)

    return choose_backbone(list(speeds), measure, images), asked


def test_within_one_standard_error_of_the_difference_the_faster_one_wins():
    correct = {"slow": right(*range(4)), "fast": right(*range(5))}  # one error more: its standard error is .00995
    assert choice({"slow": 1, "fast": 9}, correct)[0].chosen == "slow"
    correct["fast"] = right(1, 2, 3, 4, 5)  # two images differ in either direction
    found = choice({"slow": 1, "fast": 9}, correct)[0]
    assert (found.chosen, found.most_accurate) == ("fast", "slow")


def test_the_standard_error_is_that_of_paired_results():
    one, other = (MeasuredBackbone(correct, 1, 4) for correct in (right(0, 1), right(*range(10))))
    assert one.is_within_one_error(other) and not other.is_within_one_error(one)  # eight errors more, at a standard error of .027
    assert one.accuracy == pytest.approx(0.98) and one.standard_error == pytest.approx(0.014)


def test_equal_ones_are_told_apart_by_their_speed():
    assert choice({"a": 1, "b": 2, "c": 1.5}, dict.fromkeys("abc", right(3)))[0].chosen == "b"


def test_the_worse_half_is_left_out_of_the_next_round():
    correct = {name: right(*range(errors)) for name, errors in {"a": 9, "b": 1, "c": 40, "d": 3, "e": 20}.items()}
    found, asked = choice(dict.fromkeys("abcde", 1.0), correct, 5000)
    assert asked == [(name, 200) for name in "abcde"] + [(name, 632) for name in "bda"] + [(name, 2000) for name in "bd"]
    assert found.images == {"a": 632, "b": 2000, "c": 200, "d": 2000, "e": 200} and list(found.measured) == list("abcde")


@pytest.mark.parametrize(("images", "sizes"), [(150, [150]), (200, [200]), (700, [200, 700]), (9000, [200, 2000])])
def test_no_more_images_are_asked_for_than_there_are(images, sizes):
    _, asked = choice(dict.fromkeys("abcd", 1.0), dict.fromkeys("abcd", right()), images)
    assert sorted({size for _, size in asked}) == sizes and len(asked) == 4 + 2 * (len(sizes) - 1)


def test_two_are_compared_on_all_that_may_be_asked_for():
    assert choice({"a": 1.0, "b": 2.0}, {"a": right(), "b": right()}, 9000)[1] == [("a", 2000), ("b", 2000)]


def test_a_dropped_one_is_not_chosen_for_its_speed():
    correct = {"a": right(), "b": right(), "fast": right(*range(50))}
    assert choice({"a": 1.0, "b": 2.0, "fast": 99.0}, correct, 5000)[0].chosen == "b"


def test_without_candidates_there_is_no_choice():
    with pytest.raises(UserError, match="at least one"):
        choose_backbone([], lambda *_: None, 10)
