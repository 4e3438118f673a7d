"""Layers that the user freezes train under no schedule, and all others do."""

import pytest
import torch
from torch import nn

from ftlit.cli.command_words import quote_layer_numbers
from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.finetuning.examine import examine
from ftlit.finetuning.freeze import set_trainable
from ftlit.finetuning.frozen_layers import frozen_layers
from ftlit.finetuning.param_groups import build_optimizer
from ftlit.finetuning.presets import all_at_once, head_only, head_then_all, top_down, with_reinit
from ftlit.models.backbone import Backbone

LAYERS = ["embeddings", *(f"encoder.{i}" for i in range(5)), "pooler"]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone({name: nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout()) for name in LAYERS}, InputSpec(size=2))
        self.head = nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("given", "numbers"),
    [("1,2,3", [1, 2, 3]), ([1, 2], [1, 2]), ("0-3", [0, 1, 2, 3]), ("", []), ([], []), (4, [4]), (0, [0]), ("0, 2 - 3", [0, 2, 3])],
)
def test_layer_numbers_may_be_a_text_a_list_a_range_or_empty(given, numbers):
    assert frozen_layers(LAYERS, False, given) == [f"encoder.{i}" for i in numbers]
    assert frozen_layers(LAYERS, True, given)[0] == "embeddings"


@pytest.mark.parametrize(
    ("given", "line"),
    [("5", "no layer encoder.5: give numbers from 0 to 4"), ("3-9", "no layer encoder.5"), ([7], "no layer encoder.7"),
     *((text, f"'{text}' is not a layer number") for text in (-1, "first", "1;2")),
     ("3-1", 'a range begins with its lower number: give "1-3"')],
)  # fmt: skip
def test_an_unknown_layer_number_is_an_error(given, line):
    with pytest.raises(UserError) as caught:
        frozen_layers(LAYERS, False, given)
    assert line in str(caught.value)


def test_freezing_layers_that_the_backbone_lacks_is_an_error():
    with pytest.raises(UserError, match="no layer 'embeddings', only stem"):
        frozen_layers(["stem"], True)
    with pytest.raises(UserError, match=r"freezes layers named encoder.0, encoder.1, ..., but this backbone has only stem"):
        frozen_layers(["stem"], False, "1")


@pytest.mark.parametrize("made", [all_at_once, head_then_all, top_down])
def test_frozen_layers_train_in_no_stage_and_all_others_train_in_the_last(made):
    model, schedule = Model(), made(LAYERS, freeze_embeddings=True, freeze_layers="1,2")
    frozen = [f"backbone.{layer}" for layer in ("embeddings", "encoder.1", "encoder.2")]
    for stage in schedule.stages:
        set_trainable(model, stage.train)
        for name in frozen:
            layer = model.get_submodule(name)
            assert not any(p.requires_grad for p in layer.parameters()) and not any(part.training for part in layer.modules())
    training = {name.rsplit(".", 2)[0] for name, p in model.named_parameters() if p.requires_grad and "backbone" in name}
    assert training == {f"backbone.{layer}" for layer in LAYERS} - set(frozen)
    optimizer = build_optimizer(model, torch.optim.SGD, schedule.lr_scale)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    rows = [*(f"backbone.{layer}" for layer in LAYERS), "head"]
    message = examine(model, schedule, optimizer, rows).warnings[:-1]  # the last: random weights
    assert message == (
        "layers below the frozen layers train (backbone.encoder.0), so the backward pass runs through the frozen layers too",
    )


@pytest.mark.parametrize("made", [all_at_once, head_then_all, top_down])
def test_freezing_nothing_does_not_change_the_schedule(made):
    assert made(LAYERS) == made(LAYERS, freeze_embeddings=False, freeze_layers="") and made(LAYERS).stages[-1].name == "all"


def test_only_the_head_trains_if_all_layers_are_frozen():
    for made in (all_at_once, head_then_all, top_down):
        stages = made(LAYERS[:-1], freeze_embeddings=True, freeze_layers="0-4").stages
        assert {stage.train for stage in stages} == {("head",)}


def test_a_frozen_layer_stays_frozen_if_it_is_reinitialized():
    schedule = with_reinit(head_then_all(LAYERS, freeze_layers="4"), ["encoder.4", "pooler"])
    assert schedule.stages[0].train == ("head", "backbone.pooler")
    assert not any("backbone.encoder.4" in stage.train for stage in schedule.stages)


def test_layer_numbers_are_quoted_for_hydra_except_in_a_sweep():
    for word in ("schedule.freeze_layers=1,2,3", "schedule.freeze_layers=0-1,3"):
        name, _, value = word.partition("=")
        assert quote_layer_numbers(["a=b", word]) == ["a=b", f"{name}='{value}'"] and quote_layer_numbers(["-m", word]) == ["-m", word]
    same = [
        "schedule.freeze_layers=1",
        "schedule.freeze_layers='1,2'",
        "schedule.freeze_layers=[1,2]",
        "schedule.freeze_layers=",
        "seed=1,2",
    ]
    assert quote_layer_numbers(same) == same


def test_the_doctor_names_embeddings_that_train_below_frozen_layers_and_a_pooler_that_never_trains():
    model = Model()
    for schedule, line in (
        (all_at_once(LAYERS, freeze_layers="0-1"), "layers below the frozen layers train (backbone.embeddings)"),
        (head_only(LAYERS), "backbone.pooler is frozen in every stage"),
    ):
        optimizer = build_optimizer(model, torch.optim.SGD, schedule.lr_scale)
        message = examine(model, schedule, optimizer, [*(f"backbone.{layer}" for layer in LAYERS), "head"]).warnings
        assert [text for text in message if "backbone." in text and "random weights" not in text] == [w for w in message if line in w] != []
