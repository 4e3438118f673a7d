"""Invariant 7 for LoRA: the rewrite keeps the function, may be applied twice, and is merged into plain weights."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, swin_t, vit_b_16

from ftlit import Lora, UserError, add_lora, merge_lora
from ftlit.models.lora import lora_parameters


def vit():
    net = vit_b_16(image_size=32)
    net.heads = nn.Identity()  # its head begins with zeros
    return net


NETS = {
    "linear layers": lambda: nn.Sequential(nn.Linear(3 * 32 * 32, 4), nn.ReLU(), nn.Linear(4, 2)),
    "a functional read of the weight": swin_t,
    "torch's attention": vit,
    "convolutions": resnet18,
}


@pytest.mark.parametrize("name", NETS)
def test_the_function_is_unchanged_until_the_matrices_train_and_merging_keeps_it(name):
    torch.manual_seed(0)
    net, images = NETS[name]().eval(), torch.randn(2, 3, 32, 32)
    images = images.flatten(1) if name == "linear layers" else images
    with torch.no_grad():
        plain, names = net(images), set(net.state_dict())
        weights = add_lora(net)
        assert torch.equal(net(images), plain) and set(weights) <= names
        assert add_lora(net) == weights and torch.equal(net(images), plain)  # the second time changes nothing
        for matrix in lora_parameters(net):
            nn.init.normal_(matrix, std=0.05)
        adapted = net(images)
        assert (adapted - plain).abs().max() > 1e-3
        assert merge_lora(net) is net and set(net.state_dict()) == names and not lora_parameters(net)
        assert torch.allclose(net(images), adapted, atol=1e-6)


def test_the_product_has_the_rank_and_the_scale():
    net = nn.Linear(6, 5, bias=False)
    before = net.weight.detach().clone()
    add_lora(net, Lora(rank=2, alpha=6))
    a, b = net.parametrizations.weight[0].a, net.parametrizations.weight[0].b
    nn.init.normal_(b)
    assert a.shape == (2, 6) and torch.allclose(merge_lora(net).weight - before, 3 * b @ a)


def test_only_the_projections_of_attention_get_matrices_by_default():
    net = swin_t()
    assert {name.split(".")[-2] for name in add_lora(net)} == {"qkv", "proj"}


def test_targets_and_layers_are_chosen_by_patterns():
    net = nn.ModuleDict({"low": nn.Linear(2, 2), "top": nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1))})
    assert add_lora(net, Lora(targets=["*.0.weight", "low"]), within=["top"]) == ["top.0.weight"]


def test_matrices_and_head_of_vit_b_16_take_less_than_3_mb():
    with torch.device("meta"):
        net = vit_b_16(num_classes=100)
    add_lora(net)
    assert sum(part.numel() for part in (*lora_parameters(net), *net.heads.parameters())) * 4 < 3e6


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: Lora(rank=0), "rank=0"),
        (lambda: Lora(alpha=-1), "alpha=-1"),
        (lambda: add_lora(nn.Linear(2, 2), Lora(targets=["qkv"])), "'qkv'"),
        (lambda: add_lora(nn.Sequential(nn.Linear(2, 2)), within=["1"]), "'1'"),
        (lambda: add_lora(nn.ReLU()), "linear layers or convolutions"),
        (lambda: add_lora(nn.Linear(2, 2), 4), "lora=4: give an object such as Lora(rank=8)"),
        (lambda: [add_lora(net, Lora(rank)) for net in [nn.Linear(9, 9)] for rank in (2, 3)], "merge_lora"),
    ],
)
def test_what_cannot_be_done_is_a_line(make, part):
    with pytest.raises(UserError) as caught:
        make()
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_one_text_is_one_pattern():
    for targets, within in (("top", "*"), ((), "top"), (["top"], ["*"])):
        net = nn.ModuleDict({"low": nn.Linear(2, 2), "top": nn.Linear(2, 2)})
        assert add_lora(net, Lora(targets=targets), within) == ["top.weight"]
