"""Blocks of timm networks that take rotary positions or a shared position bias: invariants 1 and 3, gradients, weights, fingerprints."""

from copy import deepcopy

import pytest
import torch
from invariant_1 import check_cuts
from timm_networks import BLOCKWISE, SHARING, build
from torch import nn

from ftlit import load_timm
from ftlit.data.input_spec import InputSpec
from ftlit.finetuning.freeze import set_trainable
from ftlit.identity.fingerprint import prefixes
from ftlit.models.backbone import Backbone
from ftlit.zoo.timm_split.grid_constants import WithGridConstants
from ftlit.zoo.timm_split.timm_layers import WHOLE, take_apart

pytestmark = pytest.mark.zoo


def images(size, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def split(family):
    """The network, its backbone, its classifier and the size of its images."""
    name, size, _, settings = BLOCKWISE[family]
    model = build(name, size, **settings)
    parts, note = take_apart(model, size)
    assert not note
    return model, Backbone(parts.layers, InputSpec(size=size), token_pool=parts.token_pool).eval(), parts.classifier, size


@pytest.mark.parametrize("family", BLOCKWISE)
def test_a_cut_loses_nothing_at_any_size_that_the_network_takes(family):
    model, backbone, classifier, size = split(family)
    for side in filter(None, (size, BLOCKWISE[family][2])):
        x = images(side)
        with torch.no_grad():
            wanted, features = model(x), backbone(x)
            if side == size:
                check_cuts(backbone, x)
            assert all(torch.equal(backbone.after(cut)(backbone.upto(cut)(x)), features) for cut in backbone.cuts)
            assert (classifier(backbone.pool(features)) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
            assert torch.allclose(backbone(images(side, 3)[:1]), backbone(images(side, 3))[:1], atol=1e-5), "of any number of images"
    parameters = [id(p) for module in (*backbone.children(), classifier) for p in module.parameters()]
    assert len(parameters) == len(set(parameters)) and set(parameters) == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("family", SHARING)
def test_parameters_that_all_blocks_use_belong_to_the_embeddings_and_get_the_gradient_of_the_network(family):
    model, backbone, classifier, size = split(family)
    shared = {id(p) for name, p in model.named_parameters() if name.startswith(("rope", "rel_pos", "shared_rel_pos"))}
    assert shared and shared <= {id(p) for p in backbone.embeddings.parameters()}
    classifier(backbone.pool(backbone(images(size)))).square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(images(size)).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if id(p) in shared)


@pytest.mark.parametrize("family", SHARING)
def test_blocks_above_a_frozen_prefix_train_and_its_features_stay(family):
    _, backbone, _, size = split(family)
    set_trainable(backbone, ["blocks.1"])
    before = backbone.upto("blocks.0")(images(size))
    backbone(images(size)).square().sum().backward()
    torch.optim.SGD(backbone.parameters(), lr=1.0).step()
    assert torch.equal(backbone.upto("blocks.0")(images(size)), before) and not before.requires_grad
    assert all(p.grad is not None for p in backbone.get_submodule("blocks.1").parameters() if p.requires_grad)


@pytest.mark.parametrize("family", SHARING)
def test_weights_from_a_file_and_copies_give_the_features_of_the_network(family, tmp_path):
    model, backbone, _, size = split(family)
    name, size, _, settings = BLOCKWISE[family]
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with torch.no_grad():
        wanted = backbone(images(size))
        loaded = load_timm(name, weights=tmp_path / "w.pth", input_spec={"size": size}, **settings).eval()
        assert torch.equal(loaded(images(size)), wanted)
        copied = deepcopy(loaded)
        for parameter in loaded.parameters():
            parameter.zero_()
        assert torch.equal(copied(images(size)), wanted)
        assert prefixes(dict(copied.items())) == prefixes(dict(backbone.items())) != prefixes(dict(loaded.items()))


def test_constants_of_the_size_are_stored_with_their_block_and_are_no_weights():
    _, backbone, _, _ = split("eva, rotary positions")
    block = backbone.get_submodule("blocks.0")
    assert isinstance(block, WithGridConstants) and block.constant_rope.shape == (4, 32)
    assert not any("constant" in name for name in backbone.state_dict())
    assert backbone.to(torch.float64)(images(32).double()).dtype == torch.float64


def test_a_backbone_without_its_lower_layers_accepts_tokens_of_other_square_grids_only():
    _, backbone, _, _ = split("eva, rotary positions")
    prefix, upper = 5, backbone.after("embeddings")
    assert upper(torch.randn(2, prefix + 9, 48)).shape == (2, 48)
    with pytest.raises(RuntimeError, match=r"blocks.0 takes features of images of 32 px only"):
        upper(torch.randn(2, prefix + 8, 48))
    with pytest.raises(RuntimeError, match="square images only, not 32x64"):
        backbone(torch.randn(2, 3, 32, 64))


def test_arguments_with_another_shape_in_training_mode_are_not_constants():
    model = build("vit_small_patch16_dinov3", 32, depth=2, embed_dim=48, num_heads=3, patch_drop_rate=0.5)
    assert "takes rope of another shape in training mode" in take_apart(model, 32)[1]


class MaskedBlock(nn.Linear):
    def forward(self, x, mask):
        return super().forward(x) * mask


class Masked(nn.Module):
    """A network in the manner of timm. Its blocks take a mask that depends on the image."""

    def __init__(self):
        super().__init__()
        self.pretrained_cfg = {"fixed_input_size": True}
        self.stem, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 2)
        self.blocks = nn.ModuleList(MaskedBlock(8, 8) for _ in range(12))

    def forward_features(self, x):
        mask = (x.mean(dim=(1, 2, 3)) > 0).float()[:, None, None] + 0.5
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, mask)
        return x

    def forward_head(self, x, pre_logits=False):
        return x.mean(dim=1) if pre_logits else self.head(x.mean(dim=1))

    def get_classifier(self):
        return self.head

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def test_arguments_that_depend_on_the_image_are_not_constants():
    assert take_apart(Masked().eval(), 16)[1].startswith(WHOLE)
