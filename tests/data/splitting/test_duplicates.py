"""Images of equal bytes: in two splits, and with two labels."""

from pathlib import Path

import numpy as np
import pytest

from ftlit.data.dataset import Examples
from ftlit.data.images import read_image
from ftlit.data.splitting.duplicates import content_hashes, duplicate_notes, find_copies


def written(folder: Path, **texts: list[str]) -> dict[str, Examples]:
    """Files with these texts; labels are all 0."""
    splits = {}
    for split, several in texts.items():
        paths = [folder / f"{split}{i}" for i in range(len(several))]
        for path, text in zip(paths, several, strict=True):
            path.write_text(text)
        splits[split] = Examples(paths, [(0,)] * len(paths), read_image, paths)
    return splits


def test_copies_are_files_of_equal_bytes_in_two_splits(tmp_path):
    (group,) = find_copies(written(tmp_path, train=["one", "two", "two"], val=["one", "eno"], test=["four", "one"]))
    assert [(copy.split, copy.place) for copy in group] == [("train", 0), ("val", 0), ("test", 1)]


def test_files_of_a_unique_size_are_not_read(tmp_path, monkeypatch):
    splits = written(tmp_path, train=["a"], val=["bb"])
    monkeypatch.setattr(Path, "read_bytes", lambda *a: pytest.fail("read"))
    assert find_copies(splits) == []


def test_equal_bytes_with_two_labels_are_noted_within_a_split_too(tmp_path):
    (tmp_path / "x").write_text("same")
    (tmp_path / "y").write_text("same")
    paths = [tmp_path / "x", tmp_path / "y"]
    (note,) = duplicate_notes({"train": Examples(paths, [(0,), (1,)], read_image, paths)})
    assert note == f"exact duplicates have different labels (1): {paths[0]} = {paths[1]}"
    assert duplicate_notes({"train": Examples(paths, [(1,), (1,)], read_image, paths)}) == []


def test_a_hash_is_of_the_content_and_without_contents_of_the_place(tmp_path):
    splits = written(tmp_path, train=["one", "two", "one"])
    first, second, third = content_hashes(splits["train"])
    assert first == third != second
    arrays = Examples(range(2), [(0,), (0,)], read_image, [np.zeros(3), np.zeros(3)])
    assert len(set(content_hashes(arrays))) == 1
    assert content_hashes(Examples(range(2), [(0,), (0,)], read_image)) == ["number 0", "number 1"]
