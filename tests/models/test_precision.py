"""Number formats follow device and network; float32 settings can be read whichever of torch's two interfaces was used, and are restored."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ftlit.data.input_spec import InputSpec
from ftlit.data.tokens import TextSpec
from ftlit.features.keys import VALUES, feature_keys
from ftlit.features.spec import FeatureSpec
from ftlit.models.backbone import Backbone
from ftlit.models.heads import ConvHead, LinearHead, logits_of
from ftlit.models.pooling import POOLINGS, pool, poolings_of
from ftlit.models.precision import (
    Device,
    describe_float32,
    device_of,
    kept_matmul_precision,
    matmul_precision_of,
    precision_for,
    precision_of,
)


@pytest.fixture
def newer_interface():
    """Use torch's newer interface, after which the older one raises."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("torch before 2.9")
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    yield
    torch.backends.cuda.matmul.fp32_precision = "ieee"


BACKBONE = Backbone({"layer": nn.Linear(2, 2)}, InputSpec(size=2))


def key():
    return feature_keys(BACKBONE, [FeatureSpec("layer", None)], view=VALUES, size=(2,), dtype=torch.float32)[FeatureSpec("layer", None)]


def test_the_default_is_ieee_float32():
    assert describe_float32("cpu") == "highest" and describe_float32("mps") == "highest"
    assert describe_float32("cuda") == "highest, tf32"  # torch's default for convolutions


@pytest.mark.usefixtures("newer_interface")
def test_the_newer_interface_can_be_used_and_is_left_alone():
    assert describe_float32("cuda") == "high, tf32" and describe_float32("cpu") == "highest"
    with kept_matmul_precision("high"):
        assert describe_float32("cpu") == "highest"
    assert describe_float32("cuda") == "high, tf32"
    assert "float32, highest on cpu" in key().about["computed in"]


def test_precision_is_part_of_the_key_and_restored_after_a_block():
    before = key()
    with kept_matmul_precision("high"):
        assert describe_float32("cuda") == "high, tf32" and describe_float32("cpu") == "high"
        assert key().digest != before.digest
    assert key() == before


@pytest.mark.parametrize(
    ("device", "operations", "expected"),
    [
        (Device("cuda", (9, 0)), 1e6, "bf16-mixed"),
        (Device("cuda", (8, 0)), 1e10, "bf16-mixed"),
        (Device("cuda", (7, 5)), 1e10, "16-mixed"),  # emulates bfloat16
        (Device("cuda", (6, 1)), 1e10, "32-true"),
        (Device("cpu", bf16=True), 7e8, "bf16-mixed"),
        (Device("cpu", bf16=True), 4e7, "32-true"),
        (Device("cpu"), 1e10, "32-true"),
        (Device("mps"), 1e10, "32-true"),
    ],
)
def test_precision_depends_on_device_and_network(device, operations, expected):
    assert precision_of(device, operations) == expected
    assert matmul_precision_of(device) == ("high" if device.capability >= (8, 0) else "highest")


@pytest.mark.parametrize(
    ("accelerator", "gpu", "expected"), [("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu"), ("tpu", True, "tpu")]
)
def test_the_device_is_the_one_that_lightning_takes(accelerator, gpu, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    found = device_of(accelerator)
    assert found.type == expected and (found.capability == (9, 0)) == (expected == "cuda")


def test_networks_of_texts_compute_in_float32_on_a_cpu():
    operations = {"cuts": ("top",), "on_meta": lambda _: {"top": ((8,), 1e9)}}
    images, texts = (SimpleNamespace(input_spec=spec, **operations) for spec in (InputSpec(), TextSpec("folder", 8)))
    assert precision_for(images, Device("cpu", bf16=True)) == "bf16-mixed" and precision_for(texts, Device("cpu", bf16=True)) == "32-true"
    assert precision_for(texts, Device("cuda", (8, 0))) == "bf16-mixed"


@pytest.mark.parametrize("shape", [(4, 6, 3, 3), (4, 5, 6), (4, 6)])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_half_precision_features_are_pooled_in_float32(shape, pooling):
    features = torch.randn(shape).bfloat16()
    if pooling not in poolings_of(shape[1:]):
        return
    for token_pool in ("mean", "class_token", "masked_mean"):
        assert torch.equal(pool(features, token_pool, pooling), pool(features.float(), token_pool, pooling))


@pytest.mark.parametrize("head", [LinearHead(6, 3), ConvHead(6, 3).eval()])
def test_a_head_computes_in_the_format_of_its_weights(head):
    maps = torch.randn(4, 6, 5, 5).bfloat16()
    features = maps if getattr(head, "takes_map", False) else pool(maps)
    with torch.autocast("cpu", torch.bfloat16):
        logits = logits_of(head, [features])
    assert torch.equal(logits, logits_of(head, [features.float()])) and logits.dtype == torch.float32
    assert logits_of(head.bfloat16(), [features]).dtype == torch.bfloat16  # precision=bf16-true
