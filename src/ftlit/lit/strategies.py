"""Strategies and compilers under a stage that begins during training: which are supported, and what each of them needs."""

from collections.abc import Iterator
from contextlib import contextmanager

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
from torch import nn

from ftlit.errors import UserError
from ftlit.lit.module_internals import is_compiled, raised_recompile_limit, recompile_limit
from ftlit.lit.sharding.fsdp2 import Fsdp2Strategy
from ftlit.lit.sharding.sharded import is_sharded
from ftlit.models.backbone import Backbone, compiled_parts

SHARDED = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)  # no process holds all weights
SUPPORTED = (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy)
RECOMPILED = 16  # times that each compiled part may be compiled: in both modes, frozen or not, for batches of several sizes
UNTESTED = (DeepSpeedStrategy, XLAStrategy, SingleDeviceXLAStrategy)  # some of them are subclasses of supported ones


def keeps_whole_weights(strategy: type | None) -> bool:
    """Whether each process holds all weights during training, under a strategy of this class; `None`: one that Lightning chooses."""
    return strategy is None or not issubclass(strategy, SHARDED)


def shards_later(strategy: type | None) -> bool:
    """Whether each process holds all weights until training begins, and shards afterwards."""
    return strategy is not None and issubclass(strategy, Fsdp2Strategy)


def check_strategy(trainer: Trainer) -> None:
    """Refuse a strategy under which training would go wrong without a message when a stage unfreezes parameters.

    DDP is wrapped again (`ftlit.lit.module_internals.wrap_ddp_again`). `ModelParallelStrategy` (FSDP2) shards each parameter by itself
    (`reshard`). FSDP1 flattens many into one, trained and frozen.

    Raises:
        UserError: another strategy.
    """
    strategy = trainer.strategy
    if isinstance(strategy, FSDPStrategy):
        raise UserError(
            "FSDPStrategy (FSDP1) is not supported, because it joins frozen and trained parameters: give trainer=fsdp2 (in Python "
            "strategy=ftlit.Fsdp2Strategy())"
        )
    if isinstance(strategy, UNTESTED) or not isinstance(strategy, SUPPORTED):
        raise UserError(
            f"StagedFinetuning does not support {type(strategy).__name__}, because unfreezing parameters is untested with this strategy: "
            "train on one CPU or GPU, or give trainer.strategy=ddp or trainer=fsdp2 (in Python strategy=ftlit.Fsdp2Strategy())"
        )


def check_resumes(trainer: Trainer) -> None:
    """Raise `UserError` for a strategy that loads the optimizer state of those parameters only that train at the moment."""
    if isinstance(trainer.strategy, ModelParallelStrategy) and not isinstance(trainer.strategy, Fsdp2Strategy):
        raise UserError(
            "a run with ModelParallelStrategy loses optimizer state when it is resumed: start a new run with "
            "strategy=ftlit.Fsdp2Strategy(), which can be resumed"
        )


def reshard(module: LightningModule) -> None:
    """Drop the gathered copies of FSDP2's parameters, so that a new `requires_grad` reaches the next forward pass.

    A frozen unit keeps its copies, because it has no backward pass that would drop them. A no-op without FSDP2.
    """
    for part in module.modules():
        if is_sharded(part):
            part.reshard()


def compile_layers(backbone: Backbone, head: nn.Module, *, backend: str = "inductor") -> None:
    """Let each layer of the backbone, and the head, run compiled, in training and in extraction.

    Equal layers, such as the blocks of a ViT, share their compiled code, and a stage compiles only the layers again that it changes.
    A last batch of another size is compiled for itself: torch cannot compile torchvision's ViT for sizes that vary.
    """
    for _, layer in backbone.items():
        layer.compile(backend=backend, dynamic=False)
    head.compile(backend=backend, dynamic=False)


@contextmanager
def compiled_layers_allowed(module: LightningModule) -> Iterator[None]:
    """Raise torch's limit of recompilations for a block: it counts by code object, which all layers of a class have in common, and each of
    them is compiled for training, evaluation, batches of other sizes, and again where it is unfrozen. A no-op where nothing is compiled.
    """
    if is_compiled(module):
        with raised_recompile_limit(_needed_limit(module)):
            yield
    else:
        yield


def _needed_limit(module: LightningModule) -> int:
    return RECOMPILED * max(2, compiled_parts(module))


def compile_again(module: LightningModule) -> None:
    """Discard compiled code, so that the next step compiles what trains now. A no-op where nothing is compiled.

    torch recompiles by itself where `requires_grad` or a mode has changed, but only 8 times; then it runs uncompiled
    (`torch._dynamo.config.recompile_limit`). A schedule may have more stages than that. Where the limit is raised
    (`compiled_layers_allowed`), it recompiles the layers that have changed, and the others keep their code.
    """
    if is_compiled(module) and recompile_limit() < _needed_limit(module):
        torch.compiler.reset()
