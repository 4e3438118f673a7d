"""Extraction stores the features at any cut and never computes stored features again; batches are read in the given order."""

import signal
import sys
import time
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ftlit.features.batches
from ftlit import Backbone, InputSpec, UserError, batchnorm_to_affine, extract_features
from ftlit.data.dataset import Examples
from ftlit.data.transforms import train_transform
from ftlit.features.batches import read_batches
from ftlit.features.extract import ImageViews
from ftlit.features.spec import HASH_DTYPE
from ftlit.features.store import Store
from ftlit.features.table import FeatureKey, Rows, Writer

CUTS = ["low", "middle", "top"]


def backbone() -> Backbone:
    torch.manual_seed(0)
    layers = {
        "low": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        "middle": nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Conv2d(4, 5, 3)),  # changes the features below in place
        "top": nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(5, 6, 3)),
    }
    return Backbone(layers, InputSpec(size=10))


def images(count: int = 11, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 3, 10, 10, generator=generator), torch.arange(count))


def loader(data=None) -> DataLoader:
    return DataLoader(data or images(), batch_size=4)


class ImageCounter:
    """Counts the images on which the lowest layer runs."""

    def __init__(self, net: Backbone) -> None:
        self.images = 0
        net.get_submodule("low").register_forward_pre_hook(self.count)

    def count(self, module, args):
        self.images += len(args[0]) if args[0].device.type != "meta" else 0


def loop_features(net: Backbone, cut: str, *, pooled: bool) -> torch.Tensor:
    net = deepcopy(net).eval()
    with torch.inference_mode():
        features = torch.cat([net.upto(cut)(batch) for batch, _ in loader()])
        return net.pool(features) if pooled else features


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("cuts", [CUTS, ["top"], ["low"], ["middle", "low"]])
def test_features_equal_those_of_a_plain_loop_bit_for_bit(tmp_path, cuts, pooled):
    features = extract_features(backbone(), loader(), cuts, cache=tmp_path, pooled=pooled)
    assert features.cuts == tuple(cuts) and len(features) == 11 and torch.equal(features.targets, torch.arange(11))
    for cut in cuts:
        assert torch.equal(features[cut].read(range(11)), loop_features(backbone(), cut, pooled=pooled)), cut


def test_extraction_keeps_modes_gradients_and_random_state_even_if_the_loader_fails(tmp_path):
    net = backbone()
    net.get_submodule("middle").eval()
    modes, state = [part.training for part in net.modules()], torch.get_rng_state()

    def broken():
        yield from list(loader())[:1]
        raise OSError("the disk is gone")

    extract_features(net, DataLoader(images(), batch_size=4, shuffle=False), cache=tmp_path)
    with pytest.raises(OSError, match="the disk is gone"):
        extract_features(net, broken(), 0, cache=tmp_path)
    assert [part.training for part in net.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())


def test_only_missing_and_changed_features_are_computed(tmp_path):
    net = backbone()
    counter = ImageCounter(net)
    extract = partial(extract_features, net, cuts=CUTS, cache=tmp_path)
    extract(loader())
    assert counter.images == 11
    extract(loader())
    assert counter.images == 11
    grown = TensorDataset(*(torch.cat([b, a]) for a, b in zip(images().tensors, images(3, seed=1).tensors, strict=True)))
    features = extract(loader(grown))
    assert counter.images == 14 and torch.equal(features["top"].read(range(3, 14)), loop_features(backbone(), "top", pooled=True))
    with torch.no_grad():
        net.get_submodule("top.1").weight[0, 0, 0, 0] += 1e-6  # the lower cuts are unchanged
    extract(loader(), cuts=["low", "middle"])
    assert counter.images == 14
    extract(loader())
    assert counter.images == 25
    with torch.no_grad():
        net.get_submodule("low.1").running_mean[0] += 1e-6
    extract(loader(), cuts=["low"])
    assert counter.images == 36
    batchnorm_to_affine(net)
    extract(loader(), cuts=["low"])
    assert counter.images == 47


def test_features_of_a_repeated_image_are_computed_once(tmp_path):
    net = backbone()
    counter = ImageCounter(net)
    twice = torch.cat([images().tensors[0]] * 2)
    features = extract_features(net, DataLoader(twice, batch_size=8), cache=tmp_path)
    assert counter.images == 11 and features.targets is None
    assert torch.equal(features["top"].read(range(11)), features["top"].read(range(11, 22)))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_features_are_stored_in_the_requested_dtype(tmp_path, dtype):
    features = extract_features(backbone(), loader(), cache=tmp_path, dtype=dtype)
    assert str(features["top"].dtype) == f"torch.{dtype}" and list(features) == ["top"]
    assert torch.equal(features["top"].read([2]), loop_features(backbone(), "top", pooled=True)[[2]].to(getattr(torch, dtype)))


MISTAKES = {
    "no layer 'tpo': did you mean 'top'": {"cuts": ["tpo"]},
    "dtype=int8 is not valid": {"dtype": "int8"},
    "extract_features reads a loader or a data set, not object: give a DataLoader": {"loader": object()},
    "the loader is empty": {"loader": []},
    "cuts is empty: give the name of at least one layer": {"cuts": []},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_user_errors_are_one_line(tmp_path, message):
    with pytest.raises(UserError, match=message):
        extract_features(backbone(), **{"loader": loader(), "cache": tmp_path, **MISTAKES[message]})
    with pytest.raises(UserError, match="no cut 'low': give top"):
        extract_features(backbone(), loader(), cache=tmp_path)["low"]


def test_features_too_large_for_float16_are_computed_again_in_float32(tmp_path):
    net = Backbone({"conv": nn.Conv2d(3, 2, 1, bias=False)}, InputSpec(size=8))
    nn.init.ones_(net.get_submodule("conv").weight)
    values = torch.ones(3, 3, 8, 8)
    values[1] = 60000.0  # fits in float16, the sum of three channels does not
    with torch.autocast("cpu", torch.float16), pytest.warns(UserWarning, match="features of 1 image are too large for float16"):
        found = extract_features(net, DataLoader(values, 3), cache=tmp_path)["conv"].read(range(3))
    assert found[:, 0].tolist() == [3.0, 180000.0, 3.0]


def stored_rows(folder, rows: int) -> Rows:
    table = Store(folder).table(FeatureKey("k", torch.float32, (3,), {}))
    names = np.array([f"{i:032x}" for i in range(rows)], HASH_DTYPE)
    table.refresh()
    if len(table.missing(names)):
        writer = Writer(table)
        writer.add(names, torch.arange(rows * 3.0).view(rows, 3))
        writer.flush()
        table.refresh()
    return Rows(table, names)


@given(st.integers(1, 400), st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=7), min_size=1, max_size=6), st.integers(0, 5))
def test_batches_follow_the_given_order_for_any_block_size(tmp_path_factory, block, batches, epoch):
    folder = tmp_path_factory.getbasetemp() / "views"
    rows = stored_rows(folder, 20)
    order = [[(epoch, index) for index in batch] for batch in batches]
    before, ftlit.features.batches.BLOCK_BYTES = ftlit.features.batches.BLOCK_BYTES, block
    try:
        read = list(read_batches(order, {"top": rows}, torch.arange(20), torch.float64))
    finally:
        ftlit.features.batches.BLOCK_BYTES = before
    assert len(read) == len(batches)
    for (features, targets), batch in zip(read, batches, strict=True):
        expected = torch.tensor(batch)[:, None] * 3.0 + torch.arange(3.0)
        assert features.cut == "top" and features.values.dtype == torch.float64
        assert torch.equal(features.values, expected.double()) and targets.tolist() == batch


def test_random_numbers_of_a_view_depend_on_view_and_image_not_on_the_position(tmp_path):
    transform = train_transform(InputSpec(size=8), "photo")
    pictures = {grey: Image.radial_gradient("L").rotate(grey).resize((20, 20)).convert("RGB") for grey in range(6)}
    digests = np.array([f"{i:032x}" for i in range(6)], HASH_DTYPE)

    def views(order, seeds):
        return ImageViews(Examples(order, [(0,)] * 6, pictures.__getitem__), digests[order], transform, seeds)[list(range(6))][1]

    forward, backward = views([0, 1, 2, 3, 4, 5], (0, 1)), views([5, 4, 3, 2, 1, 0], (0, 1))
    assert torch.equal(forward, backward.flip(0))
    assert not torch.equal(forward, views([0, 1, 2, 3, 4, 5], (0, 2))) and not torch.equal(forward, views([0, 1, 2, 3, 4, 5], (1, 1)))


SLOW_EXTRACTION = """
import sys, time
sys.path.insert(0, sys.argv[1])
import ftlit.features.table
from test_extract import backbone, images, ImageCounter
from ftlit import extract_features
from torch.utils.data import DataLoader

ftlit.features.table.SHARD_BYTES = 8 * 24  # 8 rows of the top features
net = backbone()
counter = ImageCounter(net)

def loader():
    for batch in DataLoader(images(64), batch_size=4):
        time.sleep(float(sys.argv[3]))
        yield batch

extract_features(net, loader(), cache=sys.argv[2])
print(counter.images)
"""


def start_slow_extraction(folder: Path, name: str, seconds: float) -> tuple[warm.Process, Path]:
    """Start a program that extracts into the folder. Returns it and the file of its output."""
    program, output = folder / "program.py", folder / f"{name}.txt"
    program.write_text(SLOW_EXTRACTION)
    with output.open("w") as out:
        process = warm.start([sys.executable, program, Path(__file__).parent, folder, seconds], stdout=out)
    return process, output


@pytest.mark.e2e
def test_only_one_of_two_processes_computes_the_same_features(tmp_path):
    both = [start_slow_extraction(tmp_path, name, 0.1) for name in ("one", "other")]
    assert [process.wait(120) for process, _ in both] == [0, 0]
    outputs = [output.read_text() for _, output in both]
    assert sorted(text.split()[-1] for text in outputs) == ["0", "64"]
    assert sum("waiting for another process that is computing these features" in text for text in outputs) == 1


@pytest.mark.e2e
def test_a_killed_process_leaves_complete_shards_and_the_next_process_continues(tmp_path):
    first, _ = start_slow_extraction(tmp_path, "first", 0.2)
    while len(list(tmp_path.glob("*/*.safetensors"))) < 3:
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = len(list(tmp_path.glob("*/*.safetensors"))) * 8
    second, output = start_slow_extraction(tmp_path, "second", 0.0)
    assert second.wait(120) == 0 and int(output.read_text()) == 64 - kept
    net = backbone().eval()
    features = extract_features(net, loader(images(64)), cache=tmp_path)
    with torch.inference_mode():
        expected = torch.cat([net.pool(net(batch)) for batch, _ in loader(images(64))])
    assert torch.equal(features["top"].read(range(64)), expected) and not list(tmp_path.glob("*/*.part"))
