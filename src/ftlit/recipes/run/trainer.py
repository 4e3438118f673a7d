"""Build Lightning's trainer of a config, as a run of ftlit needs it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pkgutil import resolve_name
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.strategies import StrategyRegistry
from omegaconf import DictConfig

from ftlit.errors import UserError
from ftlit.lit.callbacks.best_checkpoint import BestCheckpoint
from ftlit.lit.cluster_internals import leave_signals, limit_waiting, resume_only_from_given
from ftlit.lit.module_internals import announce_dead_processes
from ftlit.lit.rank_store import LostProcess, meet_before_setup
from ftlit.lit.stop_signals import STOP_SIGNALS
from ftlit.lit.strategies import shards_later
from ftlit.lit.trainer_internals import callbacks_of, find_callback
from ftlit.recipes.config.hydra_internals import instantiate
from ftlit.recipes.processes.launched import SRUN, launched
from ftlit.recipes.resuming.interruption import print_lost_process
from ftlit.renamed import new_path

CONNECTION_LOST = ("closed by peer", "reset by peer", "remote process exited")  # messages of gloo and NCCL when another process died
NO_ANSWER = ("imed out", "timeout")  # when it was silent for too long
COLLECTIVE = ("gloo", "NCCL", "pair closure")  # in messages of operations that wait for other processes; also of torch's store, a DistError


def build_trainer(cfg: DictConfig, **settings: Any) -> pl.Trainer:
    """The trainer of the config. It goes on from no checkpoint but the one that it is given, and leaves signals to the program.

    Args:
        cfg: the composed config.
        settings: arguments of the trainer that take the place of those in the config.
    """
    trainer: pl.Trainer = instantiate(cfg.trainer, **{**_plugins(cfg), **settings}, _convert_="all")  # max_time may be a mapping
    _check_nodes(trainer)
    if STOP_SIGNALS.owned:
        leave_signals(trainer)
    resume_only_from_given(trainer)
    limit_waiting(trainer, cfg.rank_timeout)
    meet_before_setup(trainer)
    if trainer.world_size > 1:
        announce_dead_processes(
            lambda: print_lost_process(cfg, f"process {trainer.global_rank} stops: another process failed or was killed"),
            lambda: STOP_SIGNALS.requested,
        )
    return trainer


def strategy_class(cfg: DictConfig) -> type | None:
    """The class of the strategy of a config, before the trainer is built; `None`: Lightning chooses it, or it is not known."""
    given = cfg.trainer.get("strategy")
    if not isinstance(given, DictConfig):
        return StrategyRegistry[name]["strategy"] if (name := str(given).lower()) in StrategyRegistry else None
    path = str(given.get("_target_"))
    try:
        found = resolve_name(new_path(path) or path)
    except (ImportError, AttributeError, ValueError):  # an error of building it
        return None
    return found if isinstance(found, type) else None


def unsharded(cfg: DictConfig) -> dict[str, Any]:
    """The settings with which `build_trainer` shards nothing, for a head that is only fitted on features of a frozen backbone."""
    return {"strategy": "ddp"} if shards_later(strategy_class(cfg)) else {}


def _check_nodes(trainer: pl.Trainer) -> None:
    """Refuse several machines of which this process does not know its own: it would wait for the others for ever."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and not {"NODE_RANK", "GROUP_RANK"} & set(os.environ):
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes}, but the rank of this machine is unknown: start the command with torchrun or srun, "
            "or set NODE_RANK, MASTER_ADDR and MASTER_PORT on each machine"
        )


def _plugins(cfg: DictConfig) -> dict[str, Any]:
    """Under SLURM, the environment: Lightning takes any job for one whose processes srun has started, and requeues it."""
    own = launched()
    if "SLURM_NTASKS" not in os.environ or cfg.trainer.get("plugins") or (own and own.launcher != SRUN):
        return {}
    return {"plugins": [SLURMEnvironment(auto_requeue=False) if own else LightningEnvironment()]}


def _is_timeout(error: RuntimeError) -> bool:
    collective = isinstance(error, torch.distributed.DistError) or any(text in str(error) for text in COLLECTIVE)
    return collective and any(text in str(error) for text in NO_ANSWER)


def _why_lost(cfg: DictConfig, trainer: pl.Trainer, error: RuntimeError) -> str:
    """Why a collective operation failed, if another process is the reason; else empty."""
    stops = f"process {trainer.global_rank} stops: another process"
    if _is_timeout(error):
        return f"{stops} has not answered for {cfg.rank_timeout:g} minutes (the limit set by rank_timeout)"
    return f"{stops} failed; see the error above" if any(text in str(error) for text in CONNECTION_LOST) else ""


@contextmanager
def lost_processes(cfg: DictConfig, trainer: pl.Trainer) -> Iterator[None]:
    """End this process with a line where another one has failed, or does not answer."""
    try:
        yield
    except (LostProcess, RuntimeError) as error:
        reason = str(error) if isinstance(error, LostProcess) else _why_lost(cfg, trainer, error)
        if trainer.world_size == 1 or not reason:
            raise
        print_lost_process(cfg, reason)
        sys.exit(1)


def describe_fit(trainer: pl.Trainer, seconds: float, *, trains: bool) -> list[str]:
    """How long a fit took; of training also why it ended early, and the epoch of the results, unless these are of the linear probe."""
    if not trains:
        return [f"fitted in {seconds:.1f} s"]
    best = find_callback(trainer, BestCheckpoint)
    stopped = [callback for callback in callbacks_of(trainer) if isinstance(callback, EarlyStopping) and callback.stopped_epoch]
    early = [f"stopped early after epoch {callback.stopped_epoch}, because {callback.monitor} stalled" for callback in stopped]
    return [f"trained in {seconds:.1f} s", *early, *([best.describe()] if best and not best.keeps_first else [])]
