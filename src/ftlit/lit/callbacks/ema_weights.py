"""EmaWeights: an exponential moving average of the weights, which is validated, saved as the best checkpoint, and tested."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ftlit.errors import UserError
from ftlit.lit.stages.staged_finetuning import StagedFinetuning
from ftlit.lit.strategies import keeps_whole_weights
from ftlit.lit.trainer_internals import find_callback
from ftlit.plain_arguments import plain_arguments

LOW = ("16-true", "bf16-true", "transformer-engine", "transformer-engine-float16")  # precisions in which also the weights are rounded
PRECISE = (torch.float32, torch.float64)
LEAVE_OUT = "leave average=ema (EmaWeights) out"


class EmaWeights(WeightAveraging):
    """Lightning's WeightAveraging with an exponential average, made for frozen layers, validation after training, and exact resuming.

    After each optimizer step the average moves towards the weights by 1 - d, where d = min(decay, (1 + n) / (10 + n)) after n steps, so
    that also training of few steps forgets its beginning. The first step copies the weights. Validation during training runs on the
    average, checkpoints hold it in `state_dict`, and the module has it when training ends.

    Of Lightning's callback are the swap at validation and the content of checkpoints. It may stand anywhere among the callbacks.
    Differences:

    - A tensor that does not train in the current stage is equal in both: a parameter without gradient, a buffer of a module in evaluation
      mode. Frozen layers, also those that are frozen again, are the ones that features are stored of, bit for bit.
    - Buffers of floating point that change, as the statistics of batch norms, are averaged like the weights; others are copied. Of several
      processes, all validate with the buffers of the first.
    - `trainer.validate` and `trainer.test` after training use the weights of the module or of the checkpoint that they are given.
      Lightning's would exchange them for those of training.
    - The average is on the device of the module.
    - Only modules and tensors are copied for the average, not the other attributes of the module. Under LightningCLI an `OptimizerCallable`
      holds the whole trainer, with its data and callbacks.

    Args:
        decay: of the average, 0 to below 1.

    Raises:
        UserError: a decay out of range; when training begins: a strategy that shards the weights, weights of less than float32, or a stage
            that begins from the best weights, which are those of training, not of the average.
    """

    @plain_arguments
    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"average.decay={decay}: give a number of at least 0 and below 1, such as 0.999")
        super().__init__(use_buffers=True)
        self.decay = decay
        self._moved: set[str] | None = None  # names of tensors that may differ from those of the module; `None`: all

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint; it does not depend on the class's name."""
        return "EmaWeights"

    @property
    def updates(self) -> int:
        """Number of optimizer steps in the average; 0 outside of training."""
        return 0 if self._average_model is None else int(self._average_model.n_averaged)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Build the average, when training begins."""
        if stage != "fit":
            return
        self.check(trainer)
        pl_module.configure_model()  # the layers that it builds have an average too
        self._average_model = AveragedModel(nn.Module(), use_buffers=True)
        self._average_model.module = copy_of_tensors(pl_module)
        self._moved = None

    def check(self, trainer: Trainer) -> None:
        """Refuse a trainer with which weights cannot be averaged. Training does this too, when it begins.

        Raises:
            UserError: see the class.
        """
        if not keeps_whole_weights(type(trainer.strategy)):
            name = type(trainer.strategy).__name__
            raise UserError(f"the weights cannot be averaged with {name}, which shards them: {LEAVE_OUT}, or give trainer.strategy=ddp")
        staged = find_callback(trainer, StagedFinetuning)
        if staged and (best := next((each for each in staged.schedule.stages if each.from_best), None)):
            raise UserError(
                f"stage {best.name!r} begins from the best weights (from_best), but validation measures the averaged weights: "
                f"remove from_best, or {LEAVE_OUT}"
            )
        if str(trainer.precision) in LOW:
            raise _imprecise(f"precision {trainer.precision}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the average the device and number format of the module. Before the first step it is the module as it is now, with a head
        that was fitted.
        """
        assert self._average_model is not None
        averaged = _tensors(self._average_model.module)
        for name, (own, _) in _tensors(pl_module).items():
            if own.is_floating_point() and own.dtype not in PRECISE:
                raise _imprecise(str(own.dtype))
            averaged[name][0].data = averaged[name][0].data.to(own.device, own.dtype)
        if not self.updates:
            self._average_model.module.load_state_dict(pl_module.state_dict())

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the average after an optimizer step."""
        if trainer.global_step <= self._latest_update_step:
            return
        average = self._average_model
        assert average is not None
        weight = 1.0 if not self.updates else 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged = _tensors(average.module)
        moved = set[str]()
        for name, (own, trains) in _tensors(pl_module).items():
            target = averaged[name][0]
            if trains and own.is_floating_point() and weight < 1:
                target.lerp_(own, weight)
            elif trains or self._moved is None or name in self._moved:
                target.copy_(own)
            if trains:
                moved.add(name)
        self._moved = moved
        average.n_averaged += 1
        self._latest_update_step = trainer.global_step

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average. Its buffers are those of the first process, as batch norms of several processes see other images."""
        if self._average_model is not None and trainer.world_size > 1:
            for buffer in self._average_model.module.buffers():
                torch.distributed.broadcast(buffer, 0)
        super().on_validation_epoch_start(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the average, which the module has now."""
        self._average_model = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average in `state_dict`, and the weights of training beside it, during training."""
        if self._average_model is not None:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore both, where training resumes."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def _imprecise(what: str) -> UserError:
    return UserError(f"an average of weights in {what} would lose its small steps: give trainer.precision=bf16-mixed, or {LEAVE_OUT}")


def copy_of_tensors(module: nn.Module) -> nn.Module:
    """A copy of a module that has its own submodules, parameters and buffers, and shares all other attributes with it."""
    registries = vars(nn.Module()).keys()
    own: set[int] = {id(each) for found in (module.modules(), module.parameters(), module.buffers()) for each in found}
    shared: dict[int, Any] = {}
    for part in module.modules():
        if not isinstance(part, torch.jit.ScriptModule):  # its tensors lie in another attribute
            own |= {id(vars(part)[name]) for name in registries & vars(part).keys()}
            shared |= {id(value): value for name, value in vars(part).items() if name not in registries}
    return deepcopy(module, {key: value for key, value in shared.items() if key not in own})


def _tensors(module: nn.Module) -> dict[str, tuple[Tensor, bool]]:
    """Name -> parameter or buffer of a module, and whether training changes it now."""
    return dict(_each(module))


def _each(module: nn.Module) -> Iterator[tuple[str, tuple[Tensor, bool]]]:
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        for leaf, parameter in part.named_parameters(recurse=False):
            yield f"{prefix}{leaf}", (parameter, parameter.requires_grad)
        for leaf, buffer in part.named_buffers(recurse=False):
            yield f"{prefix}{leaf}", (buffer, part.training)
