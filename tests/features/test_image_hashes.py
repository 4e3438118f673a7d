"""Images are identified by their content, and unchanged files are not read again."""

import os
import sqlite3
import time
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ftlit import UserError
from ftlit.data.dataset import Examples
from ftlit.data.file_paths import FilePaths
from ftlit.data.images import read_image
from ftlit.data.sources import image_headers
from ftlit.data.sources.image_headers import read_headers
from ftlit.data.splitting.duplicates import content_hash
from ftlit.data.splitting.splits import SplitRule, assemble
from ftlit.features import file_cache
from ftlit.features.image_hashes import HashCache, cached_hashes, cached_headers, image_hashes
from ftlit.features.store import Store


@pytest.fixture(autouse=True)
def short_age(monkeypatch):
    """The age is for file systems with coarse time stamps; here they are fine."""
    monkeypatch.setattr(file_cache, "MIN_AGE_NS", 200_000_000)


def picture(path: Path, grey: int) -> Path:
    Image.new("L", (8, 8), grey).save(path)
    return path


def wait_until_old(*paths: Path) -> None:
    """Wait until these files are old enough that every later change would be detected."""
    newest = max(max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in paths)
    time.sleep(max(0.0, (newest + 1.1 * file_cache.MIN_AGE_NS) / 1e9 - time.time()))


def files(*paths: Path) -> Examples:
    return Examples(list(paths), [(0,)] * len(paths), read_image, list(paths))


@pytest.fixture
def three(tmp_path):
    return [picture(tmp_path / f"{name}.png", grey) for name, grey in (("a", 10), ("b", 20), ("again", 10))]


def test_equal_content_has_the_same_hash_under_any_file_name(tmp_path, three):
    a, b, again = image_hashes(files(*three), HashCache(tmp_path / "store")).tolist()
    assert a == again != b and len(a) == 32


@pytest.mark.parametrize("parts", [[("a", 0), ("a", 1), ("b", 0)], [(0, "left"), (0, "right"), (1, "left")], [0, 1, 2]], ids=str)
def test_several_images_in_one_file_have_different_hashes(tmp_path, three, parts):
    examples = Examples(parts, [(0,)] * 3, read_image, [three[0], three[0], three[1]])
    hash_cache = HashCache(tmp_path / "store")
    assert len(set(image_hashes(examples, hash_cache).tolist())) == 3
    assert image_hashes(examples, hash_cache).tolist() == image_hashes(examples, hash_cache).tolist()


def test_the_index_of_a_file_with_one_image_does_not_change_its_hash(tmp_path, three):
    hash_cache = HashCache(tmp_path / "store")
    numbered = Examples([4, 5, 6], [(0,)] * 3, read_image, three)
    assert image_hashes(numbered, hash_cache).tolist() == image_hashes(files(*three), hash_cache).tolist()


def test_unchanged_files_are_not_read_again_and_changed_files_are(tmp_path, three, monkeypatch):
    hash_cache = HashCache(tmp_path / "store")
    wait_until_old(*three)
    before = image_hashes(files(*three), hash_cache).tolist()
    read = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    assert image_hashes(files(*three), hash_cache).tolist() == before and read == []
    times = three[1].stat()
    content = bytearray(three[1].read_bytes())
    read.clear()
    content[-1] ^= 1
    three[1].write_bytes(content)
    os.utime(three[1], ns=(times.st_atime_ns, times.st_mtime_ns))  # the same size and time as before
    after = image_hashes(files(*three), hash_cache).tolist()
    assert read == ["b.png"] and after[0] == before[0] and after[1] != before[1]


def test_a_second_start_reads_no_file_to_split_the_images_and_to_find_copies(tmp_path, monkeypatch):
    paths = [picture(tmp_path / f"{i}.png", i) for i in range(30)]
    assert len({path.stat().st_size for path in paths}) < 30  # files of equal size are compared
    wait_until_old(*paths)
    images, read = Examples(paths, [(i % 2,) for i in range(30)], read_image, paths), []
    rule = SplitRule({"val": 0.2, "test": 0.2}, hashes=cached_hashes)
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or read_bytes(path))
    first = assemble({"train": images}, ["a", "b"], rule)
    assert sorted(read) == sorted(paths)
    second = assemble({"train": images}, ["a", "b"], rule)
    assert len(read) == 30 and second == first


def test_a_recently_changed_file_is_not_cached(tmp_path, three, monkeypatch):
    hash_cache = HashCache(tmp_path / "store")
    image_hashes(files(*three), hash_cache)
    assert hash_cache.recall([path.absolute() for path in three]) == ["", "", ""]


def test_a_relative_path_is_resolved_from_the_working_directory(tmp_path, three, monkeypatch):
    hash_cache = HashCache(tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    wait_until_old(*three)
    relative = image_hashes(files(Path("a.png")), hash_cache).tolist()
    assert relative == image_hashes(files(three[0]), hash_cache).tolist()
    (tmp_path / "other").mkdir()
    picture(tmp_path / "other" / "a.png", 77)
    monkeypatch.chdir(tmp_path / "other")
    assert image_hashes(files(Path("a.png")), hash_cache).tolist() != relative


def test_a_file_name_that_is_not_valid_text_is_supported(tmp_path, three):
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    three[0].rename(strange)
    hash_cache = HashCache(tmp_path / "store")
    wait_until_old(strange)
    assert image_hashes(files(strange), hash_cache).tolist() == image_hashes(files(three[2]), hash_cache).tolist()
    assert hash_cache.recall([strange]) == image_hashes(files(strange), hash_cache).astype(str).tolist()


@pytest.mark.parametrize("content", [b"", b"no database at all", b"SQLite format 3\0" + bytes(100)])
def test_a_damaged_hash_cache_gives_at_most_a_warning_and_no_wrong_hash(tmp_path, three, content):
    hash_cache = HashCache(tmp_path / "store")
    wait_until_old(*three)
    before = image_hashes(files(*three), hash_cache).tolist()
    hash_cache.path.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert image_hashes(files(*three), hash_cache).tolist() == before
    assert all("cannot use the file cache" in str(warning.message) for warning in caught)
    assert image_hashes(files(*three), hash_cache).tolist() == before


def test_a_modified_hash_in_the_cache_is_ignored(tmp_path, three):
    hash_cache = HashCache(tmp_path / "store")
    wait_until_old(*three)
    before = image_hashes(files(*three), hash_cache).tolist()
    with sqlite3.connect(hash_cache.path) as database:
        database.execute("UPDATE digests SET digest = ?", ("0" * 32,))
    assert image_hashes(files(*three), hash_cache).tolist() == before


def test_the_error_for_a_missing_file_is_one_line_with_its_name(tmp_path, three):
    three[1].unlink()
    with pytest.raises(UserError, match=r"there is no file .*b\.png"):
        image_hashes(files(*three), HashCache(tmp_path / "store"))


def test_arrays_are_identified_by_values_shape_and_dtype(tmp_path):
    arrays = [np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), np.zeros((2, 3), np.int8), np.zeros((2, 3), np.uint8)]
    found = image_hashes(Examples(arrays, [(0,)] * 4, Image.fromarray, arrays), HashCache(tmp_path)).tolist()
    assert len(set(found)) == 3 and found[0] == found[3]


def test_images_without_known_content_are_identified_by_their_pixels(tmp_path):
    examples = Examples([1, 2, 1], [(0,)] * 3, lambda grey: Image.new("RGB", (4, 4), (grey,) * 3))
    a, b, again = image_hashes(examples, HashCache(tmp_path)).tolist()
    assert a == again != b


@pytest.mark.parametrize("decode", [False, True])
def test_a_second_run_reads_no_header(tmp_path, three, decode, monkeypatch):
    monkeypatch.setenv("FTLIT_CACHE", str(tmp_path / "store"))
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(three[0].read_bytes()[:-30])
    (tmp_path / "text.png").write_text("no image")
    paths = [*three, damaged, tmp_path / "text.png"]
    wait_until_old(*paths)
    read = read_headers(paths, decode=decode)
    assert [header.fault for header in read] == [None, None, None, "damaged" if decode else None, ""]
    assert cached_headers(paths, decode=decode) == read
    opened = []
    monkeypatch.setattr(image_headers.Image, "open", lambda path, open=image_headers.Image.open: opened.append(path) or open(path))
    assert cached_headers(paths, decode=decode) == read
    assert set(opened) == {tmp_path / "text.png", *([damaged] if decode else [])}  # a fault may be mended
    picture(three[0], 30)
    assert cached_headers(three[:1]) == read[:1] and opened[-1] == three[0]


def test_folders_of_equal_names_share_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FTLIT_CACHE", str(tmp_path / "store"))
    for name, mode in (("a", "L"), ("b", "RGB")):
        (tmp_path / name / "data").mkdir(parents=True)
        Image.new(mode, (8, 8)).save(tmp_path / name / "data/0.png")
    path = Path("data/0.png")
    wait_until_old(*(tmp_path / name / path for name in "ab"))
    for name, mode in (("a", "L"), ("b", "RGB"), ("a", "L")):
        monkeypatch.chdir(tmp_path / name)
        assert cached_headers([path])[0].mode == mode
    opened = []
    monkeypatch.setattr(image_headers.Image, "open", lambda path, open=image_headers.Image.open: opened.append(path) or open(path))
    cached_headers([path])
    monkeypatch.chdir(tmp_path / "b")
    assert cached_headers([path])[0].mode == "RGB" and opened == []


def test_the_start_of_a_run_asks_for_the_hash_of_each_listed_file_once_and_features_look_at_the_files(tmp_path, three, monkeypatch):
    asked = []
    texts = HashCache.texts
    monkeypatch.setattr(HashCache, "texts", lambda self, paths, read: asked.append(len(paths)) or texts(self, paths, read))
    more = [picture(tmp_path / f"{i}.png", 100 + i) for i in range(9)]
    train = Examples([*three, *more], [(i % 2,) for i in range(12)], read_image, contents := [*three, *more])
    assert train.contents is contents
    collection = assemble({"train": train}, ["x", "y"], SplitRule({"val": 0.3, "test": 0.3}, hashes=cached_hashes))
    for split in collection.splits.values():
        assert cached_hashes(split) == [str(image) for image in image_hashes(split, HashCache(tmp_path / "store")).astype(str)]
        assert cached_hashes(split.subset([0])) == cached_hashes(split)[:1]
    assert asked == [12, *(len(split) for split in collection.splits.values())]  # the last three for features
    wait_until_old(more[0])
    picture(more[0], 7)
    assert image_hashes(train, HashCache(tmp_path / "store"))[3].decode() != cached_hashes(train)[3]


@pytest.fixture
def listed(tmp_path, three, monkeypatch):
    """Three files whose headers and hashes are in the cache, as they are listed again."""
    monkeypatch.setenv("FTLIT_CACHE", str(tmp_path / "store"))
    wait_until_old(*three)
    first = FilePaths.of((path.parent, path.name) for path in three)
    assert [header.fault for header in cached_headers(first)] == [None] * 3 and first.hashes is None  # of a first start, not yet read
    cached_hashes(Examples(first, [(0,)] * 3, Image.open, first))
    return FilePaths.of((path.parent, path.name) for path in three)


def hashes_of(files):
    return [] if files.hashes is None else [image.decode() for image in files.hashes.tolist()]


def test_the_headers_of_known_files_bring_their_hashes(listed, three, monkeypatch):
    cached_headers(listed)
    wanted = [content_hash(path) for path in three]
    assert hashes_of(listed) == wanted
    monkeypatch.setattr(HashCache, "texts", None)  # is not asked again
    examples = Examples(listed, [(0,)] * 3, Image.open, listed)
    assert cached_hashes(examples) == wanted and cached_hashes(examples.subset([2, 0])) == [wanted[2], wanted[0]]
    assert hashes_of(listed[1:]) == wanted[1:]


def test_a_file_that_was_replaced_has_its_new_hash(listed, three):
    picture(three[1], 40)
    cached_headers(listed)
    assert hashes_of(listed) == []
    assert cached_hashes(Examples(listed, [(0,)] * 3, Image.open, listed)) == [content_hash(path) for path in three]


@pytest.mark.parametrize("change", ["DELETE FROM digests", "UPDATE digests SET digest = 'other'"])
def test_a_hash_that_is_gone_or_damaged_is_read_from_the_file(listed, three, change):
    with closing(sqlite3.connect(Store().folder / "images.sqlite")) as db, db:
        db.execute(f"{change} WHERE path = ?", [bytes(three[0])])
    cached_headers(listed)
    assert hashes_of(listed) == []
    assert cached_hashes(Examples(listed, [(0,)] * 3, Image.open, listed)) == [content_hash(path) for path in three]
