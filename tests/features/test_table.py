"""Rows of a feature table: read back bit for bit, in any order, from any number of shards."""

import numpy as np
import pytest
import torch
from feature_rows import feature_key, hashes, row, shards_of, values, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ftlit.features.table
from ftlit.errors import UserError
from ftlit.features.keys import DTYPE_OF
from ftlit.features.store import Store
from ftlit.features.table import Rows, Writer

SHAPES = {"vector": (5,), "map": (3, 2, 4), "tokens": (4, 3), "number": ()}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", DTYPE_OF.values(), ids=DTYPE_OF)
def test_rows_are_read_bit_for_bit_by_this_process_and_the_next(tmp_path, dtype, shape):
    features = values(range(9), shape, dtype)
    features[0], features[1], features[2] = float("nan"), float("-inf"), -0.0
    table = Store(tmp_path).table(feature_key(shape=shape, dtype=dtype))
    writer = Writer(table)
    writer.add(hashes(*range(9)), features)
    writer.flush()
    for opened in (table, Store(tmp_path).table(feature_key(shape=shape, dtype=dtype))):
        opened.refresh()
        read = Rows(opened, hashes(*range(9))).read(range(9))
        assert (read.dtype, read.shape, bits(read)) == (dtype, features.shape, bits(features))


def test_rows_of_any_memory_format_are_cast_to_the_dtype_of_the_table(tmp_path):
    table = Store(tmp_path).table(feature_key(shape=(3, 2, 4), dtype=torch.float16))
    features = values(range(4), (3, 2, 4))
    writer = Writer(table)
    writer.add(hashes(*range(4)), features.to(memory_format=torch.channels_last))
    writer.flush()
    table.refresh()
    assert Rows(table, hashes(*range(4))).read(range(4)).equal(features.half())


@given(
    per_shard=st.integers(1, 12), step=st.integers(1, 7), n=st.integers(1, 25), data=st.data(),
)  # fmt: skip
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_in_any_order_from_any_number_of_shards_equal_the_written_rows(tmp_path_factory, per_shard, step, n, data):
    order = data.draw(st.permutations(range(n)))
    places = data.draw(st.lists(st.integers(0, n - 1), max_size=30))
    with shards_of(per_shard):
        table = written(Store(tmp_path_factory.mktemp("s")).table(feature_key()), order, step)
    assert sum(len(shard.images) for shard in table.shards) == n
    assert len(table.shards) >= -(-n // max(per_shard, step))
    rows = Rows(table, hashes(*range(n)))
    assert len(rows) == n and rows.row_bytes == 20
    assert rows.read(places).equal(values(range(n))[places] if places else torch.empty(0, 5))
    assert rows.read(np.array(places, int)).equal(rows.read(places))


def test_rows_may_be_repeated_and_may_be_empty(tmp_path):
    table = written(Store(tmp_path).table(feature_key()), range(6))
    assert Rows(table, hashes(3, 3, 0, 3)).read([0, 1, 2, 3]).equal(values([3, 3, 0, 3]))
    none = Rows(table, hashes())
    assert len(none) == 0 and none.read([]).shape == (0, 5)


def test_read_rows_are_copies_and_stay_readable_after_the_files_are_removed(tmp_path):
    table = written(Store(tmp_path).table(feature_key()), range(6))
    rows = Rows(table, hashes(*range(6)))
    rows.read([0])[:] = 7
    for shard in table.shards:
        shard.path.unlink()
    assert rows.read(range(6)).equal(values(range(6)))


@given(held=st.sets(st.integers(0, 12)), asked=st.lists(st.integers(0, 12), max_size=20))
@settings(max_examples=40)
def test_missing_gives_the_first_place_of_each_missing_image(tmp_path_factory, held, asked):
    table = written(Store(tmp_path_factory.mktemp("s")).table(feature_key()), sorted(held))
    first = [place for place, number in enumerate(asked) if number not in held and number not in asked[:place]]
    assert table.missing(hashes(*asked)).tolist() == first
    shards, places = table.find(hashes(*asked))
    for number, shard, place in zip(asked, shards, places, strict=True):
        assert (shard >= 0) == (place >= 0) == (number in held)
        assert number not in held or table.shards[shard].features[place].equal(row(number))


def test_a_row_written_twice_is_stored_once(tmp_path):
    table = written(Store(tmp_path).table(feature_key()), range(4))
    written(table, range(2, 6))
    written(Store(tmp_path).table(feature_key()), range(4))
    assert Rows(table, hashes(*range(6))).read(range(6)).equal(values(range(6)))
    assert len(list(table.folder.glob("*.safetensors"))) == 2


def test_refresh_finds_the_rows_of_another_process(tmp_path):
    mine, others = (Store(tmp_path).table(feature_key()) for _ in range(2))
    written(mine, range(3))
    written(others, range(3, 5))
    assert mine.missing(hashes(*range(5))).tolist() == [3, 4]
    mine.refresh()
    assert not len(mine.missing(hashes(*range(5)))) and len(mine.shards) == 2


def test_a_shard_is_written_when_it_is_full_or_after_some_time(tmp_path, monkeypatch):
    def files():
        return len(list(tmp_path.glob("*/*.safetensors")))

    table = Store(tmp_path).table(feature_key())
    with shards_of(4):
        writer = Writer(table)
        seen = []
        for number in range(9):
            writer.add(hashes(number), values([number]))
            seen.append(files())
        assert seen == [0, 0, 0, 0, 1, 1, 1, 1, 2]
        writer.flush()
        writer.flush()
        assert files() == 3
    monkeypatch.setattr(ftlit.features.table, "SHARD_SECONDS", -1.0)
    writer = Writer(table)
    writer.add(hashes(20), values([20]))
    assert files() == 4


def test_a_batch_larger_than_a_shard_is_one_shard(tmp_path):
    with shards_of(2):
        table = written(Store(tmp_path).table(feature_key()), range(11), step=7)
    assert sorted(len(shard.images) for shard in table.shards) == [4, 7]
    assert Rows(table, hashes(*range(11))).read(range(11)).equal(values(range(11)))


def test_features_that_overflow_half_precision_are_an_error(tmp_path):
    table = Store(tmp_path).table(feature_key(shape=(2,), dtype=torch.float16))
    with pytest.raises(UserError, match=r"feature values up to 1e\+05 do not fit in torch.float16: give cache.dtype=bfloat16"):
        Writer(table).add(hashes(0), torch.tensor([[1.0, 1e5]]))
