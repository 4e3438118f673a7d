"""The preparation inside an exported file gives the pixels of `eval_transform`, to one of 255 levels, for images of any size."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import normalize

from ftlit import UserError
from ftlit.data.input_spec import InputSpec
from ftlit.data.transforms import eval_transform
from ftlit.export.preparation import Preparation

SIDES = [(48, 48), (47, 96), (33, 31), (100, 61), (61, 200), (40, 41), (5, 9), (1, 3), (400, 301)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "size"), [(40, 32), (37, 32), (32, 32)])
def test_pixels_are_those_of_the_evaluation_view(channels, interpolation, resize, size):
    spec = InputSpec(size, resize, 0.0, 1.0, interpolation, channels=channels)
    prepare, view, generator = Preparation(spec), eval_transform(spec), np.random.default_rng(0)
    for height, width in SIDES:
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        expected = normalize(view(image), [0.0] * channels, [1.0] * channels)
        found = prepare(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])[0]
        assert found.shape == expected.shape == (channels, size, size)
        difference = (found - expected).abs() * 255
        assert difference.max() <= 2.001 and difference.mean() < 0.1, (height, width, difference.max())  # both round twice


def test_an_image_that_is_far_taller_than_wide_differs_a_little_because_pillow_resizes_its_rows_first():
    spec = InputSpec(32, 40, 0.0, 1.0, "bicubic")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 61, 3), dtype=np.uint8))
    found = Preparation(spec)(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])[0]
    assert (found - eval_transform(spec)(image)).abs().mean() * 255 < 0.5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (InputSpec(32, None, 0.5, 1.0, channels=4), "this network takes 4 bands: leave this option out"),
        (InputSpec(32, interpolation="lanczos"), "resizes by bilinear or bicubic, but this network takes images resized by lanczos"),
    ],
)
def test_what_cannot_be_prepared_is_an_error(spec, message):
    with pytest.raises(UserError, match=message):
        Preparation(spec)
