"""Stored pixels: evaluation views to the bit, crops with the boxes and flips of the view, keys that all networks of one geometry share."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ftlit.data.images import image_reader
from ftlit.data.input_spec import InputSpec
from ftlit.data.tokens import TextSpec
from ftlit.data.transforms import eval_transform, train_transform
from ftlit.errors import UserError
from ftlit.features.store import Store
from ftlit.features.stored_pixels import StoredPixels, write_pixels
from ftlit.features.table import Rows

SPEC = InputSpec(size=48, resize=56)


def picture(width: int = 90, height: int = 70) -> Image.Image:
    """Smooth, and different at each place and in each channel."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return Image.fromarray((255 * np.stack([x, y, (x + y) / 2], axis=-1)).astype(np.uint8))


def test_an_evaluation_view_is_read_to_the_bit():
    view, image = eval_transform(SPEC), picture()
    form = StoredPixels.of(view)
    row = form.write(image)
    assert row.dtype == torch.uint8 and tuple(row.shape) == form.shape == (3, 48, 48) and form.row_bytes == row.nbytes
    assert torch.equal(form.view(row), view(image))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(90, 70), (20, 300)])
def test_a_crop_has_the_box_and_the_flip_that_the_view_draws_in_the_image(interpolation, size):
    spec = replace(SPEC, interpolation=interpolation, mean=(0.0,) * 3, std=(1.0,) * 3)
    view, image = train_transform(spec), picture(*size)
    form = StoredPixels.of(view)
    row = form.write(image)
    assert form.row_bytes == row.nbytes == 3 * 96**2 + 8  # 96 is the multiple of 32 above 48 / sqrt(0.35)
    for seed in range(20):
        torch.manual_seed(seed)
        expected, after = view(image), torch.rand(1)
        torch.manual_seed(seed)
        crop = form.view(row)
        assert torch.equal(torch.rand(1), after)  # as many random numbers
        assert (crop - expected).abs().mean() < 0.015 and (crop - expected).abs().max() < 0.06


def test_the_key_is_that_of_all_networks_of_one_geometry():
    def digest(spec, view=train_transform):
        return StoredPixels.of(view(spec)).key(image_reader(spec)).digest

    normalised = replace(SPEC, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    others = [replace(SPEC, size=30), replace(SPEC, resize=64), replace(SPEC, interpolation="nearest"), replace(SPEC, grey_range=(0, 9))]
    for view in (train_transform, eval_transform):
        assert digest(normalised, view) == digest(SPEC, view)
        assert digest(SPEC, view) not in {digest(other, view) for other in others}
    assert digest(SPEC) != digest(SPEC, eval_transform)


def test_other_views_are_not_stored(tmp_path):
    assert StoredPixels.of(train_transform(SPEC, "trivial_augment")) is None and StoredPixels.of(str.upper) is None
    assert StoredPixels.of(TextSpec.views) is None


def test_images_of_another_type_are_an_error_that_names_the_option():
    with pytest.raises(UserError, match=r"stores only RGB images of 8 bits per channel, not 3 channels of float32: give"):
        StoredPixels.of(train_transform(SPEC)).write(torch.rand(3, 60, 60))


def test_rows_are_mapped_again_in_a_process_that_is_not_forked(tmp_path):
    form = StoredPixels.of(eval_transform(SPEC))
    table = Store(tmp_path).table(form.key(abs))
    hashes = np.array([b"a" * 32, b"b" * 32])
    write_pixels(table, [(hashes, torch.stack([form.write(picture(width)) for width in (60, 80)]))])
    table.refresh()
    sent = pickle.dumps(Rows(table, hashes[::-1]))
    assert len(sent) < 10_000 and torch.equal(pickle.loads(sent).view(0), form.write(picture(80)))
