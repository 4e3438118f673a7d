"""Data sets of bands: mean and std of each band are those of the training images, and files of another number of bands are errors."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ftlit.data.input_spec import InputSpec
from ftlit.data.sources.band_files import MAX_MEASURED, band_headers, measure_bands
from ftlit.data.sources.folder_files import FolderImages, list_folder
from ftlit.data.sources.image_files import collect
from ftlit.data.splitting.splits import SplitRule
from ftlit.errors import UserError

SPEC = InputSpec(size=8).with_channels(4)
RULE = SplitRule({"val": 0.2, "test": 0.2})


def write(root, count=30, dtype=np.float32, bands=4):
    random = np.random.default_rng(0)
    for i in range(count):
        values = random.normal([100, 200, 50, 1000][:bands], [1, 10, 5, 100][:bands], (6, 5, bands))
        path = root / "ab"[i % 2] / f"{i}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values.astype(dtype))
    return root


def collected(root, spec=SPEC, **how):
    files, _ = list_folder(root, arrays=True)
    return collect(files, input_spec=spec, rule=RULE, **{"on_bad_image": "stop", **how})


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.uint8])
def test_mean_and_std_are_those_of_all_pixels_of_the_training_images(tmp_path, dtype):
    collection, spec = collected(write(tmp_path, dtype=dtype))
    pixels = np.concatenate([np.load(path).reshape(-1, 4) for path in collection.splits["train"].sources]).astype(float)
    pixels /= 255 if dtype == np.uint8 else 1
    assert np.allclose(spec.mean, pixels.mean(axis=0), rtol=1e-5) and np.allclose(spec.std, pixels.std(axis=0), rtol=1e-5)
    assert spec.normalisation in collection.notes[-1]
    view = spec.views()[1]
    seen = np.stack([view(collection.splits["train"].load(path)).numpy() for path in collection.splits["train"].sources])
    assert seen.shape[1:] == (4, 8, 8) and np.abs(seen.mean(axis=(0, 2, 3))).max() < 0.1


def test_what_is_known_is_not_measured(tmp_path):
    given = replace(SPEC, mean=(1, 2, 3, 4), std=(5, 6, 7, 8))
    assert collected(write(tmp_path), given)[1] == given


def test_pixels_without_data_do_not_count_and_a_constant_band_has_the_std_1(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 6, 6, 3))
    values[:, :3, :, 1], values[..., 2] = np.nan, 7
    paths = []
    for i, array in enumerate(values):
        paths.append(tmp_path / f"{i}.npy")
        np.save(paths[-1], array)
    mean, std, images, constant = measure_bands(paths, 3)
    assert np.allclose(mean, np.nanmean(values, axis=(0, 1, 2)), rtol=1e-4) and (std[2], images, constant) == (1, 4, [3])
    assert np.isclose(std[1], np.nanstd(values[..., 1]), rtol=1e-4)
    (tmp_path / "bad.npy").write_bytes(b"")
    assert measure_bands([*paths, tmp_path / "bad.npy"], 3)[2] == 4
    with pytest.raises(UserError, match="none of the training images can be read"):
        measure_bands([tmp_path / "bad.npy"], 3)


def test_some_of_many_images_are_measured(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 2, 2)))
    assert measure_bands([tmp_path / "a.npy"] * (MAX_MEASURED + 1), 2).images == MAX_MEASURED // 2 + 1


def test_another_number_of_bands_stops_with_the_file_and_both_numbers(tmp_path):
    root = write(tmp_path / "data")
    np.save(root / "a/9.npy", np.zeros((5, 5, 6)))
    with pytest.raises(UserError) as raised:
        collected(root)
    assert str(raised.value) == f"{root}/a/9.npy has 6 bands, but backbone.in_chans=4: give backbone.in_chans=6, or files of 4 bands"
    collection, _ = collected(root, on_bad_image="skip")
    assert "1 of 31 files are ignored" in " ".join(collection.notes) and "9.npy (6 bands in place of 4)" in " ".join(collection.notes)


def test_photos_are_no_images_of_four_bands(tmp_path):
    Image.new("RGB", (5, 5)).save(tmp_path / "photo.jpg")
    with pytest.raises(UserError, match=r"photo.jpg has 3 bands, but backbone.in_chans=4: give backbone.in_chans=3, or files of 4 bands"):
        band_headers([tmp_path / "photo.jpg"], channels=4)


def test_values_of_8_bits_and_others_are_not_mixed(tmp_path):
    for name, dtype in (("a", np.uint8), ("b", np.float32)):
        np.save(tmp_path / f"{name}.npy", np.zeros((5, 5, 4), dtype))
    with pytest.raises(UserError, match=r"a.npy has uint8 values, which are divided by 255, but .*b.npy has values of another type"):
        band_headers([tmp_path / "a.npy", tmp_path / "b.npy"], channels=4)


def test_damaged_files_are_named(tmp_path):
    root = write(tmp_path / "data")
    (root / "a/9.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"1 of 31 files are not images: .*9.npy"):
        collected(root)
    assert "1 of 31 files are ignored" in collected(root, on_bad_image="skip")[0].notes[0]


def test_tiff_headers_tell_bands_and_type(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((6, 9, 8), np.uint16), photometric="minisblack", planarconfig="separate")
    assert band_headers([tmp_path / "a.tif"], channels=6)[0].fault is None
    with pytest.raises(UserError, match=r"a.tif has 6 bands, but backbone.in_chans=4"):
        band_headers([tmp_path / "a.tif"], channels=4)


def test_arrays_are_images_for_bands_only(tmp_path):
    root = write(tmp_path / "data")
    assert len(FolderImages(root, arrays=True)) == 30
    with pytest.raises(UserError, match="has no image files"):
        FolderImages(root)
    with pytest.raises(UserError, match=r"to read .npy files as images with N bands .*, give backbone.in_chans=N"):
        list_folder(root)
