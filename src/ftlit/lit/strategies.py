"""Strategies and compilers under a stage that begins during training: which are supported, and what each of them needs."""

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

from ftlit.errors import UserError
from ftlit.lit.module_internals import is_compiled, uses_original_parameters

SHARDED = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)  # no process holds all weights
SUPPORTED = (SingleDeviceStrategy, DDPStrategy, FSDPStrategy, ModelParallelStrategy)
UNTESTED = (DeepSpeedStrategy, XLAStrategy, SingleDeviceXLAStrategy)  # some of them are subclasses of supported ones


def check_strategy(trainer: Trainer) -> None:
    """Refuse a strategy under which training would go wrong without a message when a stage unfreezes parameters.

    DDP is wrapped again (`ftlit.lit.module_internals.wrap_ddp_again`). `ModelParallelStrategy` (FSDP2) shards each parameter by itself
    (`reshard`). FSDP flattens many into one, and only with `use_orig_params=True` may some of them be frozen (torch's
    FullyShardedDataParallel, `use_orig_params`).

    Raises:
        UserError: another strategy, or FSDP without `use_orig_params`.
    """
    strategy = trainer.strategy
    if isinstance(strategy, FSDPStrategy) and not uses_original_parameters(strategy):
        raise UserError("FSDP with use_orig_params=false trains frozen parameters too: set use_orig_params=true")
    if isinstance(strategy, UNTESTED) or not isinstance(strategy, SUPPORTED):
        raise UserError(
            f"StagedFinetuning does not support {type(strategy).__name__}, because unfreezing parameters is untested there: "
            "use one device, ddp, fsdp or ModelParallelStrategy"
        )


def reshard(module: LightningModule) -> None:
    """Drop the gathered copies of FSDP2's parameters, so that a new `requires_grad` reaches the next forward pass.

    A frozen unit keeps its copies, because it has no backward pass that would drop them. A no-op without FSDP2.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def compile_again(module: LightningModule) -> None:
    """Discard compiled code, so that the next step compiles what trains now. A no-op where nothing is compiled.

    torch recompiles by itself where `requires_grad` or a mode has changed, but only 8 times; then it runs uncompiled
    (`torch._dynamo.config.recompile_limit`). A schedule may have more stages than that.
    """
    if is_compiled(module):
        torch.compiler.reset()
