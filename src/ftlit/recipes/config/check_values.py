"""What no signature tells of a config: ranges, metrics that exist, names that something reads. Said before anything is built."""

import re
from collections.abc import Iterator
from importlib.resources import files
from itertools import dropwhile, takewhile
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ftlit.errors import UserError, one_line, unknown
from ftlit.finetuning.freeze import POLICIES
from ftlit.finetuning.schedule import Schedule

LARGEST_SEED = 2**32 - 1  # numpy's
METRICS = [f"val/{metric}" for metric in ("accuracy", "f1", "loss")]  # what FineTuner logs by the time they are looked at
AFFINE = "affine"
CHOICES: dict[str, tuple[object, ...]] = {  # values of train.yaml itself
    "doctor": ("warn", "strict"),
    "checkpoint": ("full", "slim"),
    "report": (True, False),
    "compile": (True, False),
    "resume": (True, False),
    "sweep.resume": (True, False),
    "decay_all": (True, False),
    "batchnorm": (*POLICIES, AFFINE),
}
OURS = ("ftlit.", "lightning.")


def check(cfg: DictConfig) -> None:
    """Refuse what binds but cannot be run.

    Raises:
        UserError: the full name of the value, what was given, and what would do.
    """
    _check_added(cfg)
    for name, options in CHOICES.items():
        given = OmegaConf.select(cfg, name)
        if type(given) not in {type(option) for option in options} or given not in options:  # 1 is no true
            raise unknown(name, given, options)
    if not 0 <= cfg.seed <= LARGEST_SEED:
        raise UserError(f"seed={cfg.seed}: give a whole number from 0 to {LARGEST_SEED}")
    _check_trainer(cfg.trainer)
    _check_monitors(cfg.callbacks)
    _check_optimizer(cfg.optimizer, cfg.lr_scheduler)


def check_until(schedule: Schedule) -> None:
    """Refuse a stage that waits for what nothing logs."""
    for stage in schedule.stages:
        if stage.until is not None and stage.until.metric not in METRICS:
            raise unknown(f"metric for stage {stage.name!r}:", stage.until.metric, METRICS)


def _check_added(cfg: DictConfig) -> None:
    """`+sede=1`: Hydra adds any name that is not there yet, and nothing would read it."""
    if not HydraConfig.initialized():
        return
    hydra, told = HydraConfig.get(), OmegaConf.to_yaml(cfg)
    for override in OverridesParser.create().parse_overrides(list(hydra.overrides.task)):
        name = override.key_or_group.partition(".")[0]
        added = override.is_add() or override.is_force_add()
        used = re.search(rf"\$\{{{re.escape(name)}\b", told)
        if added and not used and name not in hydra.runtime.choices and name not in _read():
            raise unknown("option", name, [*_read(), *overlay_groups()])


def _read() -> list[str]:
    """The names that train.yaml has, and with it every recipe; those of overlays stand after `_self_` and hold no values."""
    train = _train()
    groups = takewhile(lambda entry: entry != "_self_", train.pop("defaults"))
    return [str(name) for entry in groups for name in entry if name != "hydra"] + [str(name) for name in train]


def overlay_groups() -> list[str]:
    """The groups of train.yaml whose options set values of others: `scenario`, `experiment`, ..."""
    groups = dropwhile(lambda entry: entry != "_self_", _train().defaults)
    return [str(name) for entry in groups if isinstance(entry, DictConfig) for name in entry if not str(name).startswith("override ")]


def _train() -> DictConfig:
    train = OmegaConf.load(str(files("ftlit.conf") / "train.yaml"))
    assert isinstance(train, DictConfig)
    return train


def _check_trainer(trainer: DictConfig) -> None:
    if trainer.get("devices") == 0:
        raise UserError("trainer.devices=0: give a number of devices, 1 or more, or -1 for all there are")
    for name, use in (("limit_val_batches", "the best checkpoint is chosen"), ("limit_test_batches", "the run is judged")):
        if trainer.get(name) == 0:
            raise UserError(f"trainer.{name}=0: {use} by these batches; give 1 or more, or null for all")


def _check_monitors(callbacks: DictConfig) -> None:
    """A metric that nothing logs would end the run after its first epoch. A callback from elsewhere may log more than we know of."""
    known = {str(name): node for name, node in callbacks.items() if isinstance(node, DictConfig)}
    if not all(str(node.get("_target_")).startswith(OURS) for node in known.values()):
        return
    for name, node in known.items():
        if (monitor := node.get("monitor")) is not None and monitor not in METRICS:
            raise unknown(f"metric for callbacks.{name}.monitor,", monitor, METRICS)


def _check_optimizer(optimizer: DictConfig, lr_scheduler: DictConfig) -> None:
    """Only the optimizer and its scheduler know the ranges of their values: make them for a single parameter."""
    try:
        trial = instantiate(optimizer)([{"params": [torch.nn.Parameter(torch.zeros(1))], "name": "trial"}])
    except ValueError as error:
        values = dict(_values(optimizer))
        meant = {name: value for name, value in values.items() if one_line(error).endswith(f": {value}")}  # as torch ends such lines
        given = ", ".join(f"optimizer.{name}={value}" for name, value in (meant or values).items())
        raise UserError(f"{given}: {one_line(error)}") from error
    instantiate(lr_scheduler)(trial, steps=100, epochs=10)


def _values(node: DictConfig) -> Iterator[tuple[str, Any]]:
    return ((str(name), value) for name, value in node.items() if not str(name).startswith("_"))
