"""Staged unfreezing for any LightningModule."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from ftlit.schedule import Schedule, Stage
from ftlit.trainable import set_modes, set_trainable


class StagedFinetuning(Callback):
    """Freezes and unfreezes as a schedule says. It is the one owner of the schedule and works in any LightningModule.

    The stage is derived from the epoch and never stored, so resuming finds it again. It changes `requires_grad`, modes and
    gradients only: build the optimizer over all parameters (`ftlit.build_optimizer`), nothing is added to it later.

    Args:
        schedule: stages whose patterns name parameters of the LightningModule.

    Raises:
        UserError: when training begins: a pattern that covers nothing, or a last stage that `max_epochs` never reaches.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.stage: Stage = schedule.stages[0]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Apply the first stage: before the strategy wraps the module and before the optimizer is built."""
        if stage != "fit":
            return
        self.schedule.check_reached(trainer.max_epochs)
        for planned in reversed(self.schedule.stages):  # every pattern is checked now; the first stage is applied last and stays
            self._apply(pl_module, planned)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Apply the stage of the epoch that goes on: the last hook before the strategy wraps the module."""
        if trainer.state.fn == "fit":
            self._apply(pl_module, self._at(checkpoint["epoch"]))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enter the stage of this epoch, if it is a new one."""
        changed = self._apply(pl_module, self._at(trainer.current_epoch))
        if changed:
            rewrap(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep frozen modules in evaluation mode, whoever called `.train()` in between."""
        set_modes(pl_module)

    def _at(self, epoch: int) -> Stage:
        return self.schedule.stages[self.schedule.stage_at(epoch)]

    def _apply(self, module: LightningModule, stage: Stage) -> bool:
        self.stage = stage
        return set_trainable(module, stage.train)


def rewrap(trainer: Trainer) -> None:
    """Wrap the module for DDP anew. Its reducer averages only what required a gradient when it was wrapped: without this,
    parameters unfrozen later drift apart between the processes (Lightning#20340). A no-op under other strategies.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()
