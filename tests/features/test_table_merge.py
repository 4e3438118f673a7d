"""Merging of small shards: rows are kept, whatever happens during the merge."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from feature_rows import feature_key, hashes, reopened, values

import ftlit.features.table
from ftlit.features.shard import read_shard
from ftlit.features.store import Store
from ftlit.features.table import Rows, Writer


def write_one_shard_per_row(table, places) -> None:
    writer = Writer(table)
    for i in places:
        writer.add(hashes(i), values([i]))
        writer.flush()
    table.refresh()


def test_merge_combines_small_shards_and_keeps_large_shards(tmp_path):
    table = Store(tmp_path).table(feature_key())
    write_one_shard_per_row(table, range(8))
    before = Rows(table, hashes(*range(8))).read(range(8))
    table.merge()
    assert len(table.shards) == len(list(tmp_path.glob("*/*.safetensors"))) == 1
    assert Rows(table, hashes(*range(8))).read(range(8)).equal(before)
    assert read_shard(table.shards[0].path, check=True).features.shape == (8, *before.shape[1:])
    large = table.shards[0].path
    write_one_shard_per_row(table, range(8, 12))
    table.merge()
    assert large.exists() and len(table.shards) == 2 and not len(table.missing(hashes(*range(12))))


def test_merge_does_nothing_for_large_rows_or_without_disk_space(tmp_path, monkeypatch):
    table = Store(tmp_path).table(feature_key())
    write_one_shard_per_row(table, range(8))
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
        table.merge()
    assert len(table.shards) == 8
    with monkeypatch.context() as patch:
        patch.setattr(ftlit.features.table, "MAX_MERGED_ROW_BYTES", 1)
        table.merge()
    assert len(table.shards) == 8


@pytest.mark.parametrize("removed", range(7))
def test_a_merge_that_is_interrupted_at_any_moment_loses_no_row(tmp_path, monkeypatch, removed):
    table = Store(tmp_path).table(feature_key())
    write_one_shard_per_row(table, range(6))
    left = iter(range(removed))

    def unlink_or_interrupt(path, **how):
        if path.suffix == ".safetensors" and next(left, None) is None:
            raise KeyboardInterrupt
        os.unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink_or_interrupt)
        with pytest.raises(KeyboardInterrupt) if removed < 6 else nullcontext():
            table.merge()
    for _ in range(3):  # later runs
        table, messages = reopened(tmp_path)
        assert messages == [] and Rows(table, hashes(*range(6))).read(range(6)).equal(values([*range(6)]))
        table.merge()


def test_duplicate_rows_of_an_interrupted_merge_are_merged(tmp_path):
    table = Store(tmp_path).table(feature_key())
    writer = Writer(table)
    for group in ([0, 1], [1, 2], [3], [4], [0, 4, 5]):
        writer.add(hashes(*group), values(group))
        writer.flush()
    table.refresh()
    table.merge()
    assert sum(len(shard.images) for shard in table.shards) == 6
    assert Rows(table, hashes(*range(6))).read(range(6)).equal(values([*range(6)]))
