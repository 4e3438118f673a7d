"""Input of the network: sizes, normalisation, the evaluation view, and valid input specs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ftlit.data.input_spec import InputSpec
from ftlit.data.transforms import AUGMENTS, eval_transform, train_transform
from ftlit.errors import UserError

side = st.integers(1, 60)
INTERPOLATIONS = ["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def views(spec: InputSpec) -> list:
    return [eval_transform(spec), *(train_transform(spec, augment) for augment in AUGMENTS)]


@given(side, side, st.integers(0, 4))
def test_every_view_is_a_float32_square_for_any_aspect_ratio(width, height, more):
    for view in views(InputSpec(size=8, resize=8 + more)):
        seen = view(noise(width, height))
        assert (seen.shape, seen.dtype, type(seen)) == ((3, 8, 8), torch.float32, torch.Tensor)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_interpolation_of_torchvision_is_supported(interpolation):
    for view in views(InputSpec(size=8, resize=9, interpolation=interpolation)):
        assert view(noise(13, 21)).shape == (3, 8, 8)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (13, 128, 240)])
def test_a_constant_image_is_normalised_exactly(colour, interpolation):
    spec = InputSpec(size=8, resize=11, mean=(0.4, 0.5, 0.25), std=(0.2, 0.3, 1.0), interpolation=interpolation)
    expected = (torch.tensor(colour) * (1 / 255) - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    for view in (eval_transform(spec), train_transform(spec, "none"), train_transform(spec, "photo")):
        assert torch.equal(view(Image.new("RGB", (37, 19), colour)), expected.view(3, 1, 1).expand(3, 8, 8))


def test_the_evaluation_view_is_the_centre_of_the_resized_image():
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (10, 0, 30, 20))  # the middle half
    seen = eval_transform(InputSpec(size=8, mean=0, std=1, interpolation="box"))(image)
    assert torch.equal(seen, torch.ones(3, 8, 8))
    wider = eval_transform(InputSpec(size=8, resize=10, mean=0, std=1))(noise(10, 10))
    assert torch.equal(wider, torch.from_numpy(np.array(noise(10, 10))).permute(2, 0, 1)[:, 1:9, 1:9] * (1 / 255))


def test_augment_none_equals_the_evaluation_view_and_is_not_random():
    spec, image, random_state = InputSpec(size=8, resize=10), noise(31, 17), torch.get_rng_state()
    seen = eval_transform(spec)(image)
    assert torch.equal(train_transform(spec, "none")(image), seen)
    assert torch.equal(eval_transform(spec)(image), seen)
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("augment", [name for name in AUGMENTS if name != "none"])
def test_an_augmented_view_depends_on_the_random_state_of_torch_only(augment):
    view, image = train_transform(InputSpec(size=16), augment), noise(40, 30)

    def seen(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [view(image) for _ in range(4)]

    assert all(torch.equal(a, b) for a, b in zip(seen(0), seen(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(seen(0), seen(1), strict=True))


def test_a_random_crop_keeps_min_scale_of_the_area():
    """Red and green encode the position: their ranges in a crop give the part of the area that it keeps."""
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(64)[None] * 4, np.arange(64)[:, None] * 4
    torch.manual_seed(0)
    for min_scale in (0.1, 0.35, 0.8):
        view = train_transform(InputSpec(size=64, mean=0, std=1, interpolation="nearest"), min_scale=min_scale)
        spans = [(seen.amax((1, 2)) - seen.amin((1, 2)))[:2] * 255 / 4 + 1 for seen in (view(Image.fromarray(ramp)) for _ in range(60))]
        kept = torch.stack([span.prod() for span in spans]) / 64**2
        assert min_scale - 0.03 < kept.min() < min_scale + 0.15  # whole pixels, and the smallest of 60


@pytest.mark.parametrize("given_mean", [0.5, [0.5, 0.5, 0.5], (0.5, 0.5, 0.5), np.full(3, 0.5)])
def test_one_number_is_used_for_three_channels_and_specs_compare_by_value(given_mean):
    assert InputSpec(mean=given_mean, std=1) == InputSpec(mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    assert hash(InputSpec(mean=given_mean)) == hash(InputSpec(mean=(0.5, 0.5, 0.5)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": [0.5, 0.5]}, "input_spec.mean=[0.5, 0.5]: give one number or three (red, green, blue)"),
        ({"std": []}, "input_spec.std=[]: give one number or three"),
        ({"mean": "abc"}, "input_spec.mean=abc: give one number or three"),
        ({"grey_range": ["a", 1]}, "input_spec.grey_range=['a', 1]: give two finite numbers, the grey value of black"),
        ({"mean": 2e12}, "give values from -1e+12 to 1e+12"),
        ({"grey_range": [0, 1e13]}, "input_spec.grey_range=(0.0, 10000000000000.0): give values from -1e+12 to 1e+12"),
        ({"std": 0}, "give values above 0"),
        ({"std": [1, 1, -1]}, "give values above 0"),
        ({"size": 0}, "input_spec.size=0: give a whole number of pixels, 1 or more"),
        ({"size": 32, "resize": 31}, "input_spec.resize=31 is below input_spec.size=32: give input_spec.resize=32 or more"),
        ({"interpolation": "bilinaer"}, "input_spec.interpolation=bilinaer is not valid: did you mean 'bilinear'?"),
    ],
)
def test_a_field_out_of_its_range_is_an_error(fields, message):
    with pytest.raises(UserError) as caught:
        InputSpec(**fields)
    assert message in str(caught.value)


def test_an_unknown_augment_is_an_error_with_the_closest_match():
    with pytest.raises(UserError, match="augment=trivial is not valid: did you mean 'trivial_augment'"):
        train_transform(InputSpec(), "trivial")
