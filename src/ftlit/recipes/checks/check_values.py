"""Checks of a config beyond signatures, before anything is built: ranges, metrics that are logged, names that something reads."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch.strategies import StrategyRegistry
from omegaconf import DictConfig, ListConfig, OmegaConf

from ftlit.errors import UserError, invalid, one_line, unknown
from ftlit.finetuning.freeze import POLICIES
from ftlit.finetuning.schedule import Schedule
from ftlit.finetuning.stage import mode_of
from ftlit.lit.metrics import VAL_METRICS
from ftlit.lit.stages.stage_trigger import is_misspelt
from ftlit.recipes.checks.config_names import check_names
from ftlit.recipes.checks.ranges import check_ranges
from ftlit.recipes.config.hydra_internals import choices, hydra_config, instantiate, run_mode
from ftlit.recipes.config.overrides import SEARCH

AFFINE = "affine"
CHOICES: dict[str, tuple[object, ...]] = {  # values of train.yaml itself
    "doctor": ("warn", "strict"),
    "checkpoint": ("auto", "full", "slim"),
    "report": (True, False),
    "final": (True, False),
    "compile": ("auto", True, False),
    "resume": (True, False, "auto"),
    "sweep.resume": (True, False),
    "decay_all": (True, False),
    "batchnorm": (*POLICIES, AFFINE),
    "float32": ("auto", "highest", "high", "medium"),
    "optimizer.fused": ("auto", True, False, None),
}
PICKLING = ("spawn", "forkserver")  # in the names of strategies and start methods that send objects to new Python processes
KNOWN_PACKAGES = ("ftlit.", "lightning.")  # whose callbacks log no metric of their own


def check(cfg: DictConfig) -> None:
    """Check values that no signature excludes.

    Raises:
        UserError: the full name of a value that cannot be used, what was given, and what is accepted.
    """
    check_names(cfg)
    check_search()
    if cfg.get("final") and cfg.recipe != "finetune":
        raise UserError(f"final=true works with recipe=finetune only: leave recipe={cfg.recipe} or final=true out")
    for name, options in CHOICES.items():
        given = OmegaConf.select(cfg, name)
        if type(given) not in {type(option) for option in options} or given not in options:  # 1 is not true
            raise not_among(name, given, options)
    _check_trainer(cfg.trainer)
    check_ranges(cfg)
    _check_monitors(cfg.callbacks, cfg.lr_scheduler)
    _check_optimizer(cfg.optimizer, cfg.lr_scheduler)


def not_among(name: str, given: object, options: Sequence[object]) -> UserError:
    """The error for a value that is not one of the few that an option has.

    >>> print(not_among("report", "yes", (True, False)))
    report=yes: give true or false
    """
    *others, last = (str(option).lower() for option in options)
    return UserError(f"{name}={given}: give {', '.join(others)} or {last}")


def check_until(schedule: Schedule) -> None:
    """Raise `UserError` for a stage that waits for a metric that nothing logs."""
    for stage in schedule.stages:
        if stage.until is not None and stage.until.metric not in VAL_METRICS:
            raise UserError(f"{unknown_metric(stage.until.metric)} (for `until` of stage {stage.name!r})")


def unknown_metric(given: str) -> UserError:
    """The error for a metric that is not logged. Another one is proposed only where this is a misspelling of it.

    >>> print(unknown_metric("val/acuracy"))
    there is no metric 'val/acuracy': did you mean 'val/accuracy'? There are: val/accuracy, val/f1, val/loss
    >>> print(unknown_metric("val/top5"))
    there is no metric 'val/top5': give one of val/accuracy, val/f1, val/loss, or add a callback (+callbacks.NAME._target_=...) that logs it
    """
    if is_misspelt(given, VAL_METRICS):
        return unknown("metric", given, VAL_METRICS)
    return UserError(
        f"there is no metric {given!r}: give one of {', '.join(VAL_METRICS)}, or add a callback (+callbacks.NAME._target_=...) that logs it"
    )


def check_search() -> None:
    """A search in an experiment would run as a single run: the command line decides what is a sweep before the config is composed."""
    hydra = hydra_config()
    search = hydra and choices().get(SEARCH)
    if search and run_mode() == "RUN" and not any(word.startswith("hydra.mode=") for word in hydra.overrides.hydra):
        raise UserError(
            f"{SEARCH}={search} in a config file does not start a sweep: to start one, add -m; to start a single run, give hydra.mode=RUN"
        )


def _check_trainer(trainer: DictConfig) -> None:
    if trainer.get("devices") == 0:
        raise UserError("trainer.devices=0: give 1 or more, or -1 for all devices")
    strategy = trainer.get("strategy")
    if str(strategy).lower().startswith("fsdp"):
        if str(strategy).lower().startswith("fsdp2"):
            raise UserError(f"trainer.strategy={strategy} alone lacks the other settings of FSDP2: give trainer=fsdp2 in its place")
        raise UserError(f"trainer.strategy={strategy} (FSDP1) is not supported: give trainer=fsdp2 in its place")
    if isinstance(strategy, str) and strategy.lower() not in (known := ["auto", *StrategyRegistry.available_strategies()]):
        raise invalid("trainer.strategy", strategy, [name for name in known if not any(part in name for part in (*PICKLING, "fsdp"))])
    method = strategy.get("start_method") if isinstance(strategy, DictConfig) else strategy
    if any(part in str(method) for part in PICKLING):
        raise UserError(f"trainer.strategy={strategy} is not supported (a run cannot be pickled): give trainer.strategy=ddp")
    for name, instead in (("logger", "logger=csv or logger=tensorboard"), ("callbacks", "+callbacks.NAME._target_=...")):
        if trainer.get(name) is not None:
            raise UserError(f"trainer.{name} has no effect, because the group {name} replaces it: give {instead}")
    for name in ("fast_dev_run", "barebones"):
        if trainer.get(name):
            raise UserError(f"trainer.{name} is not supported (it leaves out checkpoints and results): give debug=fast for a trial run")
    for name, use in (("limit_val_batches", "the best checkpoint is chosen on val"), ("limit_test_batches", "each run ends with a test")):
        if trainer.get(name) == 0:
            raise UserError(f"trainer.{name}=0: {use}; give 1 or more batches, or null for all")
    _check_lengths(trainer)


def _check_lengths(trainer: DictConfig) -> None:
    """Training that ends before its first validation, or never, by its own settings."""
    epochs, steps, every = (trainer.get(name) for name in ("max_epochs", "max_steps", "check_val_every_n_epoch"))
    if every and epochs and 0 < epochs < every:
        raise UserError(
            f"trainer.check_val_every_n_epoch={every} is more than trainer.max_epochs={epochs}: no epoch would be validated; "
            f"give 1 to {epochs}"
        )
    if epochs == -1 and steps in (None, -1):
        raise UserError("trainer.max_epochs=-1 never ends: add +trainer.max_steps=..., or give a number of epochs")


def _check_monitors(callbacks: DictConfig, lr_scheduler: DictConfig) -> None:
    """A metric that nothing logs would end the run after its first epoch. A custom callback may log metrics that are not known here."""
    known = {f"callbacks.{name!s}": node for name, node in callbacks.items() if isinstance(node, DictConfig)} | {
        "lr_scheduler": lr_scheduler
    }
    if not all(str(node.get("_target_")).startswith(KNOWN_PACKAGES) for node in known.values()):
        return
    for name, node in known.items():
        if (monitor := node.get("monitor")) is not None and monitor not in VAL_METRICS:
            raise UserError(f"{name}.monitor: {unknown_metric(monitor)}")
    _check_mode(known.get("callbacks.best", DictConfig({})))


def _check_optimizer(optimizer: DictConfig, lr_scheduler: DictConfig) -> None:
    """Build optimizer and scheduler for a single parameter: only they know the ranges of their values."""
    try:
        trial = instantiate(optimizer)([{"params": [torch.nn.Parameter(torch.zeros(1))], "name": "trial"}])
    except (ValueError, TypeError, IndexError) as error:
        values = dict(_values(optimizer))
        short = isinstance(error, IndexError)  # torch reads beyond the end of a list
        meant = {name: value for name, value in values.items() if _is_meant(value, error)}
        given = ", ".join(f"optimizer.{name}={value}" for name, value in (meant or values).items())
        raise UserError(f"{given}: {'give two values, such as [0.9, 0.999]' if short else one_line(error)}") from error
    try:
        instantiate(lr_scheduler)(trial, steps=1000, epochs=1000)
    except TypeError as error:  # a value that the command line deleted
        if "curve" not in lr_scheduler:
            remedy = "leave ~lr_scheduler.curve out, or choose another scheduler, such as lr_scheduler=cosine"
            raise UserError(f"lr_scheduler has no curve, which it needs: {remedy}") from error
        raise UserError(f"lr_scheduler: {one_line(error)}; to choose another one, give lr_scheduler=cosine") from error


def _check_mode(best: DictConfig) -> None:
    """A direction that keeps the worst epoch."""
    monitor, mode = best.get("monitor"), best.get("mode")
    if monitor and mode in ("min", "max") and mode != (right := mode_of(monitor) or mode):
        raise UserError(f"callbacks.best.mode={mode} would keep the epoch with the worst {monitor}: leave this option out, or give {right}")


def _is_meant(value: object, error: Exception) -> bool:
    """Whether an optimizer refused this value: torch ends such lines with it."""
    return isinstance(value, ListConfig) if isinstance(error, IndexError) else one_line(error).endswith(f": {value}")


def _values(node: DictConfig) -> Iterator[tuple[str, Any]]:
    return ((str(name), value) for name, value in node.items() if not str(name).startswith("_"))
