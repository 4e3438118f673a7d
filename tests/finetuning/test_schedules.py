"""The ready-made schedules for modules whose backbone and head have any names."""

from functools import partial
from inspect import signature
from itertools import pairwise

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer, resnet18

import ftlit
from ftlit import UserError, load_backbone, schedules
from ftlit.finetuning.presets import SCHEDULES
from ftlit.finetuning.train_entries import select
from ftlit.patterns import covers


class Plain(nn.Module):
    """A network that holds its own head, with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(3))
        self.stem, self.pool, self.top, self.fc = nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2)


class Wrapped(nn.Module):
    """A module with an encoder and a classifier."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.classifier = encoder, nn.Linear(3, 2)


NAMES = [name for name in SCHEDULES if name != "explicit"]
MODULES = {  # module, where its backbone and head are, layers
    "alone": (Plain(), "", "fc", ["token", "stem", "top"]),
    "within": (nn.ModuleDict({"net": Plain()}), "net", "net.fc", ["token", "stem", "top"]),
    "beside": (Wrapped(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))), "encoder", "classifier", ["0", "2"]),
}


@pytest.mark.parametrize("module", MODULES)
def test_the_layers_are_all_that_has_parameters_but_the_head(module):
    network, backbone, head, layers = MODULES[module]
    assert schedules.layers_of(network, backbone, head) == layers


def test_there_is_one_for_each_option_of_the_command_line():
    assert [name for name in NAMES if not callable(getattr(ftlit.schedules, name, None))] == []
    assert all(getattr(schedules, name).__name__ == name and getattr(schedules, name).__doc__ for name in NAMES)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("norm_only", "lora")])
def test_it_trains_what_the_option_trains(name, module):
    network, backbone, head, layers = MODULES[module]
    usual = nn.ModuleDict({"backbone": nn.ModuleDict(), "head": nn.Linear(3, 2)})
    for layer in layers:
        part = network.get_submodule(backbone) if backbone else network
        if isinstance(getattr(part, layer), nn.Parameter):
            usual.backbone.register_parameter(layer, nn.Parameter(torch.zeros(3)))
        else:
            usual.backbone.add_module(layer, nn.Linear(3, 3))
    own, wanted = getattr(schedules, name)(network, backbone=backbone, head=head), SCHEDULES[name](layers)
    assert [stage.begins for stage in own.stages] == [stage.begins for stage in wanted.stages]
    prefix = f"{backbone}." if backbone else ""
    for one, other in zip(own.stages, wanted.stages, strict=True):
        expected = {renamed(parameter, prefix, head) for parameter in select(usual, other.entries)}
        assert select(network, one.entries) == expected
    assert dict(own.lr_scale) == {renamed(pattern, prefix, head): factor for pattern, factor in wanted.lr_scale}
    assert {parameter for group in ftlit.param_groups(network, own.lr_scale) for parameter in group["params"]} == {*network.parameters()}


def renamed(name, prefix, head):
    return head + name.removeprefix("head") if name.startswith("head") else prefix + name.removeprefix("backbone.")


def test_a_backbone_has_its_own_layers_and_options_are_those_of_the_command_line():
    module = Wrapped(load_backbone("glyph"))
    schedule = schedules.top_down(module, backbone="encoder", head="classifier", every=3, batchnorm="frozen_stats")
    assert [stage.epoch for stage in schedule.stages][:3] == [None, 1, 4] or [stage.epoch or 0 for stage in schedule.stages][:3] == [
        0,
        1,
        4,
    ]
    names = ["classifier", "classifier + encoder.layer4 and above", "classifier + encoder.layer3 and above"]
    assert [stage.name for stage in schedule.stages][:3] == names and schedule.stages[-1].name == "all"
    assert schedule.stages[1].train == ("classifier", "encoder.layer4") and schedule.stages[1].batchnorm == "frozen_stats"
    rates = schedules.layer_lrs(module, backbone="encoder", head="classifier", scale=0.5, decay=0.5)
    assert rates[:3] == [("classifier", 1.0), ("encoder.layer4", 0.5), ("encoder.layer3", 0.25)]


@pytest.mark.parametrize(
    ("layers", "preset", "names"),
    [
        (["all", "above", "norms"], "top_down", ["fc", "fc + norms and above", "fc + above and above", "all"]),
        (["norms", "all"], "norm_only", ["fc", "fc + norms"]),
        (["x", "head", "backbone"], "top_down", ["fc", "fc + encoder.backbone and above", "fc + encoder.head and above", "all"]),
        (["a", "ab", "a1"], "top_down", ["fc", "fc + encoder.a1 and above", "fc + encoder.ab and above", "all"]),
        (["a", "ab", "a1"], "last_k", ["fc", "fc + encoder.a1"]),
        (["a", "ab", "a1"], partial(schedules.last_k, k=2), ["fc", "fc + encoder.ab..encoder.a1"]),
    ],
)
def test_stages_are_named_by_their_layers_whatever_their_names(layers, preset, names):
    module = nn.ModuleDict({"encoder": nn.ModuleDict({name: nn.Linear(2, 2) for name in layers}), "fc": nn.Linear(2, 2)})
    made = (getattr(schedules, preset) if isinstance(preset, str) else preset)(module, backbone="encoder", head="fc")
    assert [stage.name for stage in made.stages] == names


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"head": "fcc"}, r"Plain has no module 'fcc': did you mean head='fc'\? There are: stem, top, fc$"),
        ({"head": "zzz"}, r"Plain has no module 'zzz': give head='fc', or another one of stem, top, fc$"),
        (
            {"backbone": "stem.conv"},
            r"Plain has no module 'stem.conv': give 'stem', which has no inner modules with parameters, or",
        ),
        ({"evry": 2}, "top_down has no argument 'evry': did you mean 'every'"),
        ({"backbone": "top"}, "Plain has 3 parameters outside of backbone='top' and head='fc'"),
        ({"layers": ["token", "steam", "top"]}, "no parameters .* 'steam': did you mean 'stem'"),
        ({"layers": ["token", "top"]}, r"layers=\['token', 'top'\] leaves out 2 parameters of the module: add stem, or give globs"),
        ({"layers": [["token", "steam"], "top"]}, "no parameters .* 'steam': did you mean 'stem'"),
        ({"layers": ["token", ["stem", 1]]}, r"list of names: give one name for each layer, or a list of names for modules that .*conv1"),
        ({"layers": ["token", []]}, "is not a list of names"),
        ({"layers": "stem"}, "layers='stem' is not a list of names: give layers=\\['stem'\\]"),
    ],
)
def test_a_wrong_name_is_one_line(wrong, line):
    with pytest.raises(UserError, match=line):
        schedules.top_down(Plain(), **{"backbone": "", "head": "fc", **wrong})


@pytest.mark.parametrize(("option", "call"), [({"rank": 2}, "Lora(rank=2)"), ({"targets": ["qkv"]}, "Lora(targets=['qkv'])")])
def test_options_of_the_matrices_which_the_module_has_already_are_one_line(option, call):
    with pytest.raises(UserError) as caught:
        schedules.lora(backbone="net", head="net.fc", **option)
    assert str(caught.value).endswith(f"leave it out, and call ftlit.add_lora(self.net, ftlit.{call}) in __init__")
    net = Plain()
    ftlit.add_lora(net, ftlit.Lora(rank=2), within=["stem", "top"])
    schedule = schedules.lora(net, backbone="", head="fc")
    assert schedule.lora is None and not {"rank", "alpha", "targets"} & set(signature(schedules.lora).parameters)


@pytest.mark.parametrize("scale", [-1, float("nan")])
def test_a_factor_that_is_no_rate_is_one_line(scale):
    with pytest.raises(UserError, match=rf"^learning-rate factor {scale:.1f} of 'top': give a number, 0 or more$"):
        schedules.layer_lrs(Plain(), backbone="", head="fc", scale=scale)


def test_a_module_without_a_backbone_is_an_error_that_names_its_children_only():
    module = nn.ModuleDict({"pool": nn.Flatten(), "encoder": Plain(), "fc": nn.Linear(3, 2)})
    children = "give backbone='encoder', or another one of encoder, fc; or backbone='' if the module itself is the backbone"
    with pytest.raises(UserError, match=f"has no module 'backbone': {children}$"):
        schedules.layer_lrs(module)
    with pytest.raises(UserError, match=r"has no module 'encoder\.zzz': give backbone='encoder\.stem', or another one of encoder\.stem, "):
        schedules.layer_lrs(module, backbone="encoder.zzz", head="fc")


def test_layers_are_unfrozen_from_the_top_in_whichever_order_they_are_given():
    module, where = MODULES["within"][0], {"backbone": "net", "head": "net.fc"}
    lowest_first = schedules.top_down(module, **where)
    for layers in (["top", "stem", "token"], ["stem", "top", "token"], ["to[p]", "token", "stem"]):
        own = schedules.top_down(module, **where, layers=layers)
        assert [select(module, stage.entries) for stage in own.stages] == [select(module, stage.entries) for stage in lowest_first.stages]
    assert schedules.layer_lrs(module, **where, layers=["top", "stem", "token"]) == schedules.layer_lrs(module, **where)


def test_a_layer_named_from_the_module_is_one_line():
    with pytest.raises(UserError, match=r"are relative to the backbone 'encoder': give '2' instead of 'encoder\.2'"):
        schedules.top_down(MODULES["beside"][0], backbone="encoder", head="classifier", layers=["0", "encoder.2"])


def test_a_single_child_is_taken_apart():
    network = nn.Sequential()
    network.add_module("features", MODULES["beside"][0].encoder)
    assert schedules.layers_of(Wrapped(network), "encoder", "classifier") == ["features.0", "features.2"]
    assert schedules.layers_of(Wrapped(nn.Sequential(nn.Linear(3, 3))), "encoder", "classifier") == ["0"]
    network.add_module("fc", nn.Linear(3, 2))
    assert schedules.layers_of(network, "", "fc") == ["features.0", "features.2"]
    assert len(schedules.top_down(Wrapped(network.features), backbone="encoder", head="classifier").stages) == 3


def vit():
    """A module around a small ViT of torchvision, with a head of its own."""
    encoder = VisionTransformer(image_size=4, patch_size=2, num_layers=2, num_heads=1, hidden_dim=3, mlp_dim=4, num_classes=5)
    encoder.heads = nn.Identity()
    return Wrapped(encoder)


def test_a_torchvision_network_has_the_layers_of_its_backbone():
    module, where = vit(), {"backbone": "encoder", "head": "classifier"}
    backbone = ftlit.backbone_from(module.encoder, input_spec=ftlit.InputSpec(size=4))
    sizes = [sum(p.numel() for p in layer.parameters()) for _, layer in backbone.items()]
    schedule = schedules.top_down(module, **where)
    numbers = [sum(module.get_parameter(name).numel() for name in select(module, stage.entries)) for stage in schedule.stages]
    assert [after - before for before, after in pairwise(numbers)] == sizes[::-1]
    frozen = schedules.all_at_once(module, **where, freeze_embeddings=True, freeze_layers="0")
    assert set(frozen.frozen) >= {"encoder.class_token", "encoder.conv_proj", "encoder.encoder.layers.encoder_layer_0"}
    assert schedules.layers_of(resnet18(), "", "fc") == [["conv1", "bn1"], "layer1", "layer2", "layer3", "layer4"]
    assert schedules.layers_of(Wrapped(resnet18()), "encoder", "classifier")[-1] == "fc"  # a classifier that stays is the top layer


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "lowest", "highest", "number"),
    [
        ("test_vit", ["cls_token", "pos_embed", "patch_embed"], ["blocks.5", "norm"], 7),
        ("test_convnext", "stem", ["stages.3", "head"], 5),
        ("test_resnet", ["conv1", "bn1"], "layer4", 5),
        ("test_vit2", ["reg_token", "pos_embed", "patch_embed"], ["blocks.7", "fc_norm"], 9),
        ("poolformer_s12", "stem", "head", 3),  # timm has no groups for it: its children
    ],
)
def test_a_timm_network_has_the_layers_by_which_timm_groups_it(name, lowest, highest, number):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        module, whole = Wrapped(timm.create_model(name, num_classes=0)), timm.create_model(name)
    layers = schedules.layers_of(module, "encoder", "classifier")
    assert (layers[0], layers[-1], len(layers)) == (lowest, highest, number)
    inside = [pattern for layer in layers for pattern in ([layer] if isinstance(layer, str) else layer)]
    names = [parameter for parameter, _ in module.encoder.named_parameters()]
    assert [sum(covers(pattern, parameter) for pattern in inside) for parameter in names] == [1] * len(names)
    schedule = schedules.top_down(module, backbone="encoder", head="classifier")
    assert len(schedule.stages) == number + 1 and len(select(module, schedule.stages[-1].entries)) == len(names) + 2
    if number > 3:
        assert schedules.layers_of(whole, "", whole.default_cfg["classifier"])[:-1] == layers[:-1]


def test_the_layers_found_may_be_given_as_layers():
    module, where = vit(), {"backbone": "encoder", "head": "classifier"}
    layers = schedules.layers_of(module, **where)
    assert schedules.top_down(module, **where, layers=layers) == schedules.top_down(module, **where)
    assert schedules.layer_lrs(module, **where, layers=layers) == schedules.layer_lrs(module, **where)


@pytest.mark.zoo
def test_a_network_of_timm_with_other_parts_has_its_children_as_layers():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = timm.create_model("inception_v3")
    del network.fc
    network.head = nn.Linear(2048, 3, device="meta")
    assert schedules.layers_of(network, "", "head")[:2] == ["Conv2d_1a_3x3", "Conv2d_2a_3x3"]


def test_a_network_of_torchvision_with_other_parts_has_its_children_as_layers():
    network = resnet18()
    del network.maxpool
    assert schedules.layers_of(network, "", "fc") == ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]


def test_a_list_of_names_is_one_layer():
    module, where = MODULES["within"][0], {"backbone": "net", "head": "net.fc"}
    schedule = schedules.top_down(module, **where, layers=[["token", "stem"], "top"])
    assert [stage.train for stage in schedule.stages][1:] == [("net.fc", "net.top"), ("net.fc", "net.token", "net.stem", "net.top")]
    assert [stage.name for stage in schedules.last_k(module, **where, k=1, layers=[["top", "stem"], "token"]).stages][1] == (
        "net.fc + [net.top, net.stem]"
    )
    rates = schedules.layer_lrs(module, **where, layers=[["top", "stem"], "token"], scale=0.5, decay=0.5)
    assert rates == [("net.fc", 1.0), ("net.top", 0.5), ("net.stem", 0.5), ("net.token", 0.25)]


def test_without_a_module_it_is_a_function_of_the_module():
    module, backbone, head, _ = MODULES["beside"]
    later = schedules.top_down(backbone=backbone, head=head, every=3)
    assert later(module) == schedules.top_down(module, backbone=backbone, head=head, every=3)
    with pytest.raises(UserError, match="top_down has no argument 'evry'"):
        schedules.top_down(backbone=backbone, head=head, evry=3)


@pytest.mark.parametrize("function", [schedules.top_down, schedules.layer_lrs, schedules.layers_of])
def test_a_name_in_place_of_the_module_is_one_line(function):
    with pytest.raises(UserError, match=r"^a schedule is made for an nn\.Module, not for 'model': give the module, as in"):
        function("model")
