"""The plan describes each layer in each stage, and warns of silent mistakes."""

import re
from dataclasses import fields
from functools import partial

import pytest
import torch
from torch import nn

from ftlit import Backbone, InputSpec, Rates, Schedule, Stage, Until, UserError, WeightsOrigin, build_optimizer
from ftlit.finetuning.examine import examine
from ftlit.finetuning.freeze import set_trainable
from ftlit.finetuning.hints import IN_PYTHON, ON_COMMAND_LINE, Hints
from ftlit.finetuning.lr_schedule import cosine, plateau
from ftlit.finetuning.plan import LayerRow
from ftlit.models.weights_origin import RANDOM

SGD = partial(torch.optim.SGD, lr=0.1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.high = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)


LAYERS = ["low", "high", "head"]
SCHEDULE = Schedule([Stage(["head"]), Stage(["head", "high"], epoch=1), Stage(["*"], epoch=3)], [("head", 1.0), ("*", 0.5)])


def plan(schedule=SCHEDULE, model=None, optimizer=None, **known):
    model = model or Net()
    return examine(model, schedule, optimizer or build_optimizer(model, SGD, schedule.lr_scale), LAYERS, **known)


def test_a_row_gives_modes_groups_rates_and_batchnorm_policies_of_a_layer():
    assert plan().rows == (
        LayerRow("low", 24, 2, (0, 0, 24), ("*",), (0.05,), ("frozen", "frozen", "live"), 24),
        LayerRow("high", 20, 1, (0, 20, 20), ("*",), (0.05,), (), 20),
        LayerRow("head", 10, 0, (10, 10, 10), ("head",), (0.1,), (), 10),
    )
    assert [row.modes for row in plan().rows] == [("eval", "eval", "train"), ("eval", "train", "train"), ("train",) * 3]


@pytest.mark.parametrize("part", ["bias", "norm"])
def test_the_numbers_that_train_are_those_of_the_parameters_that_a_stage_trains(part):
    model, schedule = Net(), Schedule([Stage(["head"]), Stage([{"*": part}], epoch=1), Stage(["*"], epoch=2)])
    names = {"bias": ["low.0.bias", "low.1.bias"], "norm": ["low.1.weight", "low.1.bias"]}[part]
    number = sum(parameter.numel() for name, parameter in model.named_parameters() if name in names)
    row = plan(schedule, model).rows[0]
    assert row.training == (0, number, row.size) and row.modes == ("eval", "part", "train") and number == 8
    assert "24 parameters; trains in stage 1 (8 parameters), 2;" in row.describe()


def test_modules_without_a_row_are_counted_and_named():
    model = Net()
    optimizer = build_optimizer(model, SGD, SCHEDULE.lr_scale)
    partly = examine(model, SCHEDULE, optimizer, ["low.1", "head"])
    assert partly.without_row == ("low.0", "high")
    assert "\nin none of these lines: low.0, high\n" in partly.describe() + "\n"
    assert plan().without_row == () and "in none of" not in plan().describe()
    many = nn.Sequential(*(nn.Linear(1, 1) for _ in range(6)))
    text = examine(many, Schedule([Stage(["*"])]), build_optimizer(many, SGD), ["5"]).describe()
    assert "in none of these lines: 0, 1, 2, 3, ... (5 in all)" in text


def test_ddp_reduces_four_bytes_for_each_trained_value():
    assert plan().reduced == (4 * 10, 4 * 30, 4 * 54)


def test_a_frozen_batch_norm_is_not_reduced():
    schedule = Schedule([Stage(["*"], batchnorm="frozen")])
    assert plan(schedule).reduced == (4 * (54 - 8),) and plan(schedule).rows[0].modes == ("part",)


def test_examine_does_not_change_the_model():
    model = Net()
    plan(model=model)
    assert all(p.requires_grad for p in model.parameters()) and all(m.training for m in model.modules())


def test_a_usual_plan_has_no_warnings():
    assert plan(batch_size=32).warnings == ()


def test_few_steps_for_a_head_with_random_weights_are_reported():
    (warning,) = plan(steps=99).warnings
    assert warning.startswith("the head starts from random weights and gets only 99 optimizer steps") and "train longer" in warning
    assert plan(steps=100).warnings == plan(steps=5, fits_head=True).warnings == plan().warnings == ()
    assert plan(steps=100).steps == 100


@pytest.mark.parametrize("first", [["high"], ["low", "high"], [{"low": "norm"}]], ids=str)
def test_layers_that_train_before_a_head_with_random_weights_are_reported(first):
    late = Schedule([Stage(first, name="first"), Stage(["*"], epoch=1)])
    (warning,) = plan(late).warnings
    assert warning.startswith("stage 'first' trains ") and "before head trains" in warning and "train head in this stage" in warning
    assert plan(late, fits_head=True).warnings == ()


def test_only_a_head_with_trained_weights_needs_no_training_before_the_layers_below_it():
    late = Schedule([Stage(["high"]), Stage(["*"], epoch=1)])
    inner, outer = Net(), Net()
    inner.high, inner.high.origin = nn.Linear(4, 4), WeightsOrigin("file", "a.pth")
    outer.head.origin = WeightsOrigin("file", "a.pth")
    assert len(plan(late, inner, steps=9).warnings) == 2 and plan(late, outer, steps=9).warnings == ()


def test_a_head_that_has_trained_may_be_frozen_again():
    assert plan(Schedule([Stage(["head"]), Stage(["low", "high"], epoch=1), Stage(["*"], epoch=2)])).warnings == ()


def test_the_top_layer_of_a_backbone_is_no_head():
    layers = {"low": nn.Conv2d(3, 4, 1), "top": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))}
    model = nn.ModuleDict({"head": nn.Linear(4, 2), "backbone": Backbone(layers, InputSpec(size=8), origin=WeightsOrigin("custom", "own"))})
    schedule = Schedule([Stage(["head", "backbone.low"]), Stage(["*"], epoch=1)])
    assert examine(model, schedule, build_optimizer(model, SGD)).warnings == ()


def test_a_linear_probe_is_proposed_only_where_it_may_be_fitted():
    line = plan(steps=99, may_fit_head=True).warnings[0]
    assert "begin with a fitted head (FitProbeHead)" in line
    assert plan(steps=99, may_fit_head=False).warnings == plan(steps=99).warnings  # a fitted head needs a `Backbone`
    assert "FitProbeHead" not in plan(steps=99).warnings[0]
    model = Net()
    model.head.origin = WeightsOrigin("custom", "my head")  # as the line says
    assert 'origin = WeightsOrigin("custom", "my head")' in line and plan(model=model, steps=99).warnings == ()


def test_a_parameter_in_no_group_or_in_two_groups_is_reported():
    model = Net()
    forgotten = torch.optim.SGD([*model.low.parameters(), *model.high.parameters()], lr=0.1)
    twice = build_optimizer(model, SGD)
    alike = Schedule(SCHEDULE.stages)  # without learning-rate factors
    twice.param_groups.append({**twice.param_groups[0], "params": [model.head.bias]})
    (missing,), (double,) = plan(alike, model, forgotten).warnings, plan(alike, model, twice).warnings
    assert missing.startswith("these parameters do not train, because they are in no optimizer group: head.weight, head.bias")
    assert double.startswith("parameters in several optimizer groups are updated more than once per step: head.bias")


def test_factors_of_the_optimizer_that_are_not_those_of_the_schedule_are_the_error_of_training():
    model, schedule = Net(), Schedule([Stage(["*"])], [("head", 1.0), ("low", 0.01), ("high", 0.1)])
    with pytest.raises(UserError, match=r"low\.\S+ has the learning-rate factor 0\.1 in the optimizer, but 0\.01 in the schedule"):
        plan(model=model, schedule=schedule, optimizer=build_optimizer(model, SGD, [("head", 1.0), ("*", 0.1)]))
    assert plan(model=model, schedule=schedule, optimizer=build_optimizer(model, SGD, schedule.lr_scale))


def test_a_scheduler_that_overwrites_the_learning_rates_is_a_warning():
    model = Net()
    optimizer = build_optimizer(model, SGD, SCHEDULE.lr_scale)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    assert any("a scheduler has overwritten" in line for line in plan(model=model, optimizer=([optimizer], [scheduler])).warnings)


def test_the_optimizer_of_another_module_is_one_warning():
    model, other = Net(), Net()
    assert plan(model=model, optimizer=build_optimizer(other, SGD)).warnings == (
        "the optimizer holds parameters of another module: build it from this module",
    )
    partly = torch.optim.SGD([*model.low.parameters(), *model.high.parameters(), *other.head.parameters()], lr=0.1)
    foreign, missing = plan(Schedule(SCHEDULE.stages), model, partly).warnings
    assert "another module" in foreign and missing.endswith("head.weight, head.bias; use ftlit.build_optimizer")


@pytest.mark.parametrize(
    "returns",
    [lambda own: {"optimizer": own, "lr_scheduler": None}, lambda own: ([own], [{"scheduler": None}]), lambda own: [own]],
    ids=["dict", "tuple", "list"],
)
def test_the_optimizer_is_taken_out_of_what_configure_optimizers_returns(returns):
    model = Net()
    own = build_optimizer(model, SGD, SCHEDULE.lr_scale)
    assert plan(model=model, optimizer=returns(own)) == plan(model=model, optimizer=own)


@pytest.mark.parametrize(("number", "message"), [(0, "needs one optimizer, not tuple"), (2, "needs one optimizer, not 2 optimizers")])
def test_no_optimizer_or_several_are_an_error(number, message):
    model = Net()
    with pytest.raises(UserError, match=message):
        plan(model=model, optimizer=([build_optimizer(model, SGD) for _ in range(number)], []))


def test_rates_are_those_before_the_first_factor_of_a_warm_up():
    model = Net()
    optimizer = build_optimizer(model, SGD, SCHEDULE.lr_scale)
    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01)
    assert optimizer.param_groups[0]["lr"] < 0.01 and plan(model=model, optimizer=optimizer).rows == plan().rows


def test_rates_are_those_with_which_each_stage_begins():
    model = Net()
    optimizer = build_optimizer(model, SGD, SCHEDULE.lr_scale)
    rates = Rates(optimizer, cosine, steps=10, epochs=5, stage_factors=[1, 0.5, 0.01])
    low, high, head = (row.rates_text for row in plan(model=model, optimizer={"optimizer": optimizer, "lr_scheduler": rates.config}).rows)
    assert (low, high, head) == ("5.0e-04", "2.5e-02 in 1, 5.0e-04 in 2", "1.0e-01 in 0, 5.0e-02 in 1, 1.0e-03 in 2")
    equal = Rates(optimizer, cosine, steps=10, epochs=5, stage_factors=[1, 0.1, 0.1])
    assert plan(model=model, optimizer=([optimizer], [equal])).rows[2].rates_text == "1.0e-01 in 0, 1.0e-02 in 1-2"
    with pytest.raises(UserError, match=r"stage_factors=\[1\] has 1 number, but the schedule has 3 stages"):
        plan(model=model, optimizer=([optimizer], [Rates(optimizer, cosine, steps=10, epochs=5, stage_factors=[1])]))


def test_a_factor_of_0_for_layers_that_train_is_a_warning():
    model, schedule = Net(), Schedule([Stage(["head"]), Stage(["head", "high"], epoch=1)])
    optimizer = build_optimizer(model, SGD, [("head", 1.0), ("high", 0.0), ("low", 0.0)])
    (warning,) = [line for line in plan(schedule, model, optimizer).warnings if "is 0" in line]
    assert warning.startswith("the learning rate of 'high' is 0 in the optimizer, so these parameters never change")


def test_layers_listed_top_first_give_the_same_plan():
    model, top_down = Net(), Schedule([Stage(["head"]), Stage(["head", "high"], epoch=1)])
    optimizer = build_optimizer(model, SGD)
    assert examine(model, top_down, optimizer, LAYERS[::-1]) == examine(model, top_down, optimizer, LAYERS)
    assert examine(model, top_down, optimizer, "low") == examine(model, top_down, optimizer, ["low"])


@pytest.mark.parametrize("glob", [False, True])
def test_rows_are_the_modules_that_stages_and_groups_name_so_that_a_gap_is_reported(glob):
    net = nn.ModuleDict({"encoder": nn.Sequential(nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))), "head": nn.Linear(2, 2)})
    named = ["encoder.0.[13]"] if glob else ["encoder.0.3", "encoder.0.1"]
    schedule, rates = Schedule([Stage(["head", *named])]), [("head", 1.0), *((name, 0.5) for name in named), ("*", 0.1)]
    found = examine(net, schedule, build_optimizer(net, SGD, rates))
    assert [row.layer for row in found.rows] == ["encoder.0.0", "encoder.0.1", "encoder.0.2", "encoder.0.3", "head"]
    assert all(len(row.rates) == 1 for row in found.rows) and found.warnings[0].startswith("no stage trains encoder.0.2, although")
    grouped = examine(net, Schedule([Stage(["*"])]), build_optimizer(net, SGD, rates, decay_all=False))
    assert [row.layer for row in grouped.rows] == [row.layer for row in found.rows]


def test_an_unknown_layer_is_an_error_with_the_closest_name():
    model = Net()
    with pytest.raises(UserError, match="Net has no module 'hihg': did you mean 'high'"):
        examine(model, SCHEDULE, build_optimizer(model, SGD, SCHEDULE.lr_scale), ["hihg"])


@pytest.mark.parametrize("known", [{"max_epochs": 3}, {"max_epochs": 3, "steps": 300}])
def test_a_stage_that_training_never_reaches_is_an_error(known):
    with pytest.raises(UserError, match=r"the last stage '\*' would never begin, because max_epochs=3"):
        plan(**known)
    assert plan(**known | {"max_epochs": 4}).steps == known.get("steps")


def test_a_stage_by_step_is_checked_against_the_steps_of_training():
    schedule = Schedule([Stage(["head"]), Stage(["*"], step=150)])
    with pytest.raises(UserError, match="would never begin, because max_steps=150"):
        plan(schedule, steps=150, max_epochs=5)
    assert not plan(schedule, steps=151, max_epochs=5).warnings


def test_a_frozen_layer_between_trained_layers_is_reported():
    (warning,) = plan(Schedule([Stage(["head", "low"])])).warnings
    assert warning.startswith("no stage trains high")


@pytest.mark.parametrize(("policy", "count"), [("live", 1), ("frozen_stats", 0), ("frozen", 0)])
@pytest.mark.parametrize("known", [{"batch_size": 4}, {"processes": 2}])
def test_live_statistics_with_small_batches_or_several_processes_are_reported(policy, count, known):
    assert len(plan(Schedule([Stage(["*"], batchnorm=policy)]), **known).warnings) == count


def test_a_pattern_without_match_in_any_stage_is_an_error():
    with pytest.raises(UserError, match="did you mean 'high'"):
        plan(Schedule([Stage(["head"]), Stage(["hihg"], epoch=1)]))


@pytest.mark.parametrize(("trained_with", "count"), [(None, 0), (InputSpec(size=4), 1), (InputSpec(size=8, mean=0.5), 0)])
def test_a_normalisation_that_differs_from_that_of_the_weights_is_reported(trained_with, count):
    model = nn.Module()
    layers, origin = {"low": nn.Conv2d(3, 4, 1)}, WeightsOrigin("file", "a.pth")
    model.backbone = Backbone(layers, InputSpec(size=4, mean=0.5), origin=origin, trained_with=trained_with)
    schedule = Schedule([Stage(["*"])])
    warnings = examine(model, schedule, build_optimizer(model, SGD), ["backbone.low"]).warnings
    assert len(warnings) == count and all("normalised with mean (0.5, 0.5, 0.5)" in line for line in warnings)


@pytest.mark.parametrize(
    ("patterns", "origin", "count"), [(["head"], RANDOM, 1), (["*"], RANDOM, 0), (["head"], WeightsOrigin("file", "a.pth"), 0)]
)
def test_layers_with_random_weights_that_never_train_are_reported(patterns, origin, count):
    model = nn.Module()
    model.backbone, model.head = Backbone({"low": nn.Conv2d(3, 4, 1)}, InputSpec(size=4), origin=origin), nn.Linear(4, 2)
    warnings = examine(model, Schedule([Stage(patterns)]), build_optimizer(model, SGD), ["backbone.low", "head"]).warnings
    assert len(warnings) == count and all(
        line.startswith("no stage trains low, although these layers have random weights") for line in warnings
    )


def test_the_plan_as_text_has_a_line_for_each_stage_layer_and_warning():
    assert plan(steps=5).describe().splitlines() == [
        "stage 0, epoch 0: head; 10 of 54 parameters train",
        "stage 1, epoch 1: head + high; 30 of 54 parameters train",
        "stage 2, epoch 3: *; 54 of 54 parameters train",
        "head: 10 parameters; trains in stage 0-2; learning rate 1.0e-01",
        "high: 20 parameters; trains in stage 1-2; learning rate 5.0e-02",
        "low: 24 parameters; trains in stage 2; learning rate 5.0e-02; batch norm live",
        "warning: the head starts from random weights and gets only 5 optimizer steps, but usually needs 100: "
        "train longer, or use smaller batches; if it is trained already, give its linear layer the attribute "
        'origin = WeightsOrigin("custom", "my head")',
    ]


OF_FITTED_HEADS = ("trained_head", "own_fit")  # in errors of FitProbeHead, not in the warnings of a plan
COMMAND_WORD = re.compile(r"\b(backbone|head|schedule|trainer|batchnorm|lr_scheduler)(\.\w+)?=\w")


def test_hints_are_in_python_unless_the_words_of_the_command_line_are_asked_for():
    poor = WeightsOrigin("file", "a.pth")
    model = nn.Module()
    model.backbone = Backbone(
        {"embeddings": nn.Conv2d(3, 4, 1), "encoder": nn.BatchNorm2d(4), "pooler": nn.Conv2d(4, 4, 1)},
        InputSpec(size=4, mean=0.5),
        origin=poor,
        trained_with=InputSpec(size=4),
    )
    model.head = nn.Linear(4, 2)
    rows = [*(f"backbone.{layer}" for layer in model.backbone.cuts), "head"]
    schedule = Schedule([Stage(["backbone.embeddings", "head"])], frozen=["backbone.encoder", "backbone.pooler"])
    live = Schedule([Stage(["*"], batchnorm="live")])
    random = nn.Module()
    random.backbone, random.head = Backbone({"low": nn.Conv2d(3, 4, 1)}, InputSpec(size=4), origin=RANDOM), nn.Linear(4, 2)

    waiting = Schedule([Stage(["head"]), Stage(["*"], epoch=1, until=Until("val/loss", patience=2))])

    def warnings(hints):
        optimizer = build_optimizer(random, SGD)
        falling = Rates(optimizer, partial(plateau, patience=1), steps=9, epochs=9, unit="epoch")
        found = [
            *examine(model, schedule, build_optimizer(model, SGD), rows, steps=5, hints=hints).warnings,
            *examine(model, live, build_optimizer(model, SGD), rows, batch_size=2, processes=2, hints=hints).warnings,
            *examine(random, Schedule([Stage(["head"])]), build_optimizer(random, SGD), ["head"], hints=hints).warnings,
            *examine(random, waiting, ([optimizer], [falling]), ["head"], hints=hints).warnings,
        ]
        text = "\n".join(found)
        assert all(getattr(hints, field.name) in text for field in fields(Hints) if field.name not in OF_FITTED_HEADS), text
        return text

    assert not COMMAND_WORD.search(warnings(IN_PYTHON).replace('Stage(..., batchnorm="', ""))
    # the input spec, the epoch of a stage and a head that has trained have no single value
    assert len(COMMAND_WORD.findall(warnings(ON_COMMAND_LINE))) >= len(fields(Hints)) - len(OF_FITTED_HEADS) - 3


def test_without_layers_rows_are_children_and_those_of_the_largest_child_and_print_shows_the_plan():
    net = nn.Sequential()
    net.add_module("encoder", nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)))
    net.add_module("head", nn.Linear(8, 2))
    found = examine(net, Schedule([Stage(["head"]), Stage(["*"], epoch=1)]), build_optimizer(net, SGD))
    assert [row.layer for row in found.rows] == ["encoder.0", "encoder.2", "head"] and found.without_row == ()
    assert str(found) == found.describe() and "head: 18 parameters; trains in stage 0-1" in str(found)


def test_every_parameter_is_in_one_row_also_one_beside_modules():
    net = nn.Module()
    net.scale, net.encoder, net.head = nn.Parameter(torch.ones(1)), nn.Module(), nn.Linear(8, 2)
    net.encoder.token, net.encoder.block = nn.Parameter(torch.ones(3)), nn.Linear(8, 8)
    net.encoder.inner = nn.Module()
    net.encoder.inner.position, net.encoder.inner.layer = nn.Parameter(torch.ones(4)), nn.Linear(8, 8)
    schedule = Schedule([Stage(["head"]), Stage(["head", "encoder.inner.layer"], epoch=1), Stage(["*"], epoch=2)])
    found = examine(net, schedule, build_optimizer(net, SGD))
    layers = ["scale", "encoder.token", "encoder.block", "encoder.inner.position", "encoder.inner.layer", "head"]
    assert [row.layer for row in found.rows] == layers and found.without_row == ()
    assert sum(row.size for row in found.rows) == sum(p.numel() for p in net.parameters())
    assert "encoder.token: 3 parameters; trains in stage 2; learning rate 1.0e-01" in str(found)
    linear = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert [row.layer for row in examine(linear, Schedule([Stage(["*"])]), build_optimizer(linear, SGD)).rows] == ["0", "2"]
    named = examine(net, Schedule([Stage(["head", "encoder.inner.position"])]), build_optimizer(net, SGD))
    assert [(row.layer, row.training) for row in named.rows if row.first is not None] == [("encoder.inner.position", (4,)), ("head", (18,))]


def test_a_stage_that_trains_what_the_user_froze_is_a_warning_before_and_after_it_began():
    model = Net()
    model.low.requires_grad_(False)
    assert "stage '*' trains low, although other code has set requires_grad=False there: to keep it frozen, write stages" in str(
        plan(SCHEDULE, model)
    )
    for stage in SCHEDULE.stages:
        set_trainable(model, stage.train)
    assert any("stage '*' trains low, although" in line for line in plan(SCHEDULE, model).warnings)
    above = Schedule([Stage(["head"]), Stage(["head", "high"], epoch=1)])
    assert not any("although other code" in line for line in plan(above, model).warnings)


def test_what_a_stage_froze_itself_is_no_warning_in_a_second_training():
    model = Net()
    set_trainable(model, ["head"])
    assert not any("although other code" in line for line in plan(SCHEDULE, model).warnings)
