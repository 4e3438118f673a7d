"""A wrong type of an argument from Python is one line with its name, what was given, and what is accepted."""

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from torch import nn
from torch.optim import SGD

import ftlit
from ftlit import UserError
from ftlit.plain_arguments import plain_arguments


@plain_arguments
def mixed(
    number: float,
    whole: int = 1,
    text: str | None = None,
    flag: bool = False,
    path: str | Path = "",
    names: Sequence[str] = (),
    several: float | Sequence[float] = 1.0,
    module: nn.Module | None = None,
    kind: Literal["a"] = "a",
    *rest: int,
    **options: Any,
) -> list[Any]:
    return [number, whole, text, flag, path, names, several, module, kind, *rest, options]


@pytest.mark.parametrize(
    "arguments",
    [
        {"number": 1, "whole": np.int64(3)},
        {"number": np.float32(0.5), "text": "a", "path": Path("a"), "names": (name for name in "ab")},
        {"number": Fraction(1, 2), "several": [1, 2], "names": "a", "module": nn.Linear(1, 1)},
        {"number": 1, "kind": 3, "other": "text"},  # which the function itself checks
    ],
)
def test_values_of_an_accepted_type_are_passed_on(arguments):
    passed = mixed(**arguments)
    assert passed[0] is arguments["number"] and passed[-1] == ({"other": "text"} if "other" in arguments else {})


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"number": "0.1"}, "number='0.1': give a number ('0.1' is a text: give 0.1 without quotes)"),
        ({"number": None}, "number=None: give a number"),
        ({"number": True}, "number=True: give a number"),
        ({"number": 1, "whole": 2.0}, "whole=2.0: give a whole number"),
        ({"number": 1, "text": 7}, "text=7: give a text or None"),
        ({"number": 1, "flag": "yes"}, "flag='yes': give True or False"),
        ({"number": 1, "path": ["a"]}, "path has the type list: give a text or a path"),
        ({"number": 1, "names": 3}, "names=3: give a list"),
        ({"number": 1, "several": "1.0"}, "several='1.0': give a number or a list ('1.0' is a text: give 1.0 without quotes)"),
        ({"number": 1, "module": nn.Linear}, "module is the class Linear itself: give an object of the class Module or None"),
    ],
)
def test_a_value_of_another_type_is_one_line(arguments, line):
    with pytest.raises(UserError) as caught:
        mixed(**arguments)
    assert str(caught.value) == line


MODULE = nn.Sequential(nn.Linear(2, 2))
CALLS = {
    "FeatureData": partial(ftlit.FeatureData, ftlit.ResumableData(range(3)), max_gb="20"),
    "layer_lrs": partial(ftlit.schedules.layer_lrs, nn.ModuleDict({"backbone": MODULE, "head": nn.Linear(2, 2)}), scale="0.1"),
    "last_k": partial(ftlit.schedules.last_k, nn.ModuleDict({"backbone": MODULE, "head": nn.Linear(2, 2)}), k="1"),
    "LastCheckpoint": partial(ftlit.LastCheckpoint, "last.ckpt", every_seconds="60"),
    "SeedEachStep": partial(ftlit.SeedEachStep, "0"),
    "ResumableData": partial(ftlit.ResumableData, range(3), seed="0"),
    "EmaWeights": partial(ftlit.EmaWeights, "0.9"),
    "interpolated": partial(ftlit.interpolated, MODULE.state_dict(), MODULE.state_dict(), "0.5"),
    "load": partial(ftlit.load, 7),
    "predict": partial(ftlit.predict, "run", ["a.png"], batch_size="64"),
    "load_timm": partial(ftlit.load_timm, None),
    "backbone_from": partial(ftlit.backbone_from, "resnet50"),
    "set_trainable": partial(ftlit.set_trainable, "head", ["head"]),
    "param_groups": partial(ftlit.param_groups, nn.Linear),
    "add_lora": partial(ftlit.add_lora, None),
    "finetune": partial(ftlit.finetune, "digits", options=3),
}


@pytest.mark.parametrize("name", CALLS)
def test_public_functions_refuse_wrong_types_where_they_are_called(name):
    with pytest.raises(UserError, match="give ") as caught:
        CALLS[name]()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", [partial(ftlit.Stage, ["fc"]), partial(ftlit.build_optimizer, nn.Linear(2, 2), partial(SGD, lr=0.1))])
def test_a_rate_in_another_place_is_an_error_that_says_where_rates_belong(call):
    with pytest.raises(
        UserError, match=r"^\w+ has no argument 'lr': the learning rate belongs to the optimizer, .*AdamW, lr=1e-3\); factors"
    ):
        call(lr=1e-3)
    assert call()


def test_an_argument_that_a_class_does_not_have_is_an_error_with_the_closest_one():
    with pytest.raises(UserError, match=r"^Stage has no argument 'epochs': did you mean 'epoch'\? There are: train, epoch, step"):
        ftlit.Stage(["fc"], epochs=2)
