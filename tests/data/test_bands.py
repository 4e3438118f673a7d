"""Bands: their values reach the network unscaled (8 bits: divided by 255), whatever the file and the order of its axes."""

import numpy as np
import pytest
import torch
from PIL import Image

from ftlit.data.bands import read_bands, to_bands
from ftlit.data.images import BadImage, as_read, image_reader
from ftlit.data.input_spec import InputSpec
from ftlit.data.pictures import describe_pictures, picture_of
from ftlit.data.pixels import SplitView
from ftlit.data.transforms import AUGMENTS, COLOUR_AUGMENTS, check_image_tensor, eval_transform, train_transform
from ftlit.errors import UserError
from ftlit.features.stored_pixels import StoredPixels

SPEC = InputSpec(size=8, mean=(0, 0, 0, 0), std=(1, 1, 1, 1), channels=4)
VALUES = np.arange(8 * 8 * 4).reshape(8, 8, 4)


def saved(path, values):
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        pytest.importorskip("tifffile").imwrite(path, values, photometric="minisblack")
    return path


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".TIFF"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, ">u2", np.float32, np.float64])
def test_files_are_read_with_their_values_in_either_order_of_the_axes(tmp_path, suffix, dtype):
    values = VALUES.astype(dtype)
    paths = [saved(tmp_path / f"{name}{suffix}", array) for name, array in (("last", values), ("first", np.moveaxis(values, 2, 0)))]
    for path in paths:
        bands = read_bands(path, 4)
        assert bands.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
        assert np.array_equal(bands.numpy(), np.moveaxis(VALUES, 2, 0))
        scale = 1 / 255 if dtype == np.uint8 else 1
        assert torch.equal(eval_transform(SPEC)(image_reader(SPEC)(path)), bands * scale)


def test_pillow_reads_the_bands_of_other_formats_without_blending(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    Image.fromarray(values, "RGBA").save(tmp_path / "a.png")
    for read in (image_reader(SPEC)(tmp_path / "a.png"), as_read(Image.fromarray(values, "RGBA"), SPEC)):
        assert np.array_equal(read.numpy(), np.moveaxis(values, 2, 0))


def test_values_that_are_not_finite_become_the_mean_of_their_band(tmp_path):
    values = VALUES.astype(np.float32)
    values[0, 0], values[1, 1, 2] = np.nan, -np.inf
    spec = InputSpec(size=8, mean=(5, 6, 7, 8), std=2, channels=4)
    seen = eval_transform(spec)(image_reader(spec)(saved(tmp_path / "a.npy", values)))
    assert seen[:, 0, 0].tolist() == [0] * 4 and seen[2, 1, 1] == 0 and seen[0, 1, 1] != 0 and seen.isfinite().all()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (np.zeros((8, 8, 3)), "{} has 3 bands, but backbone.in_chans=4: give images of 4 bands"),
        (np.zeros((5, 8, 8)), "{} has 5 bands, but backbone.in_chans=4: give images of 4 bands"),
        (np.zeros((8, 8)), "{} has 1 band, but backbone.in_chans=4: give images of 4 bands"),
        (np.zeros(7), "{} has the shape 7, but backbone.in_chans=4: give images of 4 bands"),
        (
            np.zeros((8, 8, 4), complex),
            "{} has complex128 values, but the values of a band must be real numbers: convert the image to float32",
        ),
        (np.full((8, 8, 4), np.nan), "{} has only NaN or infinite values: replace or remove this image"),
        (
            np.array([{}] * 4),
            "{} cannot be read as an image: replace or remove the file (Object arrays cannot be loaded when allow_pickle=False)",
        ),
    ],
)
def test_other_files_are_errors_of_one_line(tmp_path, values, line):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(BadImage) as raised:
        read_bands(tmp_path / "a.npy", 4)
    assert str(raised.value) == line.format(tmp_path / "a.npy")
    with pytest.raises(BadImage, match="there is no file"):
        read_bands(tmp_path / "none.npy", 4)
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(BadImage, match="cannot be read as an image"):
        read_bands(tmp_path / "b.npy", 4)


def test_without_tifffile_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    (tmp_path / "a.tif").touch()
    with pytest.raises(BadImage, match=r'a.tif needs the package tifffile: pip install "ftlit\[bands\]"'):
        read_bands(tmp_path / "a.tif", 4)


@pytest.mark.parametrize("augment", AUGMENTS)
def test_bands_are_cropped_and_flipped_and_what_changes_colours_is_an_error(augment):
    if augment in COLOUR_AUGMENTS:
        with pytest.raises(UserError, match=f"data.augment={augment} changes colours, .* backbone.in_chans=4: give data.augment=photo"):
            train_transform(SPEC, augment)
        return
    view = train_transform(SPEC, augment)
    for image in (torch.rand(4, 20, 13), torch.randint(0, 256, (4, 20, 13), dtype=torch.uint8)):
        torch.manual_seed(0)
        seen = view(image)
        assert seen.shape == (4, 8, 8) and seen.dtype == torch.float32 and type(seen) is torch.Tensor
        torch.manual_seed(0)
        assert torch.equal(SplitView.of(view)(image), seen)
    assert StoredPixels.of(view) is None


@pytest.mark.parametrize("augment", AUGMENTS)
def test_an_image_in_grey_is_one_channel_of_its_copy_in_three(augment):
    values = np.random.default_rng(0).integers(0, 256, (20, 13), dtype=np.uint8)
    image = Image.fromarray(values).convert("RGB")
    seen = []
    for spec in (InputSpec(size=8, mean=0.5, std=0.5), InputSpec(size=8, mean=0.5, std=0.5, channels=1)):
        torch.manual_seed(0)
        seen.append(train_transform(spec, augment)(image))
    assert seen[1].shape == (1, 8, 8)
    if augment not in COLOUR_AUGMENTS:  # which may tint a grey image
        assert torch.equal(seen[1], seen[0][:1])


def test_mean_and_std_of_bands_have_to_be_known_for_a_view():
    with pytest.raises(UserError, match=r"mean and std of the 4 bands are not known: give backbone.input_spec.mean=\[...\]"):
        InputSpec().with_channels(4).views()


@pytest.mark.parametrize(
    ("channels", "image", "fault"),
    [
        (1, torch.zeros(3, 4, 4), r"has the shape \(3, 4, 4\): give a grey image of shape \(1, H, W\)"),
        (4, torch.zeros(3, 4, 4), r"has the shape \(3, 4, 4\): give an image of shape \(4, H, W\)"),
        (4, torch.full((4, 4, 4), torch.nan), "has NaN or infinite values"),
        (4, torch.zeros(4, 4, 4, dtype=torch.int16), "has the type torch.int16: give finite floats, or uint8"),
    ],
)
def test_tensors_of_other_channels_are_errors(channels, image, fault):
    with pytest.raises(UserError, match=fault):
        check_image_tensor(image, InputSpec().with_channels(channels))
    check_image_tensor(torch.full((4, 3, 3), 1e4), SPEC)


def test_pictures_show_the_first_three_bands():
    shown = picture_of(torch.tensor([-2.0, 0.0, 2.0, 9.0]).view(4, 1, 1).expand(4, 2, 2), SPEC)
    assert shown[:, 0, 0].tolist() == [0, 0.5, 1]
    two = picture_of(torch.tensor([0.0, 2.0]).view(1, 2, 1, 1), InputSpec(mean=0, std=1, channels=2))
    assert two.flatten().tolist() == [0.5] * 3
    assert describe_pictures(SPEC).startswith("the first three of 4 bands as red, green and blue")
    assert not describe_pictures(InputSpec()) and not describe_pictures(InputSpec().with_channels(1))


def test_values_of_an_ambiguous_shape_have_the_bands_last():
    values = np.arange(16.0).reshape(4, 1, 4)
    assert np.array_equal(to_bands(values, 4).numpy(), np.moveaxis(values, 2, 0))
