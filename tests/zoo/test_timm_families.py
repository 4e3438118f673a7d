"""Every architecture of those modules of timm whose networks are blocks or stages in a row, and the smallest of each family in full."""

import re
from math import prod

import pytest
import torch
from timm_networks import build

from ftlit.data.input_spec import InputSpec
from ftlit.models.backbone import Backbone
from ftlit.zoo.timm_split.timm_layers import take_apart

timm = pytest.importorskip("timm")

from timm_structure import module_of, structure, tags  # noqa: E402

pytestmark = [pytest.mark.zoo, pytest.mark.slow]

BLOCKS = ("eva", "naflexvit", "beit", "vision_transformer", "vision_transformer_relpos", "hiera")  # a layer for each block
STAGES = ("swin_transformer", "convnext", "metaformer")  # a layer for each stage, or for each of their blocks
SIZE = re.compile(
    r"(?<=_)(?:[a-z]*(?:small|wee|little|tiny|medium|base|large|huge|giant|nano|pico|atto|zepto|femto|enormous)d?|giantopt|gigantic"
    r"|betwixt|so\d+m\d?|\d+[bm]|[smb]\d\d|intern300m)(?=_|$)|(?<=patch|indow)\d+|(?<=_)\d{2,}(?=_|$)"
)
LARGE = 3e7  # parameters: larger networks are tested with two blocks


def architectures(modules):
    return [name for name in tags() if module_of(name) in modules]


def families():
    """Architectures by module and name without size."""
    found = {}
    for name in architectures((*BLOCKS, *STAGES)):
        found.setdefault(f"{module_of(name)} {re.sub('_+', '_', SIZE.sub('', name))}", []).append(name)
    return found


def parameters(name):
    with torch.device("meta"):
        return sum(prod(p.shape) for p in timm.create_model(name).parameters())


@pytest.mark.parametrize("name", architectures(BLOCKS))
def test_each_block_is_a_layer(name):
    with torch.device("meta"):
        blocks = len(timm.create_model(name).blocks)
    layers, note, _ = structure(name)
    assert not note and [layer for layer in layers if layer.startswith("blocks.")] == [f"blocks.{i}" for i in range(blocks)]


@pytest.mark.parametrize("name", architectures(STAGES))
def test_each_stage_is_a_layer(name):
    layers, note, _ = structure(name)
    assert not note and [layer for layer in layers if "s." in layer] == [f"{layers[1][:-2]}.{i}" for i in range(4)]


@pytest.mark.parametrize("name", architectures(STAGES))
def test_each_block_of_a_stage_is_a_layer_if_wanted(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    stages = {
        path: len(module.blocks) for path, module in model.named_modules() if re.fullmatch(r"\w+\.\d+", path) and hasattr(module, "blocks")
    }
    for stage in ("stages.2", "stages.3") if name.startswith("caformer") else ():
        del stages[stage]  # they reshape the features in front of their blocks
    layers, note, _ = structure(name, "blocks")
    expected = [f"{stage}.blocks.{i}" for stage, blocks in stages.items() if blocks > 1 for i in range(blocks)]
    assert not note and [layer for layer in layers if ".blocks." in layer] == expected


@pytest.mark.parametrize("names", families().values(), ids=families())
def test_the_smallest_network_of_a_family_loses_nothing_at_a_cut(names):
    name, count = min(((name, parameters(name)) for name in names), key=lambda each: each[1])
    size = timm.get_pretrained_cfg(name).input_size[-1]
    try:
        model = build(name, size, **({"depth": 2} if count > LARGE else {}))
    except (TypeError, AssertionError):  # its depth is no argument
        model = build(name, size)
    parts, note = take_apart(model, size, "blocks")
    backbone = Backbone(parts.layers, InputSpec(size=size), token_pool=parts.token_pool).eval()
    assert not note
    step = getattr(getattr(model, "patch_embed", None), "patch_size", (32,))[0]
    for side in (size, size // 2 // step * step):
        images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            try:
                wanted = model(images)
            except (AssertionError, RuntimeError):  # of another size than its own
                assert side != size
                continue
            *lower, features = backbone.features_at(images, backbone.cuts)
            for cut, below in zip(backbone.cuts[::5], lower[::5], strict=False):
                assert torch.equal(backbone.after(cut)(below), features), cut
            assert (parts.classifier(backbone.pool(features)) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
