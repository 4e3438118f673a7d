"""The store: list of its tables, removal, and its folder."""

import os
from pathlib import Path

import pytest
from feature_rows import KEY, feature_key, one_shard, shards_of, written

from ftlit.cli import cache
from ftlit.errors import UserError
from ftlit.features.store import Store

A, B = "a" * 32, "b" * 32


def test_tables_are_listed_with_the_last_used_first(tmp_path):
    store = Store(tmp_path)
    assert store.tables() == []
    written(store.table(feature_key(A)), range(3))
    with shards_of(4):
        written(store.table(feature_key(B, (3, 2, 4))), range(9))
    os.utime(tmp_path / A, (1000, 1000))
    first, second = store.tables()
    assert (first.digest, first.images, first.about) == (B, 9, {"cut": "layer4", "of": B})
    assert (second.digest, second.images, len(second.shards), second.used) == (A, 3, 1, 1000.0)
    assert first.bytes == sum(path.stat().st_size for path in first.shards) >= 9 * 24 * 4
    store.table(feature_key(A))
    assert [stored.digest for stored in store.tables()] == [A, B]


def test_a_damaged_table_is_listed(tmp_path):
    path = one_shard(tmp_path)
    path.write_bytes(b"")
    (tmp_path / KEY / "about.json").write_text("{")
    (stored,) = Store(tmp_path).tables()
    assert (stored.about, stored.images, stored.bytes, stored.shards) == ({}, 0, 0, [path])


def test_remove_deletes_one_table_only(tmp_path):
    store = Store(tmp_path)
    for key in (A, B):
        written(store.table(feature_key(key)), range(3))
    assert store.remove(A) and [stored.digest for stored in store.tables()] == [B]
    assert len(written(store.table(feature_key(A)), range(3)).shards) == 1


def test_a_folder_may_be_relative_to_home_or_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Store("~/features").folder == Store("features").folder == tmp_path / "features"
    assert not (tmp_path / "features").exists()


def test_a_foreign_folder_is_neither_listed_nor_removed(tmp_path):
    foreign = tmp_path / "my_thesis"
    foreign.mkdir()
    (foreign / "about.json").write_text("{}")
    written(Store(tmp_path).table(feature_key()), range(3))
    assert [stored.digest for stored in Store(tmp_path).tables()] == [KEY]
    cache.prune(str(tmp_path), unused=0.0, max_gb=None)
    assert foreign.is_dir() and not (tmp_path / KEY).exists()


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a folder that is not writable even for root")
def test_the_error_for_a_read_only_folder_names_it():
    with pytest.raises(UserError, match=r"cannot store features in /proc/features \(.*\): use another folder"):
        Store("/proc/features").table(feature_key())
