"""A store that several users share: files of other users are used with `trust` only."""

import os

import pytest
from feature_rows import feature_key, hashes, written

import ftlit.features.table
from ftlit.features.image_hashes import HashCache
from ftlit.features.store import Store


@pytest.fixture
def as_another_user(monkeypatch):
    own = os.getuid()
    monkeypatch.setattr(ftlit.features.table, "NOTED", set())
    return lambda: monkeypatch.setattr(os, "getuid", lambda: own + 1)


def test_features_of_another_user_are_computed_again_with_one_note(tmp_path, as_another_user, capsys):
    theirs = {shard.path: shard.path.read_bytes() for shard in written(Store(tmp_path).table(feature_key()), range(4)).shards}
    as_another_user()
    table = Store(tmp_path).table(feature_key())
    for _ in range(2):
        table.refresh()
    assert table.missing(hashes(*range(4))).tolist() == [0, 1, 2, 3]
    note = f"note      features in {tmp_path} belong to another user, so they are not used; if you trust that user, give cache.trust=true\n"
    assert capsys.readouterr().out == note
    written(table, range(4))
    assert all(path.read_bytes() == content for path, content in theirs.items())
    assert len(list(table.folder.glob("*.safetensors"))) == 2 * len(theirs)


def test_trust_uses_features_of_another_user(tmp_path, as_another_user, capsys):
    written(Store(tmp_path).table(feature_key()), range(4))
    as_another_user()
    table = Store(tmp_path, trust=True).table(feature_key())
    table.refresh()
    assert not len(table.missing(hashes(*range(4)))) and capsys.readouterr().out == ""


def test_the_hash_cache_of_another_user_is_not_used(tmp_path, as_another_user):
    HashCache(tmp_path).remember({tmp_path / "x": ("state", "0" * 32)})
    assert HashCache(tmp_path).path.name == "images.sqlite"
    as_another_user()
    assert HashCache(tmp_path).path.name == f"images-{os.getuid()}.sqlite"
    assert HashCache(tmp_path, trust=True).path.name == "images.sqlite"
