"""Private and undocumented parts of Lightning's Trainer for runs on clusters: signals, requeueing, waiting for other processes.

The contract tests, see `ftlit.lit.trainer_internals`, are in tests/lit/test_cluster_internals.py.

| part of Lightning | function | reason |
|---|---|---|
| `_signal_connector.register_signal_handlers` | `leave_signals` | `lit.stop_signals` owns them; under SLURM it saves `hpc_ckpt_1.ckpt` |
| `strategy.cluster_environment.auto_requeue` | `requeues` | only SLURM's environment has it |
| `_checkpoint_connector._select_ckpt_path` | `resume_only_from_given` | under SLURM it loads any `hpc_ckpt_*.ckpt` that it finds |
| `strategy._timeout` | `limit_waiting`, `waiting_minutes` | a strategy that is given by name takes no timeout |
| `_get_default_store` of torch | `default_store` | processes report to each other outside of collective calls |
"""

from datetime import timedelta
from typing import Any

from lightning.pytorch import Trainer
from torch.distributed.constants import default_pg_timeout
from torch.distributed.distributed_c10d import Store, _get_default_store


def leave_signals(trainer: Trainer) -> None:
    """Keep the handlers of signals that the program has: the trainer sets none of its own."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def requeues(trainer: Trainer) -> bool:
    """Whether the trainer requeues its SLURM job at a signal, which needs its own handlers."""
    return bool(getattr(getattr(trainer.strategy, "cluster_environment", None), "auto_requeue", False))


def resume_only_from_given(trainer: Trainer) -> None:
    """Load a checkpoint only where `ckpt_path` names one. For trainers that are always given the module."""
    connector = trainer._checkpoint_connector
    select = connector._select_ckpt_path

    def select_given(state_fn: Any, ckpt_path: Any, **where: bool) -> Any:
        return select(state_fn, ckpt_path, **where) if ckpt_path else None

    connector._select_ckpt_path = select_given  # type: ignore[assignment,method-assign]


def limit_waiting(trainer: Trainer, minutes: float) -> None:
    """Let a process wait so long for the others, unless the strategy was built with a timeout of its own."""
    strategy: Any = trainer.strategy
    if getattr(strategy, "_timeout", None) == default_pg_timeout:
        strategy._timeout = timedelta(minutes=minutes)


def waiting_minutes(trainer: Trainer) -> float:
    """Minutes that a process waits for the others."""
    timeout: timedelta = getattr(trainer.strategy, "_timeout", None) or default_pg_timeout
    return timeout.total_seconds() / 60


def default_store() -> Store:
    """The store by which the processes of the default group have met."""
    return _get_default_store()
