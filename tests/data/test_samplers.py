"""Batches are a function of (seed, epoch, index), in one process and in several, from any batch on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from ftlit.data.collate import MixedCollate
from ftlit.data.dataset import Collection, Examples, LabelledImages
from ftlit.data.input_spec import InputSpec
from ftlit.data.samplers import Batches, EvalOrder, TrainOrder, counted_images
from ftlit.data.transforms import train_transform
from ftlit.errors import UserError

sizes, processes, batch_sizes = st.integers(1, 40), st.integers(1, 4), st.integers(1, 9)


def images(n: int, augment: str = "photo") -> LabelledImages:
    examples = Examples(range(n), [(i % 2,) for i in range(n)], lambda i: Image.linear_gradient("L").rotate(i).convert("RGB"))
    collection = Collection(dict.fromkeys(("train", "val", "test"), examples), ["even", "odd"])
    return LabelledImages(collection, "train", train_transform(InputSpec(size=8), augment))


@given(n=sizes, world=processes, batch_size=batch_sizes)
def test_evaluation_covers_each_image_once_with_equally_many_batches_per_process(n, world, batch_size):
    if n < world:
        with pytest.raises(UserError, match=f"{world} processes cannot share a split of {n} examples?: give trainer.devices={n}"):
            EvalOrder(images(n), batch_size, processes=world)
        return
    orders = [EvalOrder(images(n), batch_size, processes=world, rank=rank) for rank in range(world)]
    ranks = [list(order) for order in orders]
    assert sorted(index for batches in ranks for batch in batches for _, index in batch) == list(range(n))
    assert {len(batches) for batches in ranks} == {len(orders[0])}
    assert all(1 <= len(batch) <= batch_size + (batch_size == 1) for batches in ranks for batch in batches)


@given(n=sizes, batch_size=batch_sizes, epoch=st.integers(0, 5), seed=st.integers(0, 5))
def test_training_covers_all_images_except_a_last_batch_of_one(n, batch_size, epoch, seed):
    order = TrainOrder(images(n), batch_size, seed=seed)
    order.set_epoch(epoch)
    batches = list(order)
    seen = [index for batch in batches for _, index in batch]
    single_last = n > 1 and batch_size > 1 and n % batch_size == 1
    assert len(batches) == len(order) and len(seen) == len(set(seen)) == n - single_last
    assert {e for batch in batches for e, _ in batch} == {epoch} and list(order) == batches


@given(n=sizes, world=processes, batch_size=batch_sizes, epoch=st.integers(0, 2))
def test_several_processes_together_count_the_images_of_one_process(n, world, batch_size, epoch):
    data = images(n)
    one = TrainOrder(data, batch_size * world)
    orders = [TrainOrder(data, batch_size, processes=world, rank=rank) for rank in range(world)]
    for order in (one, *orders):
        order.set_epoch(epoch)
    assert {len(order) for order in orders} == {len(one)} and {len(list(order)) for order in orders} == {len(one)}
    for i, (whole, *parts) in enumerate(zip(one, *orders, strict=True)):
        counted = [order.counted(i) for order in orders]
        assert sorted(pair for part, (own, _) in zip(parts, counted, strict=True) for pair in part[:own]) == sorted(whole)
        assert {together for _, together in counted} == {len(whole)}
        assert len({len(part) for part in parts}) == 1  # as many images in each process
        assert len(parts[0]) >= min(2, batch_size) or world == 1  # BatchNorm needs two


@given(n=sizes, world=processes, batch_size=batch_sizes, drop_last=st.booleans(), custom=st.booleans())
def test_each_image_counts_once_with_the_sampler_of_a_user(n, world, batch_size, drop_last, custom):
    counted, sums = [], []
    for rank in range(world):
        sampler = DistributedSampler(range(n), world, rank, shuffle=False)
        how = (
            {"batch_sampler": BatchSampler(sampler, batch_size, drop_last)}
            if custom
            else {"batch_size": batch_size, "drop_last": drop_last}
        )
        loader = DataLoader(range(n), **how if custom else {**how, "sampler": sampler})
        own = [(batch.tolist(), counted_images(loader, i, len(batch))) for i, batch in enumerate(loader)]
        counted += [image for batch, (number, _, _) in own for image in batch[:number]]
        sums.append([(number, together) for _, (number, together, _) in own])
    assert len(counted) == len(set(counted)) and (drop_last or len(counted) == n)
    assert all(sum(own for own, _ in batch) == together for batch in zip(*sums, strict=True) for _, together in batch)


@given(begin=st.integers(0, 6), epoch=st.integers(0, 3))
def test_training_resumes_at_any_batch_of_one_epoch_and_later_epochs_are_complete(begin, epoch):
    whole, resumed = TrainOrder(images(20), 4), TrainOrder(images(20), 4)
    resumed.begin_at(epoch, begin)
    whole.set_epoch(epoch)
    assert list(resumed) == list(whole)[begin:] and len(resumed) == len(whole)
    for order in (whole, resumed):
        order.set_epoch(epoch + 1)
    assert list(resumed) == list(whole)


@pytest.mark.parametrize("mix", ["none", "both"])
def test_a_batch_is_a_function_of_seed_and_index_and_keeps_the_global_random_state(mix):
    batches = Batches(images(8), MixedCollate(mix, 2), seed=3)
    torch.manual_seed(0)
    first = batches[[(0, 1), (0, 2)]]
    state = torch.get_rng_state()
    again = batches[[(0, 1), (0, 2)]]
    assert all(a.equal(b) for a, b in zip(first, again, strict=True)) and torch.get_rng_state().equal(state)
    other_epoch, other_seed = batches[[(1, 1), (1, 2)]], Batches(images(8), MixedCollate(mix, 2), seed=4)[[(0, 1), (0, 2)]]
    assert not first[0].equal(other_epoch[0]) and not first[0].equal(other_seed[0])


def test_an_images_augmentation_does_not_depend_on_its_batch():
    batches = Batches(images(8), MixedCollate("none", 2), seed=3)
    assert batches[[(0, 5), (0, 2)]][0][1].equal(batches[[(0, 2)]][0][0])
