"""StagedFinetuning: the callback that freezes and unfreezes parts of any LightningModule by a schedule."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn

from ftlit.finetuning.freeze import hold_modes, modes_of, release_modes, remember_trained, set_modes, set_trainable
from ftlit.finetuning.schedule import Schedule
from ftlit.finetuning.stage import Stage
from ftlit.lit.module_internals import builds_layers_late, wrap_ddp_again
from ftlit.lit.stages.stage_begin import print_begin, print_plan, print_resumed, restart_counts, schedule_of
from ftlit.lit.stages.stage_checks import (
    Trainable,
    check_callbacks,
    check_length,
    check_optimizers,
    check_rates,
    check_unchanged,
    decisions_in,
    loses_statistics,
    ratios_keep,
    schedule_values,
    warn_of_statistics,
)
from ftlit.lit.stages.stage_trigger import StageTrigger
from ftlit.lit.strategies import check_resumes, check_strategy, compile_again, reshard
from ftlit.lit.trainer_internals import StoppingLimits, callbacks_of, is_trial_run


class StagedFinetuning(Callback):
    """Freezes and unfreezes the parameters of any LightningModule by a schedule, and is the only one that does so.

    - The current stage is a function of the epoch, the optimizer step and the decisions of metrics (`Schedule.stage_at`).
      A checkpoint keeps only these decisions; resumed training is in the right stage from its first step.
    - A stage changes `requires_grad`, training modes and gradients, nothing else. Frozen modules stay in evaluation mode, also when
      other code calls `.train()`. When training ends, parameters and modes stay as the last stage left them.
    - Nothing is added to the optimizer later: build it over all parameters, frozen ones too (`ftlit.build_optimizer`).
    - A stage with `until` is decided after each validation, or at the end of the epoch if the metric is not logged before. The first
      process decides for all. The stage begins at the next epoch.
    - When a stage begins, DDP wraps the module again (Lightning#20340), compiled code is discarded, and the number of the
      stage is logged as `stage`. A `ftlit.Rates` scheduler with `restart=True` begins again. Of several stages each prints a line, and
      resumed training one that names its stage.
    - A scheduler should keep the ratios between the learning rates of the parameter groups: one whose lowest rate would change them
      (`eta_min`, `min_lr` of torch) is a warning when training begins, and a change during training is one at the end of the epoch.
    - `EarlyStopping` counts from the beginning of each stage, and ends only the last one, or any one if its metric is not finite.

    Args:
        schedule: stages whose patterns name parameters of the LightningModule, whatever their `requires_grad` was before; or a function of
            the module that returns them, such as `ftlit.schedules.top_down(backbone="model", head="model.fc")`.
        verbose: print the plan (`ftlit.examine`), with its table of layers and its warnings, before the first step.
        warns: print the warnings of the plan in any case, of layers that no stage trains for instance.

    Attributes:
        index: number of the current stage, from 0.
        trigger: the decisions of metrics.

    Raises:
        UserError: when training begins: a pattern that matches no parameter, a last stage that training never reaches, an optimizer that
            lacks parameters of a stage, first learning rates in another ratio than `lr_scale`, an unsupported strategy or callback, a
            misspelt metric of `FineTuner` or of Lightning's sanity validation; during training: a metric that is not logged, a parameter
            that other code froze or unfroze; on resuming: a checkpoint of another schedule.
    """

    def __init__(self, schedule: Schedule | Callable[[nn.Module], Schedule], verbose: bool = False, warns: bool = True) -> None:
        self._schedule_of = None if isinstance(schedule, Schedule) else schedule
        self.schedule = schedule if isinstance(schedule, Schedule) else Schedule([Stage(["*"])])  # until `setup` knows the module
        self.verbose, self.warns = verbose, warns
        self.index = 0
        self.trigger = StageTrigger(self.schedule)
        self._applied = False
        self._printed: int | None = None  # the last stage that has a line
        self._resumes = False  # whether the next step is the first one after a checkpoint
        self._logged_late: set[str] = set()  # metrics that are not logged yet when a validation ends
        self._modes: dict[nn.Module, bool] = {}
        self._expected: list[Trainable] = []
        self._ratios_keep = True  # of the learning rates, until a warning says otherwise
        self._loses = False  # whether a stage loses statistics of a backbone whose origin is random
        self._limits: dict[EarlyStopping, StoppingLimits] = {}  # as the user gave them

    @property
    def stage(self) -> Stage:
        """The current stage."""
        return self.schedule.stages[self.index]

    @property
    def is_last(self) -> bool:
        """Whether the current stage is the last one."""
        return self.index + 1 == len(self.schedule.stages)

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint; it does not depend on the class's name."""
        return "StagedFinetuning"

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the decisions of metrics with the values behind them, and the schedule, to compare it on resuming.

        Not in `state_dict`, because Trainer would answer two of these callbacks with an error about keys of states, before `setup`.
        """
        checkpoint["callbacks"][self.state_key] = {"schedule": schedule_values(self.schedule), **self.trigger.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the decisions."""
        self.trigger.load_state_dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Apply the stage before the strategy wraps the module and before the optimizer is built, if all layers are there already."""
        if stage != "fit":
            return
        check_strategy(trainer)
        check_callbacks(callbacks_of(trainer), StagedFinetuning)
        if self._schedule_of:
            self.schedule = schedule_of(self._schedule_of, pl_module)
        if not is_trial_run(trainer):
            self.schedule.check_reached(trainer.max_epochs, trainer.max_steps)
        if trainer.current_epoch == 0:  # otherwise this fit continues the one before
            self.trigger = StageTrigger(self.schedule)
        self.trigger.check_names(getattr(pl_module, "val_metrics", ()))  # those of FineTuner are known before it logs them
        self._limits = {callback: StoppingLimits.of(callback) for callback in trainer.early_stopping_callbacks}
        self._applied = False
        if not builds_layers_late(pl_module):
            self._apply_current(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Apply the stage of the checkpoint: this is the last hook before the strategy wraps the module."""
        if trainer.state.fn != "fit":
            return
        check_resumes(trainer)
        decided = decisions_in(checkpoint.get("callbacks", {}).get(self.state_key), self.schedule)
        self._apply(pl_module, self.schedule.stage_at(checkpoint["epoch"], checkpoint["global_step"], decided))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply the stage to layers that the module built after `setup`."""
        if not self._applied:
            self._apply_current(trainer, pl_module)
            wrap_ddp_again(trainer)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find a misspelt metric of a stage before training: by now a validation has logged what it logs."""
        self.trigger.check_names(list(trainer.callback_metrics))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what is known only now: the optimizers, and the number of steps in an epoch."""
        self._apply(pl_module, self.index)  # a strategy may have replaced modules, by SyncBatchNorm for instance
        check_optimizers(pl_module, self.schedule, trainer.optimizers)
        check_length(self.schedule, trainer, pl_module)
        self._printed = self.index if trainer.global_step or len(self.schedule.stages) == 1 else None  # a resumed stage has begun before
        self._resumes = bool(trainer.ckpt_path and trainer.global_step)
        if self.verbose or self.warns:
            print_plan(self.schedule, trainer, pl_module, whole=self.verbose)
        if trainer.global_step == 0:
            check_rates(self.schedule, trainer)
            warn_of_statistics(trainer, loses=self._loses)
            self._ratios_keep = True
            restart_counts(self.schedule, self.index, trainer)
        self._limit_early_stopping()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enter the stage of this epoch, if it is a new one. After the first validation it is known which metrics there are."""
        if trainer.current_epoch == trainer.check_val_every_n_epoch and not self._resumes and trainer.is_global_zero:
            self.trigger.warn_of_unlogged(self.index, trainer.callback_metrics)
        self._advance(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Enter the stage of this step, if it is a new one, and restore modes that other code has changed."""
        if batch_idx % trainer.accumulate_grad_batches == 0:  # a stage never begins between the batches of one optimizer step
            self._advance(trainer, pl_module)
        if self._resumes:
            self._resumes = False
            print_resumed(self.schedule, self.index, trainer, pl_module)
        if self.index != self._printed:  # here, because in `on_train_epoch_start` progress bars end the epoch before
            self._printed = self.index
            print_begin(self.schedule, self.index, trainer, pl_module)
        set_modes(self._modes)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether the next stage begins, from a metric that is logged by now."""
        until = self.trigger.condition(self.index)
        if until is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if until.metric not in trainer.callback_metrics:
            self._logged_late.add(until.metric)  # after later validations there is a value: that of the epoch before
        if until.metric not in self._logged_late:
            self.trigger.update(trainer, pl_module, self.index)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide here if there is no validation, or if the metric is logged by the training steps. Check the learning rates."""
        self._ratios_keep = self._ratios_keep and ratios_keep(trainer)
        if (until := self.trigger.condition(self.index)) and (not trainer.enable_validation or until.metric in self._logged_late):
            self.trigger.update(trainer, pl_module, self.index)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of stages that have not begun. Remember which modules have trained."""
        check_unchanged(pl_module, self._expected)
        if not is_trial_run(trainer):
            remember_trained(pl_module)
            if trainer.is_global_zero:
                self.trigger.warn_at_end(self.index)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the limits of the callbacks, and the effect of `.train()`."""
        for callback, limits in self._limits.items():
            limits.apply(callback)
        release_modes(self._modes)

    def _current(self, trainer: Trainer) -> int:
        return self.schedule.stage_at(trainer.current_epoch, trainer.global_step, self.trigger.decided)

    def _apply_current(self, trainer: Trainer, module: LightningModule) -> None:
        """Apply each stage once, which checks its patterns, and the current one last."""
        self._loses = False
        for index in [*range(len(self.schedule.stages)), self._current(trainer)]:
            self._apply(module, index)
            self._loses |= loses_statistics(module, self.stage, self._modes)

    def _apply(self, module: LightningModule, index: int) -> bool:
        """Make `index` the current stage of the module, in place. Returns whether other parameters train than before."""
        reshard(module)
        self.index, self._applied = index, True
        release_modes(self._modes)
        changed = set_trainable(module, self.stage.train, self.stage.policy)
        self._modes = modes_of(module, self.stage.policy)
        self._expected = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        hold_modes(self._modes)
        return changed

    def _advance(self, trainer: Trainer, module: LightningModule) -> None:
        check_unchanged(module, self._expected)
        index = self._current(trainer)
        if index != self.index:
            self._enter(trainer, module, index)

    def _enter(self, trainer: Trainer, module: LightningModule, index: int) -> None:
        reshard(module)
        self.trigger.begin(index, module)
        if self._apply(module, index):
            wrap_ddp_again(trainer)
            compile_again(module)
        for logger in trainer.loggers:
            logger.log_metrics({"stage": float(index)}, step=trainer.global_step)
        restart_counts(self.schedule, self.index, trainer)
        self._limit_early_stopping()

    def _limit_early_stopping(self) -> None:
        """Let patience and threshold of `EarlyStopping` end training in the last stage only."""
        for callback, limits in self._limits.items():
            (limits if self.is_last else StoppingLimits()).apply(callback)
