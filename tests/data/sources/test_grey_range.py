"""Grey values of more than 8 bits: one range for the data set, and notes on content that is not read."""

import numpy as np
import pytest
from PIL import Image

from ftlit.data.images import as_read, image_reader, read_image
from ftlit.data.input_spec import InputSpec
from ftlit.data.sources.folder_files import list_folder
from ftlit.data.sources.grey_range import measure_grey_range
from ftlit.data.sources.image_files import collect
from ftlit.data.splitting.splits import SplitRule
from ftlit.errors import UserError

RULE = SplitRule({"val": 0.2, "test": 0.2})


def save(path, values, dtype=np.uint16):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values).astype(dtype)).save(path)
    return path


def ramp(low, high, n=64):
    return np.tile(np.linspace(low, high, n), (n, 1))


@pytest.mark.parametrize(
    ("low", "high", "dtype", "wanted"),
    [
        (0, 65535, np.uint16, (0, 65535)),
        (0, 4095, np.uint16, (0, 4095)),
        (16, 1000, np.uint16, (0, 1023)),
        (20, 120, np.uint16, (0, 255)),
        (29000, 31000, np.uint16, (29000, 31000)),
        (0, 1, np.float32, (0, 1)),
        (-1, 1, np.float32, (-1, 1)),
        (0, 200, np.float32, (0, 255)),
        (0, 1.05, np.float32, (0, 1.05)),
        (-1000, 3000, np.float32, (-1000, 3000)),
    ],
)
def test_the_range_is_that_of_a_usual_format_that_is_filled_else_that_of_the_values(tmp_path, low, high, dtype, wanted):
    path = save(tmp_path / ("x.tif" if dtype == np.float32 else "x.png"), ramp(low, high), dtype)
    found, values, measured, holes = measure_grey_range([path])
    assert (measured, holes) == (1, 0)
    assert found == pytest.approx(wanted) and values == pytest.approx((low, high), abs=1e-6)
    grey = np.asarray(image_reader(InputSpec(grey_range=found))(path))[..., 0]
    assert len(np.unique(grey)) >= 20 and grey.max() - grey.min() > 60


def test_values_a_little_below_0_are_read_as_0(tmp_path):
    """A filter overshoots: black stays black."""
    paths = [save(tmp_path / f"{low}.tif", ramp(low, 1), np.float32) for low in (0, -0.01)]
    assert measure_grey_range(paths)[0] == (0, 1)


def test_a_dead_pixel_and_values_that_are_not_finite_do_not_count(tmp_path):
    values = ramp(0, 4000)
    values[0, 0] = 65535
    assert measure_grey_range([save(tmp_path / "a.png", values)])[0] == (0, 4095)
    values = ramp(0, 1)
    values[0, :3] = np.nan, np.inf, -np.inf
    assert measure_grey_range([save(tmp_path / "b.tif", values, np.float32)])[::3] == ((0, 1), 1)
    assert measure_grey_range([save(tmp_path / "c.tif", np.full((4, 4), np.nan), np.float32)]) is None


def data(root, top, **how):
    for label, grey in (("dark", 0.3), ("light", 1.0)):
        for i in range(12):
            save(root / label / f"{i}.png", ramp(0, top * grey) + i)
    files, _ = list_folder(root)
    return collect(files, input_spec=InputSpec(size=8, **how), on_bad_image="stop", rule=RULE)


def test_a_data_set_has_one_range_for_all_images_and_a_note(tmp_path):
    collection, spec = data(tmp_path, 4000)
    assert spec.grey_range == (0, 4095) and spec.summary.endswith("grey values 0 to 4095")
    assert any("0 is read as black and 4095 as white in all images" in note for note in collection.notes)
    for examples in collection.splits.values():
        brightest = {source.parent.name: np.asarray(examples.load(source)).max() for source in examples.sources}
        assert brightest["dark"] < 90 and brightest["light"] > 240


def test_a_range_that_is_given_is_not_measured_and_8_bits_need_none(tmp_path):
    collection, spec = data(tmp_path / "deep", 4000, grey_range=[0, 8000])
    assert spec.grey_range == (0, 8000) and not any("black" in note for note in collection.notes)
    for label in "ab":
        for i in range(6):
            save(tmp_path / "flat" / label / f"{i}.png", ramp(0, 200 + i), np.uint8)
    _, spec = collect(list_folder(tmp_path / "flat")[0], input_spec=InputSpec(), on_bad_image="stop", rule=RULE)
    assert spec == InputSpec()


def test_files_and_open_images_are_read_alike_and_8_bits_are_not_scaled(tmp_path):
    spec = InputSpec(grey_range=(0, 1000))
    for path in (save(tmp_path / "deep.png", ramp(0, 1200)), save(tmp_path / "flat.png", ramp(0, 200), np.uint8)):
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(as_read(image, spec)), np.asarray(image_reader(spec)(path)))
    assert np.array_equal(np.asarray(image_reader(spec)(path)), np.asarray(read_image(path)))


@pytest.mark.parametrize("given", [[1], [3, 3], [5, 1], 4, [0, float("nan")]])
def test_a_range_is_two_ascending_numbers(given):
    with pytest.raises(UserError, match="grey_range"):
        InputSpec(grey_range=given)


def test_a_mixture_of_bit_depths_is_noted(tmp_path):
    for label, dtype in (("a", np.uint8), ("b", np.uint16)):
        for i in range(6):
            save(tmp_path / label / f"{i}.png", ramp(0, 200 + i), dtype)
    notes = collect(list_folder(tmp_path)[0], input_spec=InputSpec(), on_bad_image="stop", rule=RULE)[0].notes
    assert "6 of 12 images have more than 8 bits per channel and the others have 8; each image is scaled by its own bit depth" in notes


def test_content_that_is_not_read_is_noted(tmp_path):
    images = [Image.fromarray(np.full((4, 4), 10 * i, np.uint8)) for i in range(8)]
    for label in "ab":
        for i in range(4):
            save(tmp_path / label / f"{i}.png", ramp(0, 100 + i) + (label == "b"), np.uint8)
    images[0].save(tmp_path / "a" / "pages.tif", save_all=True, append_images=images[1:3])
    images[3].save(tmp_path / "b" / "frames.gif", save_all=True, append_images=images[4:6])
    Image.fromarray(np.full((4, 4, 4), 9, np.uint8)).save(tmp_path / "b" / "bands.tif")
    notes = collect(list_folder(tmp_path)[0], input_spec=InputSpec(), on_bad_image="stop", rule=RULE)[0].notes
    assert (
        f"2 files with several pages or frames, of which only the first is read: {tmp_path}/a/pages.tif, {tmp_path}/b/frames.gif" in notes
    )
    assert any(note.startswith("1 file with a fourth channel, which is read as transparency") for note in notes)
