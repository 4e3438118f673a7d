"""The options of all config groups, and configs that are composed as the command line composes them (inside of `fresh_hydra`)."""

import re
import sys
from functools import cache
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import DictConfig
from paths import CONF

from ftlit.recipes.build_run import build
from ftlit.recipes.config.error_messages import as_user_error

OPTIONS: dict[str, list[str]] = {}
for path in sorted(CONF.glob("*/*.yaml")):
    if not path.name.startswith("_"):
        OPTIONS.setdefault(path.parent.name, []).append(path.stem)
EVERY = [(group, option) for group, options in OPTIONS.items() for option in options]


def shape_of(group: str, name: str) -> str:
    """The content of an option's file, without the option's name: files of one shape compose to configs that differ in that name only."""
    return re.sub(rf"\b{name}\b", "<name>", Path(CONF, group, f"{name}.yaml").read_text())


SHAPES = list({(group, shape_of(group, name)): (group, name) for group, name in EVERY}.values())  # one option of each shape
# Values without a default, which the user must give.
NEEDED = {
    ("backbone", "timm"): ["backbone.name=resnet10t"],
    ("data", "folder"): ["data.root=photos"],
    ("data", "unlabelled"): ["data.root=photos"],
    ("data", "csv"): ["data.csv=photos.csv"],
    ("data", "text_csv"): ["data.csv=texts.csv"],
    ("data", "hf"): ["data.path=photos"],
    ("backbone", "bert"): ["backbone.name=model"],
    ("data", "torchvision"): ["data.name=CIFAR10"],
    ("lr_scheduler", "any"): ["lr_scheduler.curve.scheduler._target_=torch.optim.lr_scheduler.ConstantLR"],
    ("schedule", "explicit"): ["schedule.stages=[{train: [head]}, {train: ['*'], epoch: 2}]"],
}


def composed(*overrides: str) -> DictConfig:
    """A config of the test's own: a run replaces `auto` in it."""
    return _composed(*overrides).copy()


@cache
def _composed(*overrides: str) -> DictConfig:
    return compose("train", overrides=["paths.run=somewhere", *overrides])


def option(group: str, name: str) -> DictConfig:
    return composed(f"{group}={name}", *NEEDED.get((group, name), []))


def error_text(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> str:
    """Return the message that the user reads after `train.py <overrides>`."""
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
    with pytest.raises(Exception) as caught:
        build(composed(*overrides))
    error = as_user_error(caught.value)
    assert error is not None and "\n" not in str(error)
    return str(error)
