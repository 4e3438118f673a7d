"""Which parameters of a layer train: all, its biases, its norms, or its LoRA matrices."""

import pytest
import torch
from torch import nn

from ftlit import Schedule, Stage, UserError, add_lora, examine, set_trainable
from ftlit.finetuning.presets import bias_only, explicit, lora, norm_only, with_reinit
from ftlit.finetuning.schedule import trains_head_alone, trains_whole_layers
from ftlit.finetuning.train_entries import entries_of


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        block = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.LayerNorm(4))
        self.backbone = nn.ModuleDict({"low": nn.Linear(2, 2), "top": block})
        self.head = nn.Linear(4, 2)


def training(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_bias_norm_and_lora_select_their_parameters_in_the_covered_layers_only():
    net = Net()
    set_trainable(net, ["head", {"backbone.top": "bias"}])
    assert training(net) == {"head.weight", "head.bias", *(f"backbone.top.{i}.bias" for i in (1, 2, 3))}
    set_trainable(net, {"backbone": "norm"})
    assert training(net) == {f"backbone.top.{i}.{name}" for i in (1, 3) for name in ("weight", "bias")}
    add_lora(net, within=["backbone.top"])
    set_trainable(net, [("backbone", "lora"), {"head": "all"}])
    matrices = {f"backbone.top.{i}.parametrizations.weight.0.{name}" for i in (0, 2) for name in "ab"}
    assert training(net) == {"head.weight", "head.bias"} | matrices


def test_a_mapping_and_pairs_are_the_same_entries_and_all_is_the_pattern_alone():
    assert entries_of({"head": "all", "backbone": "bias"}) == entries_of(["head", ("backbone", "bias")]) == ("head", ("backbone", "bias"))
    assert Stage({"backbone": "norm"}).name == "backbone (norm)"


@pytest.mark.parametrize(
    ("train", "parts"),
    [
        ([{"backbone": "lora"}], ["no LoRA matrices", "add_lora"]),
        ([{"backbone.low": "norm"}], ["backbone.low (norm)", "no norms"]),
        ([{"backbone.lo": "bias"}], ["'backbone.lo'", "backbone.low"]),
        ([{"backbone": "biases"}], ["'biases'", "bias"]),
        ([3], ["has 3", "all or bias or norm or lora"]),
    ],
)
def test_an_entry_that_covers_nothing_or_names_no_part_is_an_error(train, parts):
    with pytest.raises(UserError) as caught:
        set_trainable(Net(), train)
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("preset", "part"), [(bias_only, "bias"), (norm_only, "norm"), (lora, "lora")])
def test_the_schedules_train_the_head_and_then_this_part_of_every_layer(preset, part):
    schedule = preset(["low", "top"])
    assert [stage.entries for stage in schedule.stages] == [("head",), ("head", ("backbone", part))]
    assert trains_head_alone(schedule.stages[0]) and not any(map(trains_whole_layers, schedule.stages))
    assert (schedule.lora is not None) == (part == "lora")


def test_an_explicit_schedule_takes_parts_and_reinitialized_layers_train_whole():
    schedule = explicit(["low", "top"], stages=[{"train": ["head", {"top": "lora"}]}], lora={"rank": 2})
    assert schedule.stages[0].entries == ("head", ("backbone.top", "lora")) and schedule.lora.rank == 2
    again = with_reinit(bias_only(["low", "top"]), ["top"])
    assert all("backbone.top" in stage.entries for stage in again.stages)


def test_a_layer_without_the_part_that_trains_is_no_missing_name():
    net = nn.ModuleDict({"low": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2), "head": nn.Linear(2, 2)})
    add_lora(net, within=["low"])
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    named, missing = ([{"low": "lora"}, {"norm": "all"}, "head"], [{"low": "lora"}, "head"])
    layers = ["low", "norm", "head"]
    assert not any("missing" in line for line in examine(net, Schedule([Stage([{"*": "lora"}, "head"])]), optimizer, layers).warnings)
    assert any("norm" in line for line in examine(net, Schedule([Stage(missing)]), optimizer, layers).warnings)
    assert not any("missing" in line for line in examine(net, Schedule([Stage(named)]), optimizer, layers).warnings)


def test_the_gradients_of_a_part_are_those_of_the_whole_layer():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    found = []
    for train in (["*"], [{"*": "bias"}]):
        set_trainable(net, train)
        net(torch.ones(2, 3)).sum().backward()
        found.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None and name.endswith("bias")})
        net.zero_grad()
    assert len(found[1]) == 3 and all(torch.equal(found[0][name], grad) for name, grad in found[1].items())
    assert Schedule([Stage({"*": "bias"})]).stages[0].entries == (("*", "bias"),)


def test_a_module_without_parameters_in_train_is_named_as_such():
    module = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(2, 2), nn.ReLU())})
    with pytest.raises(UserError, match=r"^`train` has 'encoder\.1', a module without parameters: leave it out$"):
        set_trainable(module, ["encoder", "encoder.1"])
