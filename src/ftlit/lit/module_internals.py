"""Private and undocumented parts of LightningModule, strategies, torchmetrics and torch's compiler: every access is a function here.

Each function has a contract test in tests/lit/test_module_internals.py, "the library still does this". Parts of the Trainer are in
`ftlit.lit.trainer_internals`.

| part | function | reason |
|---|---|---|
| `LightningModule._trainer` | `trainer_of` | `LightningModule.trainer` raises without one |
| `is_overridden` | `builds_layers_late` | layers that `setup` or `configure_model` adds are not there yet |
| `HyperparametersMixin._hparams` and others | `share_hyperparameters` | the mixin takes none of another object |
| `_given_hyperparameters` | `share_hyperparameters` | with LightningCLI a data module in another saves the arguments of that one |
| `is_overridden` | `overrides` | a hook that a user has changed may read the batches before they are normalised |
| `DDPStrategy.model`, `DDPStrategy.configure_ddp` | `wrap_ddp_again` | DDP averages only what required a gradient when it was built |
| `ModelParallelStrategy._data_parallel_size` | `shard_over_all_processes` | the number of processes is known only when it sets up |
| `strategy.setup_environment`, `strategy.cluster_environment` | `before_setup`, `name_meeting_place` | no hook precedes the process group |
| `_ChildProcessObserver._terminate_all` | `announce_dead_processes` | it kills the first process without a word |
| `LightningModule._compiler_ctx` | `is_compiled` | torch has no function for it |
| `torch._dynamo.config.recompile_limit` | `raised_recompile_limit` | it has no public name |
| `Tensor._version` | `version_of` | to notice weights that changed in place, without reading them |
| `Metric._update_count` | `state_of_metric`, `load_state_of_metric` | torchmetrics' state dict leaves the states of a running epoch out |
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar

import torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric

from ftlit.models.backbone import compiled_parts

SECONDS_TO_END = 60  # of a process that a signal ends, once another one of its run has ended
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


def trainer_of(module: LightningModule) -> Trainer | None:
    """The trainer that runs a module; `None` if there is none."""
    return module._trainer


def only_shards(configure_model: AnyFunction) -> AnyFunction:
    """Mark a `configure_model` that shards layers, and adds none."""
    configure_model.only_shards = True  # type: ignore[attr-defined]
    return configure_model


def builds_layers_late(module: LightningModule) -> bool:
    """Whether the module may add layers in `setup` or `configure_model`, which run after the callbacks' `setup`."""
    adds = is_overridden("configure_model", module) and not getattr(module.configure_model, "only_shards", False)
    return adds or is_overridden("setup", module)


def share_hyperparameters(wrapper: LightningDataModule, data: LightningDataModule) -> None:
    """Let a data module have the hyperparameters of the one in it, its argument `data`, in loggers and checkpoints too."""
    given = _given_hyperparameters.get() or {}
    inner = given.get("data")
    if isinstance(inner, Mapping) and data.hparams and data.hparams.keys() == given.keys():
        own = dict(inner.get("init_args", {}))
        data.hparams.clear()
        data.hparams.update(own)
        data._hparams_initial = deepcopy(data.hparams)  # type: ignore[attr-defined]
    for name in ("_hparams", "_hparams_initial", "_hparams_name", "_log_hyperparams"):
        if hasattr(data, name):
            setattr(wrapper, name, getattr(data, name))


def overrides(instance: object, parent: type, *hooks: str) -> bool:
    """Whether an object, or its class, has another implementation of one of these hooks than `parent`."""
    return any(is_overridden(hook, instance, parent) for hook in hooks)


def wrap_ddp_again(trainer: Trainer) -> None:
    """Build the wrapper of DDP again: its reducer averages the gradients of what requires one now. A no-op under other strategies.

    Lightning builds it on a new CUDA stream, where DDP broadcasts the first process's weights. The streams wait for each other here:
    otherwise the broadcast could overtake the last optimizer step, and the next forward pass the broadcast.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
        _wait_for_device(strategy.root_device)
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()
        _wait_for_device(strategy.root_device)


def _wait_for_device(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def before_setup(trainer: Trainer, action: Callable[[], None]) -> None:
    """Call `action` in each process before the strategy sets up its device and process group."""
    strategy: Any = trainer.strategy
    setup = strategy.setup_environment

    def setup_after_action() -> None:
        action()
        setup()

    strategy.setup_environment = setup_after_action


def knows_rank_before_setup(trainer: Trainer) -> bool:
    """Whether `trainer.global_rank` is right before the strategy sets up: not in forks of one program (`ddp_fork`, `ddp_notebook`)."""
    launcher = trainer.strategy.launcher
    return launcher is None or not launcher.is_interactive_compatible


def name_meeting_place(trainer: Trainer) -> None:
    """Set MASTER_ADDR and MASTER_PORT as the strategy does when it forms the process group."""
    environment: Any = getattr(trainer.strategy, "cluster_environment", None)
    if environment is not None:
        os.environ.update(MASTER_ADDR=environment.main_address, MASTER_PORT=str(environment.main_port))


def shard_over_all_processes(strategy: ModelParallelStrategy) -> None:
    """Let all processes share the data, before the strategy sets up; by itself it takes the number of machines."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes


def is_compiled(module: LightningModule) -> bool:
    """Whether `module` or a part of it runs compiled: by `torch.compile(module)` or by `part.compile()`."""
    return module._compiler_ctx is not None or compiled_parts(module) > 0


def recompile_limit() -> int:
    """How often torch compiles one piece of code again before it runs it uncompiled."""
    return int(torch._dynamo.config.recompile_limit)


@contextmanager
def raised_recompile_limit(limit: int) -> Iterator[None]:
    """Set `recompile_limit` to at least `limit`, and restore it afterwards."""
    before = recompile_limit()
    torch._dynamo.config.recompile_limit = max(before, limit)
    try:
        yield
    finally:
        torch._dynamo.config.recompile_limit = before


def version_of(tensor: Tensor) -> int | None:
    """A number that grows with each change of a tensor in place; `None` for an inference tensor, whose changes are not counted."""
    return None if tensor.is_inference() else tensor._version


def state_of_metric(metric: Metric) -> dict[str, Any]:
    """Everything that a metric has counted so far, on the CPU: its states and the number of its updates, by the names of its attributes."""
    states = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in metric.metric_state.items()}
    return {"_update_count": metric._update_count, **states}


def load_state_of_metric(metric: Metric, state: Mapping[str, Any]) -> None:
    """Give a metric what `state_of_metric` returned, in place, on its device: a sharded module has moved when it is loaded."""
    for name, value in state.items():
        setattr(metric, name, value.to(metric.device) if isinstance(value, Tensor) else value)


def share_of_sum(metric: Metric, states: Sequence[Mapping[str, Any]], rank: int) -> dict[str, Any]:
    """The state with which a process continues what another number of processes has counted: the sum in the first one, 0 in the others.

    All have the same number of updates, so that all compute, or none.

    Args:
        metric: its states are sums.
        states: of the earlier processes, see `state_of_metric`.
        rank: of this process.
    """
    total = {name: sum(state[name] for state in states) for name in states[0]}
    own = metric.metric_state
    return {name: torch.zeros_like(value) if rank and name in own else value for name, value in total.items()}


def announce_dead_processes(announce: Callable[[], None], is_ending: Callable[[], bool]) -> None:
    """Call `announce` before Lightning ends this process because one that it has started failed or was killed; the status is then 1.

    Args:
        announce: prints why this process ends.
        is_ending: whether a signal ends the run. The others end too, some before this process, which writes the results: it then has
            `SECONDS_TO_END` left.
    """

    def end_all(observer: _ChildProcessObserver) -> None:
        if is_ending():
            time.sleep(SECONDS_TO_END)  # in a thread that does not keep the program alive
        for process in observer._child_processes:
            process.send_signal(observer._termination_signal)
        try:
            announce()
        finally:
            os._exit(1)  # the main thread may wait in a collective operation for ever

    _ChildProcessObserver._terminate_all = end_all  # type: ignore[assignment,method-assign]
