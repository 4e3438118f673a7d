"""What a change of stage asks of the strategy that runs the module, and of the compiler."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from ftlit.errors import UserError

UNTRIED = (DeepSpeedStrategy, XLAStrategy, SingleDeviceXLAStrategy)  # some of them are kinds of DDPStrategy to Lightning


def check_strategy(trainer: Trainer) -> None:
    """Refuse a strategy under which a stage that begins later would be silently wrong.

    DDP is wrapped anew (`rewrap`). `ModelParallelStrategy` (FSDP2) shards each parameter by itself (`reshard`). FSDP flattens many
    into one, and only with `use_orig_params=True` may some of them be frozen (torch's FullyShardedDataParallel, `use_orig_params`).

    Raises:
        UserError: another strategy, or FSDP without `use_orig_params`.
    """
    strategy = trainer.strategy
    if isinstance(strategy, FSDPStrategy) and not strategy.kwargs.get("use_orig_params", True):
        raise UserError("FSDP with use_orig_params=false trains whole flat parameters, frozen ones too: give use_orig_params=true")
    if isinstance(strategy, UNTRIED) or not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FSDPStrategy | ModelParallelStrategy):
        raise UserError(
            f"StagedFinetuning does not know whether {type(strategy).__name__} follows when parameters are unfrozen later: "
            "take one device, ddp, fsdp or ModelParallelStrategy"
        )


def rewrap(trainer: Trainer) -> None:
    """Wrap the module for DDP anew. Its reducer averages only what required a gradient when it was wrapped: without this,
    parameters unfrozen later drift apart between the processes (Lightning#20340). A no-op under other strategies.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()


def reshard(module: LightningModule) -> None:
    """Bring the parameters of FSDP2 back from their gathered copies, which would forget a new `requires_grad`: a unit that is frozen
    has no backward pass that does so. A no-op without FSDP2.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def is_compiled(module: LightningModule) -> bool:
    """Whether `module` or a part of it runs compiled: by `torch.compile(module)` or by `part.compile()`."""
    return module._compiler_ctx is not None or any(part._compiled_call_impl is not None for part in module.modules())


def compile_anew(module: LightningModule) -> None:
    """Forget what was compiled, so that the next step compiles what now trains.

    torch compiles anew by itself where `requires_grad` or a mode has changed, but gives up after 8 times and then runs uncompiled
    (`torch._dynamo.config.recompile_limit`); a schedule of many stages would come to that. A no-op where nothing is compiled.
    """
    if is_compiled(module):
        torch.compiler.reset()
