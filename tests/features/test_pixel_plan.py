"""Stages that train on images read stored pixels: when, and the reason in the plan."""

import pytest

from ftlit.data.input_spec import InputSpec
from ftlit.data.transforms import eval_transform, train_transform
from ftlit.errors import UserError
from ftlit.features.pixel_plan import StorablePixels, with_pixels
from ftlit.features.spec import FeatureSpec
from ftlit.features.stage_input import StageInput
from ftlit.features.stored_pixels import StoredPixels

FORMS = {"train": StoredPixels.of(train_transform(InputSpec(size=48))), "val": StoredPixels.of(eval_transform(InputSpec(size=48)))}
PIXELS = StorablePixels(FORMS, {"train": 100, "val": 10}, in_files=True)
BYTES = 100 * (3 * 96**2 + 8) + 10 * 3 * 48**2
INPUTS = [StageInput((FeatureSpec("top", None),), 1000, "features at top"), StageInput((), 0, "images, because all layers train")]


def chosen(readings=(5, 2), pixels=PIXELS, choice="auto", max_bytes=BYTES + 1000) -> list[bool]:
    return [stage_input.pixels for stage_input in with_pixels(INPUTS, readings, pixels, choice, max_bytes)]


def test_stages_that_train_on_images_twice_or_more_read_stored_pixels():
    features, images = with_pixels(INPUTS, [5, 2], PIXELS, "auto", BYTES + 1000)
    assert features is INPUTS[0] and images.pixels and images.bytes == BYTES
    assert images.reason.endswith("; crops of stored pixels, 96 px (cache.pixels=false decodes the images in each epoch)")
    assert chosen() == [False, True] and chosen(readings=(5, 1.5)) == [False, False]


def test_images_in_memory_are_stored_only_on_request():
    in_memory = StorablePixels(FORMS, PIXELS.images, in_files=False)
    assert not any(chosen(pixels=in_memory)) and any(chosen(pixels=in_memory, choice=True, readings=(1, 1)))
    assert not any(chosen(choice=False)) and not any(chosen(pixels=None))


def test_pixels_that_do_not_fit_beside_the_features_are_not_stored_and_the_plan_says_so():
    (_, images) = with_pixels(INPUTS, [5, 2], PIXELS, "auto", BYTES + 999)
    sizes = f"{BYTES:,} B, but cache.max_gb leaves room for only {BYTES - 1:,} B"
    assert not images.pixels and images.reason.endswith(f"px would need {sizes}")
    with pytest.raises(UserError, match=f"^cache.pixels=true needs {sizes}: give cache.max_gb=1, or"):
        chosen(choice=True, max_bytes=BYTES + 999)
