"""A sequence of paths that are made when they are asked for is the list of these paths."""

import os
import pickle
import random
from pathlib import Path

import pytest

from ftlit.data.dataset import Examples
from ftlit.data.file_paths import FilePaths, are_files, taken, texts_of

PATHS = [Path(text) for text in ("a.png", "x/a.png", "x/b.png", "/a.png", "/x/y/a.png", "../a.png", "x/" + os.fsdecode(b"\xff.png"))]


def file_paths(paths: list[Path]) -> FilePaths:
    return FilePaths.of((path.parent, path.name) for path in paths)


def test_paths_and_texts_are_those_of_the_list():
    kept = pickle.loads(pickle.dumps(file_paths(PATHS)))
    assert list(kept) == PATHS and kept == PATHS and kept[-1] == PATHS[-1] and len(kept) == len(PATHS)
    assert texts_of(kept) == texts_of(PATHS) == list(map(str, PATHS))
    assert list(kept[1:5:2]) == PATHS[1:5:2] and kept != PATHS[1:] and are_files(kept)


def test_a_choice_is_that_of_the_list():
    chosen = random.Random(0).choices(range(len(PATHS)), k=20)
    assert list(taken(file_paths(PATHS), chosen)) == taken(PATHS, chosen) == [PATHS[i] for i in chosen]


@pytest.mark.parametrize("paths", [PATHS, file_paths(PATHS)], ids=["list", "FilePaths"])
def test_a_subset_of_examples_keeps_its_files_as_their_own_contents(paths):
    part = Examples(paths, [(0,)] * len(paths), open, paths).subset([2, 0])
    assert part.contents is part.sources and list(part.sources) == [PATHS[2], PATHS[0]]
    assert Examples(paths, [(0,)] * len(paths), open).subset([1]).contents is None
