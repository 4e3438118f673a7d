"""The text of the advice: every reason has sentences, with the numbers on which the decision is based."""

from dataclasses import replace

import pytest

from ftlit.probes.advice import THRESHOLDS, CutReason, DecisionNumbers, Depth, Reason, SizeReason
from ftlit.recipes.console.advice_text import describe

NUMBERS = DecisionNumbers(
    images_per_class=108.0,
    steps=337.0,
    probe_error=0.012,
    measured_images=50,
    best=Depth("layer3", 0.96, 0.3),
    most_accurate=Depth("layer4", 0.95, 0.22),
    top=Depth("layer4", 0.95, 0.22),
    full_scenario="large_similar",
)
UNMEASURED = {SizeReason.RANDOM_WEIGHTS, SizeReason.NOT_MEASURABLE, SizeReason.ONE_PER_CLASS}


@pytest.mark.parametrize("size", SizeReason)
@pytest.mark.parametrize("cut", CutReason)
def test_every_reason_has_a_text_in_sentences(size, cut):
    reason = Reason(size) if size in UNMEASURED else Reason(size, cut, NUMBERS, requested="optimizer.lr=1e-3")
    text = describe(reason, "photos")
    assert text.endswith(".") and "\n" not in text and ("photo" in text or size is SizeReason.RANDOM_WEIGHTS)
    if size not in UNMEASURED:
        assert "108 training photos per class" in text and "layer4 (accuracy 0.950 on held-out photos, LogME 0.22)" in text
        assert ("layer3" in text) == cut.startswith("lower")
        assert ("because of optimizer.lr=1e-3" in text) == (size is SizeReason.REQUESTED)
        assert ("a linear probe already reaches an accuracy of 98.8%" in text) == (size is SizeReason.LITTLE_TO_GAIN)


def test_the_text_gives_thresholds_that_were_not_reached():
    assert f"(fewer than {THRESHOLDS['few'].value:g})" in describe(Reason(SizeReason.FEW_IMAGES, None, NUMBERS), "images")
    assert f"(at least {THRESHOLDS['steps'].value:g} are needed)" in describe(Reason(SizeReason.FEW_STEPS, None, NUMBERS), "images")
    assert "(minimum 40)" in describe(Reason(SizeReason.FEW_IMAGES, CutReason.TOO_FEW_TO_CHOOSE, NUMBERS), "images")


@pytest.mark.parametrize("size", [size for size in SizeReason if size not in UNMEASURED])
def test_the_smallest_class_is_named_where_the_average_hides_that_it_has_few_images(size):
    reason = Reason(size, None, NUMBERS)
    text = describe(reason, "images", {"dog": 205, "cat": 11})
    assert "108 training images per class on average (the smallest class, cat, has 11) " in text
    for counts in ({"dog": 5, "cat": 5}, {"dog": 186, "cat": 30}):
        assert "108 training images per class a" in describe(reason, "images", counts)


def test_a_lower_layer_that_is_more_accurate_and_not_taken_is_named_with_the_reason():
    numbers = replace(NUMBERS, most_accurate=Depth("layer2", 0.98, 0.1))
    text = describe(Reason(SizeReason.FEW_IMAGES, CutReason.TOP_BY_ACCURACY_AND_LOGME, numbers), "images")
    assert "than the top layer: layer2 (accuracy 0.980 on held-out images, LogME 0.10) and the top layer layer4 (" in text
    assert (
        "No layer is dropped, because no lower layer has both a higher accuracy and a higher LogME" in text and "No lower layer" not in text
    )


def test_the_text_names_a_scenario_without_a_given_setting():
    text = describe(Reason(SizeReason.ONE_PER_CLASS, misfit="small_similar"), "images")
    assert (
        "small_similar would be the choice, but it does not accept one of the given settings: scenario=large_similar is used instead."
        in text
    )
