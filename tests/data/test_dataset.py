"""Images are read as RGB from any file, and mixed into batches."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from ftlit.data.collate import MixedCollate
from ftlit.data.dataset import Collection, Examples, LabelledImages
from ftlit.data.images import BadImage, image_reader, read_image, to_rgb
from ftlit.data.input_spec import InputSpec
from ftlit.data.transforms import eval_transform
from ftlit.errors import UserError

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "I;16B"]
SUFFIXES = {"1": "png", "LA": "png", "RGBA": "webp", "CMYK": "jpg", "I;16": "png", "I": "tiff", "F": "tiff", "P": "gif", "L": "bmp"}


def corner(image: Image.Image):
    return image.getpixel((0, 0))


@given(mode=st.sampled_from(MODES), width=st.integers(1, 40), height=st.integers(1, 40))
@settings(max_examples=60)
def test_every_mode_becomes_rgb_of_the_same_size(mode, width, height):
    image = to_rgb(Image.new(mode, (width, height)))
    assert (image.mode, image.size) == ("RGB", (width, height))


@pytest.mark.parametrize(("mode", "suffix"), SUFFIXES.items())
def test_every_unusual_file_reads_as_rgb(tmp_path, mode, suffix):
    Image.new(mode, (7, 5)).save(tmp_path / f"x.{suffix}")
    image = read_image(tmp_path / f"x.{suffix}")
    assert (image.mode, image.size) == ("RGB", (7, 5))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_undone(tmp_path, suffix, orientation):
    upright = Image.new("RGB", (64, 32), "black")
    upright.paste("white", (0, 0, 16, 16))
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = upright if orientation == 1 else upright.transpose(stored[orientation])
    turned.save(tmp_path / f"x.{suffix}", exif=exif)
    image = read_image(tmp_path / f"x.{suffix}")
    assert image.size == (64, 32)
    assert np.abs(np.asarray(image, int) - np.asarray(upright, int)).max() < 30  # JPEG is not exact


def test_transparent_images_are_blended_with_white(tmp_path):
    red = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert corner(to_rgb(red)) == (255, 255, 255)
    assert corner(to_rgb(Image.new("RGBA", (4, 4), (255, 0, 0, 128)))) == (255, 127, 127)
    assert corner(to_rgb(Image.new("LA", (4, 4), (0, 0)))) == (255, 255, 255)
    palette = Image.new("RGB", (4, 4), "red").convert("P")
    palette.save(tmp_path / "p.png", transparency=corner(palette))
    assert corner(read_image(tmp_path / "p.png")) == (255, 255, 255)
    Image.new("L", (4, 4), 9).save(tmp_path / "l.png", transparency=9)
    assert corner(read_image(tmp_path / "l.png")) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16)).save(tmp_path / f"x.{suffix}")
    assert np.asarray(read_image(tmp_path / f"x.{suffix}"))[0, :, 1].tolist() == [0, 1, 128, 255]


def test_sixteen_bits_in_a_32_bit_mode_are_scaled(tmp_path):
    (tmp_path / "x.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 65535, 257))
    assert np.asarray(read_image(tmp_path / "x.pgm"))[0, :, 0].tolist() == [255, 1]


@pytest.mark.parametrize(("values", "greys"), [([0, 0.2, 1], [0, 51, 255]), ([0, 51, 255], [0, 51, 255]), ([-5, np.nan, 1000], [0, 0, 4])])
def test_floats_are_scaled_by_their_range(tmp_path, values, greys):
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "x.tiff")
    assert np.asarray(read_image(tmp_path / "x.tiff"))[0, :, 0].tolist() == greys


@pytest.mark.parametrize("size", [(1, 1), (3000, 2000), (5, 400)])
def test_images_of_any_size_fit_the_network(tmp_path, size):
    Image.new("L", size).save(tmp_path / "x.jpg")
    spec = InputSpec(size=32)
    assert eval_transform(spec)(image_reader(spec)(tmp_path / "x.jpg")).shape == (3, 32, 32)


def test_a_jpeg_decoded_at_reduced_size_is_large_enough_and_looks_the_same(tmp_path):
    rows, columns = np.mgrid[0:1200, 0:1600]
    photo = np.stack([127 + 127 * np.sin(rows / 37), 127 + 127 * np.cos(columns / 23), (rows + columns) / 11], axis=2).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "x.jpg", quality=95)
    spec = InputSpec(size=64)
    small = image_reader(spec)(tmp_path / "x.jpg")
    assert 128 <= min(small.size) < 1200
    views = [eval_transform(spec)(image) for image in (small, read_image(tmp_path / "x.jpg"))]
    assert (views[0] - views[1]).abs().mean() * 0.225 * 255 < 1


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no image at all", lambda b: b[:20]])
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp"])
def test_the_error_for_a_damaged_file_is_one_line_with_its_name(tmp_path, suffix, damage):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"line\nbreak.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadImage, match=r"line\\nbreak") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def one_bad(tmp_path: Path) -> Collection:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    paths = [tmp_path / "good.png", tmp_path / "bad.png"]
    examples = Examples(paths, [(0,), (1,)], read_image, paths)
    return Collection(dict.fromkeys(("train", "val", "test"), examples), ["a", "b"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_worker_process_raises_the_same_error_for_a_damaged_file(tmp_path, num_workers):
    images = LabelledImages(one_bad(tmp_path), "train", eval_transform(InputSpec(size=8)))
    with pytest.raises(UserError) as caught:
        list(DataLoader(images, num_workers=num_workers))
    assert str(caught.value).startswith(f"{tmp_path / 'bad.png'} cannot be read as an image") and "\n" not in str(caught.value)


@pytest.mark.e2e
def test_a_dataset_pickles_for_worker_processes(tmp_path):
    images = LabelledImages(one_bad(tmp_path), "val", eval_transform(InputSpec(size=8)))
    image, target = pickle.loads(pickle.dumps(images))[0]
    assert image.equal(images[0][0]) and target == 0
    assert pickle.loads(pickle.dumps(MixedCollate("both", 2))).steps


def test_targets_with_several_labels_are_multi_hot():
    examples = Examples([1, 2, 3], [(0, 2), (), (1,)], to_rgb)
    collection = Collection(dict.fromkeys(("train", "val", "test"), examples), ["a", "b", "c"], multilabel=True)
    assert collection.targets("train").tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert collection.counts["val"] == {"a": 1, "b": 1, "c": 1}


@given(mix=st.sampled_from(["mixup", "cutmix", "both"]), n=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_mixed_targets_are_probabilities_in_proportion_to_the_images(mix, n, seed):
    torch.manual_seed(seed)
    samples = [(torch.full((3, 8, 8), float(i)), torch.tensor(i)) for i in range(n)]
    images, targets = MixedCollate(mix, n)(samples)
    assert targets.shape == (n, n) and torch.allclose(targets.sum(dim=1), torch.ones(n))
    # every pixel of image i is i: the mean of a mixed image is the expected class number of its target
    assert torch.allclose(images.mean(dim=(1, 2, 3)), targets @ torch.arange(n, dtype=torch.float32), atol=1e-4)


def test_targets_with_several_labels_are_mixed():
    samples = [(torch.rand(3, 8, 8), torch.tensor([1.0, 1.0, 0.0])), (torch.rand(3, 8, 8), torch.tensor([0.0, 0.0, 0.0]))]
    _, targets = MixedCollate("mixup", 3)(samples)
    assert torch.allclose(targets.sum(dim=0), torch.tensor([1.0, 1.0, 0.0]))


def test_the_error_for_an_unknown_mix_names_the_closest_match():
    with pytest.raises(UserError, match="did you mean 'cutmix'"):
        MixedCollate("cutmx", 2)


@pytest.mark.skipif("FTLIT_TEST_DATA" not in os.environ, reason="needs FTLIT_TEST_DATA, a folder of real images")
def test_real_photos_read_as_rgb():
    paths = sorted(Path(os.environ["FTLIT_TEST_DATA"], "images", "imagenet_sample").glob("*.jpg"))[::50]
    read = image_reader(InputSpec(size=64))
    assert paths and all(read(path).mode == "RGB" for path in paths)
