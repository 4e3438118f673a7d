"""Stages that train from stored features: at which cut, and the reason if a stage does not."""

import pytest
import torch
from torch import nn

from ftlit import Backbone, InputSpec, load_backbone
from ftlit.features.spec import FeatureSpec
from ftlit.features.stage_input import frozen_prefix, plan_stage_inputs, specs_of

CUTS = ("low", "middle", "pooling", "top")


def backbone() -> Backbone:
    layers = {"low": nn.Conv2d(3, 4, 3), "middle": nn.Conv2d(4, 8, 3), "pooling": nn.MaxPool2d(2), "top": nn.Conv2d(8, 16, 3)}
    return Backbone(layers, InputSpec(size=16))


def plan(*trained, pooled=True, rows=10, net=None, **how):
    net = net or backbone()
    specs = [specs_of(net, layers, pooled=pooled) for layers in trained]
    return plan_stage_inputs(net, specs, dict.fromkeys(specs, rows), **{"max_bytes": 1e9, **how})


@pytest.mark.parametrize(
    ("trained", "cut"),
    [
        ((), "top"),
        (("top",), "pooling"),
        (("middle", "top"), "low"),
        (("middle",), "low"),  # the features of the frozen layer above change with the trained layer
        (("low",), None),
        (CUTS, None),
    ],
)
def test_the_frozen_prefix_ends_below_the_lowest_trained_layer(trained, cut):
    assert frozen_prefix(backbone(), trained) == cut


def test_each_stage_reads_the_features_at_its_cut_and_only_the_last_cut_is_pooled():
    head, top, middle, everything = plan((), ("top",), ("top", "middle"), CUTS)
    assert head.specs == (FeatureSpec("top", "average"),) and head.bytes == 10 * 16 * 4
    assert top.specs == (FeatureSpec("pooling", None),) and top.bytes == 10 * 8 * 6 * 6 * 4
    assert middle.specs == (FeatureSpec("low", None),) and everything.specs == ()
    assert "the lowest layer trains" in everything.reason and "pooled" in head.reason and "pooled" not in top.reason


def test_a_head_that_takes_maps_gets_maps():
    (head,) = plan((), pooled=False)
    assert head.specs == (FeatureSpec("top", None),) and head.bytes == 10 * 16 * 4 * 4 * 4


def test_stages_with_the_same_cut_share_its_features():
    assert len({id(stage_input) for stage_input in plan((), (), max_bytes=10 * 16 * 4)}) == 1


def test_earlier_stages_have_priority_and_the_reason_gives_the_sizes_that_do_not_fit():
    head, top, middle = plan((), ("top",), ("top", "middle"), max_bytes=10 * 16 * 4 + 11_520)
    assert head.specs and top.specs and not middle.specs
    assert "cache.max_gb leaves room for only 0 B" in middle.reason and "31.4 kB" in middle.reason
    assert plan((), max_bytes=0)[0].specs == ()


def test_half_precision_halves_the_size():
    assert plan((), dtype=torch.float16)[0].bytes * 2 == plan(())[0].bytes


def test_each_feature_spec_has_the_requested_number_of_rows():
    specs = [(FeatureSpec("top", "average"),), (FeatureSpec("pooling", None),)]
    head, top = plan_stage_inputs(backbone(), specs, {specs[0]: 15, specs[1]: 10}, max_bytes=1e9)
    assert head.bytes == 15 * 16 * 4 and top.bytes == 10 * 8 * 6 * 6 * 4


@pytest.mark.parametrize(("name", "trained_from", "device", "stored"), [
    ("resnet50", "layer2", "cpu", True),    # 3.2 MB an image, 1.6 GFLOP
    ("resnet50", "layer2", "cuda", False),
    ("resnet50", "layer4", "cuda", True),
    ("vgg11", "conv2", "cpu", False),  # 3.2 MB an image for one cheap convolution
])  # fmt: skip
def test_maps_are_stored_only_if_reading_is_faster_than_computing(name, trained_from, device, stored):
    net = load_backbone(name, weights=None)
    above = net.cuts[net.index(trained_from) :]
    (stage_input,) = plan(above, net=net, rows=100, max_bytes=1e12, device=device)
    assert bool(stage_input.specs) == stored
    assert stored or "takes longer than computing them" in stage_input.reason
