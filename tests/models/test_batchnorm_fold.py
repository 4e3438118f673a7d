"""Invariant 7: a rewrite keeps the function and may be applied twice."""

from collections import OrderedDict
from copy import deepcopy

import pytest
import torch
from batchnorm_networks import TOLERANCE, assert_same, assert_state_equal, logits, net, network, randomise
from lanes import nightly
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ftlit.errors import UserError
from ftlit.models.batchnorm_fold import AffineNorm, affine_to_batchnorm, batchnorm_to_affine, load_either
from ftlit.zoo.torchvision_nets import available

pytestmark = pytest.mark.zoo

# one small network of each family with BatchNorm -> the smallest convenient input
SMALL = {
    "glyph": 32, "vgg11_bn": 32, "resnet18": 64, "resnext50_32x4d": 64, "densenet121": 64, "googlenet": 64, "inception_v3": 96,
    "shufflenet_v2_x0_5": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "efficientnet_b0": 64, "efficientnet_v2_s": 64,
    "mnasnet0_5": 64, "regnet_y_400mf": 64, "maxvit_t": 224,
}  # fmt: skip
WITHOUT = ("alexnet", "convnext", "squeezenet", "swin", "vgg", "vit")
OTHERS = {name for name in available() if name.endswith("_bn") or not name.startswith(WITHOUT)} - set(SMALL) - {"mlp", "efficientnet_lite0"}
GIANTS = {"regnet_y_128gf", "efficientnet_b7", "efficientnet_v2_l"}


def norms(module, kind=_BatchNorm):
    return [m for m in module.modules() if isinstance(m, kind)]


def check_invariant_7(model, size):
    model.eval()
    assert norms(model)
    x, many = torch.randn(2, 3, size, size), len(norms(model))
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        affine = batchnorm_to_affine(deepcopy(model))
        back = affine_to_batchnorm(deepcopy(affine))
        before = logits(model, x.to(dtype))
        assert_same(before, logits(affine, x.to(dtype)))
        assert_same(before, logits(back, x.to(dtype)))
        assert (len(norms(affine)), len(norms(affine, AffineNorm)), len(norms(back))) == (0, many, many)
        assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
        assert_state_equal(affine.state_dict(), batchnorm_to_affine(back).state_dict())


@pytest.mark.parametrize("name", nightly(SMALL, ["maxvit_t", "vgg11_bn", "resnext50_32x4d"]))
def test_the_rewrite_keeps_the_function(name):
    check_invariant_7(network(name, SMALL[name]), SMALL[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OTHERS - GIANTS))
def test_the_rewrite_keeps_the_function_of_every_network(name):
    check_invariant_7(network(name, 64), 64)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("settings", [
    {}, {"affine": False}, {"eps": 0.5}, {"momentum": None}, {"momentum": 0.01, "eps": 1e-3},
])  # fmt: skip
@pytest.mark.parametrize(("kind", "shape"), [
    (nn.BatchNorm1d, ()), (nn.BatchNorm1d, (5,)), (nn.BatchNorm2d, (3, 5)), (nn.BatchNorm3d, (2, 3, 5)), (nn.SyncBatchNorm, (3, 5)),
])  # fmt: skip
def test_the_rewrite_supports_every_kind_of_batch_norm_with_every_setting(kind, shape, settings, dtype):
    torch.manual_seed(0)
    norm = randomise(kind(4, **settings)).to(dtype).eval()
    x = torch.randn(6, 4, *shape, dtype=dtype)
    affine = batchnorm_to_affine(norm)
    back = affine_to_batchnorm(affine)
    assert_same(norm(x), affine(x))
    assert_same(norm(x), back(x))
    assert (type(back), back.eps, back.momentum, back.affine, back.training) == (kind, norm.eps, norm.momentum, True, False)
    assert_state_equal(affine.state_dict(), batchnorm_to_affine(back).state_dict())


def test_a_restored_batch_norm_has_mean_0_and_variance_1_minus_eps():
    affine = batchnorm_to_affine(net(eps=1e-3))
    a, b = affine[1].weight, affine[1].bias
    back = affine_to_batchnorm(affine)[1]
    assert torch.equal(back.running_mean, torch.zeros(4))
    assert torch.equal(back.running_var, torch.full((4,), 1 - 1e-3))
    assert back.num_batches_tracked == 0
    assert torch.equal(back.weight, a) and torch.equal(back.bias, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.1, 0.9])
def test_the_round_trip_keeps_weight_and_bias_bit_for_bit(dtype, eps):
    torch.manual_seed(0)
    affine = AffineNorm(10000, eps=eps).to(dtype)
    nn.init.normal_(affine.weight)
    nn.init.normal_(affine.bias)
    assert_state_equal(affine.state_dict(), batchnorm_to_affine(affine_to_batchnorm(affine)).state_dict())


def test_a_second_rewrite_changes_nothing():
    once = batchnorm_to_affine(net())
    modules = list(once.modules())
    assert batchnorm_to_affine(once) is once
    assert all(a is b for a, b in zip(modules, once.modules(), strict=True))
    back = affine_to_batchnorm(once)
    modules = list(back.modules())
    assert all(a is b for a, b in zip(modules, affine_to_batchnorm(back).modules(), strict=True))


class CustomNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(("norm", "message"), [
    (nn.BatchNorm2d(4, track_running_stats=False), r"'2\.last' \(BatchNorm2d\) .* no running statistics"),
    (CustomNorm(4), r"'2\.last' \(CustomNorm\) .*: replace it by one of BatchNorm1d"),
    (nn.LazyBatchNorm2d(), r"'2\.last' \(LazyBatchNorm2d\) .*: replace it by one of BatchNorm1d"),
])  # fmt: skip
def test_an_unsupported_batch_norm_is_an_error_and_changes_nothing(norm, message):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ModuleDict({"last": norm}))
    before, names = list(model.modules()), list(model.state_dict())
    with pytest.raises(UserError, match=message) as error:
        batchnorm_to_affine(model)
    assert "\n" not in str(error.value)
    assert all(a is b for a, b in zip(before, model.modules(), strict=True))
    assert list(model.state_dict()) == names
    with pytest.raises(UserError, match="^" + type(norm).__name__):
        batchnorm_to_affine(norm)


def test_the_affine_form_has_no_buffers_that_processes_would_broadcast():
    model = network("resnet18", 64)
    assert list(model.buffers())
    assert list(batchnorm_to_affine(model).buffers()) == []


def test_the_rewrite_keeps_names_dtype_mode_and_requires_grad():
    model = net(torch.float64).train()
    model[1].weight.requires_grad_(False)
    model[5].bias.requires_grad_(False)
    model[5].eval()

    def state_of(m):
        return [(n, p.shape, p.dtype, p.requires_grad, p.is_leaf) for n, p in m.named_parameters()], [child.training for child in m]

    before, others = state_of(model), [model[i] for i in (0, 2, 3, 4)]
    assert batchnorm_to_affine(model) is model
    assert state_of(model) == before
    assert affine_to_batchnorm(model) is model
    assert state_of(model) == before
    assert all(a is b for a, b in zip(others, [model[i] for i in (0, 2, 3, 4)], strict=True))


def test_shared_modules_stay_shared():
    norm = randomise(nn.BatchNorm1d(4))
    model = nn.Sequential(OrderedDict(a=norm, b=nn.Sequential(norm, nn.ReLU()), c=norm, d=nn.BatchNorm1d(4))).eval()
    x = torch.randn(3, 4)
    old, expected, names = deepcopy(model), model(x), [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for rewrite in (batchnorm_to_affine, affine_to_batchnorm):
        rewrite(model)
        assert model.a is model.b[0] is model.c
        assert model.a is not model.d
        assert [name for name, _ in model.named_parameters(remove_duplicate=False)] == names
        assert_same(expected, model(x))
        load_either(old, model.state_dict())
        assert_same(expected, old(x))


def test_a_cut_of_the_backbone_is_rewritten_with_the_backbone():
    """`upto` shares its layers: a rewrite changes both."""
    backbone = network("resnet18", 64).backbone.eval()
    lower = backbone.upto("layer2")
    batchnorm_to_affine(backbone)
    assert norms(lower) == []
    assert backbone.num_features == 512


def test_gradients_equal_those_of_weight_times_x_plus_bias():
    torch.manual_seed(0)
    affine = AffineNorm(3).double()
    nn.init.normal_(affine.weight)
    nn.init.normal_(affine.bias)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(affine(x).sin().sum(), [x, *affine.parameters()])
    plain = x * affine.weight[:, None, None] + affine.bias[:, None, None]
    torch.testing.assert_close(affine(x), plain)
    torch.testing.assert_close(found, torch.autograd.grad(plain.sin().sum(), [x, *affine.parameters()]))


def test_the_affine_form_trains_with_a_batch_of_one():
    """BatchNorm cannot: one value per channel has no variance. Training and evaluation mode compute the same function."""
    x = torch.randn(1, 3, 4, 4)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net().train()(x)
    model = batchnorm_to_affine(net()).train()
    model(x).sum().backward()
    assert all(norm.weight.grad.any() and norm.bias.grad.any() for norm in norms(model, AffineNorm))
    assert torch.equal(model(x), model.eval()(x))


def test_half_precision_inputs_give_half_precision_outputs():
    """Under autocast the parameters stay in float32."""
    affine = batchnorm_to_affine(net())[1]
    x = torch.randn(2, 4, 3, 3, dtype=torch.bfloat16)
    assert affine(x).dtype == torch.bfloat16
    torch.testing.assert_close(affine(x).float(), affine(x.float()), rtol=1e-2, atol=1e-2)


def test_an_affine_norm_starts_as_the_identity_and_its_repr_names_the_original_class():
    x = torch.randn(2, 4, 3)
    assert torch.equal(AffineNorm(4)(x), x)
    assert str(batchnorm_to_affine(nn.SyncBatchNorm(4))) == "AffineNorm(4, was SyncBatchNorm)"
