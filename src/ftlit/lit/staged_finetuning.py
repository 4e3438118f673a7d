"""Staged unfreezing for any LightningModule."""

import warnings
from math import inf
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from ftlit.errors import UserError, shorten
from ftlit.finetuning.freeze import hold_modes, modes_of, release_modes, set_modes, set_trainable, trained
from ftlit.finetuning.lr_schedule import Rates
from ftlit.finetuning.param_groups import EVERYTHING, check_ratios
from ftlit.finetuning.schedule import Schedule
from ftlit.finetuning.stage import Stage
from ftlit.lit.stage_trigger import StageTrigger
from ftlit.lit.strategies import check_strategy, compile_anew, reshard, rewrap
from ftlit.lit.trainer_internals import steps_per_epoch, training_length


class StagedFinetuning(Callback):
    """Freezes and unfreezes as a schedule says. It is the one owner of the schedule and works in any LightningModule.

    The stage is derived from the epoch, the step and what metrics have decided (`Schedule.stage_at`); only the decisions are kept in a
    checkpoint. It changes `requires_grad`, modes and gradients only: build the optimizer over all parameters
    (`ftlit.build_optimizer`), nothing is added to it later. A stage that waits for a metric is decided after each validation, or at
    the end of an epoch where the metric is not there before, by the first process for all, and begins at the next epoch.

    Until the last stage has begun `EarlyStopping` does not end training for lack of patience or for a goal reached; it does for a metric
    that is not finite. It counts anew in each stage. A `ftlit.Rates` scheduler that restarts is started anew at each stage.

    Args:
        schedule: stages whose patterns name parameters of the LightningModule, whatever their `requires_grad` was before.

    Raises:
        UserError: when training begins: a pattern that covers nothing, a last stage that training never reaches, an optimizer that lacks
            what a stage trains, rates in another ratio than asked for, a strategy or callback that cannot follow; later: a metric that is
            not logged, a parameter that somebody else froze or unfroze; on resuming: a checkpoint of another schedule.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.index = 0
        self.judge = StageTrigger(schedule)
        self._applied = False
        self._late: set[str] = set()  # metrics that are not there yet when a validation ends
        self._modes: dict[nn.Module, bool] = {}
        self._meant: list[tuple[nn.Parameter, bool]] = []
        self._patience: dict[EarlyStopping, tuple[float, float | None]] = {}

    @property
    def stage(self) -> Stage:
        """The stage in force."""
        return self.schedule.stages[self.index]

    @property
    def state_key(self) -> str:
        """Where a checkpoint keeps the state, whatever the class is called one day."""
        return "StagedFinetuning"

    def state_dict(self) -> dict[str, Any]:
        """What cannot be derived: the decisions of metrics and what they rest on; and the schedule, to refuse another one."""
        return {"schedule": described(self.schedule), **self.judge.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the decisions of a checkpoint over."""
        self.judge.load_state_dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Apply the stage before the strategy wraps the module and before the optimizer is built, if the layers are there already."""
        if stage != "fit":
            return
        check_strategy(trainer)
        _check_callbacks(trainer)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.schedule.check_reached(trainer.max_epochs, trainer.max_steps)
        if trainer.current_epoch == 0:  # else a fit that goes on with the last one
            self.judge = StageTrigger(self.schedule)
        self._patience = {callback: (callback.patience, callback.stopping_threshold) for callback in trainer.early_stopping_callbacks}
        self._applied = False
        if not is_overridden("configure_model", pl_module) and not is_overridden("setup", pl_module):
            self._apply_all(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Apply the stage that goes on: the last hook before the strategy wraps the module."""
        if trainer.state.fn != "fit":
            return
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is None:
            raise UserError("this checkpoint was made without StagedFinetuning: its stage is not known; begin a new run from its weights")
        _check_same(state["schedule"], described(self.schedule))
        self._apply(pl_module, self.schedule.stage_at(checkpoint["epoch"], checkpoint["global_step"], state["decided"]))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply the stage to layers that the module built after `setup`."""
        if not self._applied:
            self._apply_all(trainer, pl_module)
            rewrap(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what is known only now: the optimizers, and how many steps an epoch has."""
        self._apply(pl_module, self.index)  # a strategy may have put other modules in place, SyncBatchNorm for instance
        self._check_optimizers(trainer, pl_module)
        if any(stage.step is not None for stage in self.schedule.stages):
            if not pl_module.automatic_optimization:
                raise UserError("a stage that begins at a step needs automatic optimization: give it an epoch")
            self.schedule.check_reached(trainer.max_epochs, trainer.max_steps, steps_per_epoch(trainer))
        if trainer.global_step == 0:
            for optimizer in trainer.optimizers:
                check_ratios(optimizer)
            self._restart(trainer)
        self._hold()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enter the stage of this epoch, if it is a new one."""
        self._advance(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Enter the stage of this step, and bring back modes that somebody has changed."""
        if batch_idx % trainer.accumulate_grad_batches == 0:  # a stage never begins between the gradients of one step
            self._advance(trainer, pl_module)
        set_modes(self._modes)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether the next stage begins."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or not (until := self.judge.waits_for(self.index)):
            return
        if until.metric not in trainer.callback_metrics:
            self._late.add(until.metric)  # from now on there is a value, that of the epoch before
        if until.metric not in self._late:
            self.judge.look(trainer, pl_module, self.index)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide here where there is no validation, or where the metric is one of the training steps."""
        until = self.judge.waits_for(self.index)
        if until and (not trainer.enable_validation or until.metric in self._late):
            self.judge.look(trainer, pl_module, self.index)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what went another way than the schedule."""
        self._check_owner(pl_module)
        if self.index + 1 < len(self.schedule.stages) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            warnings.warn(f"training ended in stage {self.stage.name!r}, before the last one began", stacklevel=1)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave nothing behind in the callbacks of others."""
        for callback, (patience, threshold) in self._patience.items():
            callback.patience, callback.stopping_threshold = patience, threshold  # type: ignore[assignment]
        release_modes(self._modes)

    def _apply_all(self, trainer: Trainer, module: LightningModule) -> None:
        """Every pattern is checked now; the stage in force is applied last and stays."""
        now = self.schedule.stage_at(trainer.current_epoch, trainer.global_step, self.judge.decided)
        for index in [*range(len(self.schedule.stages)), now]:
            self._apply(module, index)

    def _apply(self, module: LightningModule, index: int) -> bool:
        self.index, self._applied = index, True
        batchnorm = self.stage.policy
        release_modes(self._modes)
        changed = set_trainable(module, self.stage.train, batchnorm)
        self._modes = modes_of(module, batchnorm)
        self._meant = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        hold_modes(self._modes)
        return changed

    def _advance(self, trainer: Trainer, module: LightningModule) -> None:
        self._check_owner(module)
        index = self.schedule.stage_at(trainer.current_epoch, trainer.global_step, self.judge.decided)
        if index == self.index:
            return
        self.judge.begin(index, module)
        reshard(module)
        if self._apply(module, index):
            rewrap(trainer)
            compile_anew(module)
        for logger in trainer.loggers:
            logger.log_metrics({"stage": float(index)}, step=trainer.global_step)
        self._restart(trainer)
        self._hold()

    def _check_owner(self, module: LightningModule) -> None:
        """What somebody else unfroze the reducer of DDP does not know: the processes would drift apart in it."""
        for parameter, meant in self._meant:
            if parameter.requires_grad != meant:
                name = next((name for name, own in module.named_parameters() if own is parameter), "a parameter that is gone")
                done = "unfrozen" if parameter.requires_grad else "frozen"
                raise UserError(f"{name!r} was {done} by something other than StagedFinetuning: let the schedule alone say what trains")

    def _check_optimizers(self, trainer: Trainer, module: LightningModule) -> None:
        """An optimizer over what requires a gradient now would leave out, without a word, what is unfrozen later."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        held = {id(parameter) for group in groups for parameter in group["params"]}
        for stage in self.schedule.stages:
            meant = trained(module, stage.train, stage.policy)
            if missing := [name for name, p in module.named_parameters() if name in meant and id(p) not in held]:
                raise UserError(
                    f"stage {stage.name!r} trains what no optimizer holds: {shorten(missing, most=3)}; "
                    "build the optimizer over all parameters, frozen ones too: ftlit.build_optimizer"
                )
        scales = {group.get("lr_scale") for group in groups}
        if tuple(self.schedule.lr_scale) != tuple(EVERYTHING) and not {scale for _, scale in self.schedule.lr_scale} <= scales:
            raise UserError("the optimizer's groups are not those of the schedule: build_optimizer(module, factory, schedule.lr_scale)")

    def _restart(self, trainer: Trainer) -> None:
        """What counts from the beginning of a stage begins: restarting schedulers and the patience of `EarlyStopping`."""
        restarting = [config.scheduler for config in trainer.lr_scheduler_configs if isinstance(config.scheduler, Rates)]
        if any(rates.restarts for rates in restarting):
            per_epoch = steps_per_epoch(trainer)
            ends = [*self.schedule.latest_steps(per_epoch), training_length(trainer)[0]]
            steps = ends[self.index + 1] - trainer.global_step
            for rates in restarting:
                rates.begin_stage(steps, -(-steps // per_epoch))
        for callback in trainer.early_stopping_callbacks:
            callback.wait_count = 0
            callback.best_score = torch.tensor(inf if callback.mode == "min" else -inf)

    def _hold(self) -> None:
        """No end for lack of patience, or for a goal reached, before the last stage."""
        last = self.index + 1 == len(self.schedule.stages)
        for callback, (patience, threshold) in self._patience.items():
            callback.patience, callback.stopping_threshold = (patience, threshold) if last else (inf, None)  # type: ignore[assignment]


def described(schedule: Schedule) -> list[str]:
    """A schedule in lines of text that are equal where schedules are."""
    lines = [
        f"stage {stage.name!r}: {', '.join(stage.train)} from {stage.begins}; batchnorm {stage.policy}"
        + (f" ({stage.until!r})" if stage.until else "")
        + (", from the best weights" if stage.from_best else "")
        for stage in schedule.stages
    ]
    return lines + [f"rate of {pattern}: x {factor!r}" for pattern, factor in schedule.lr_scale]


def _check_same(before: list[str], now: list[str]) -> None:
    if before != now:
        was, is_now = next(((a, b) for a, b in zip(before, now, strict=False) if a != b), (f"{len(before)} lines", f"{len(now)} lines"))
        raise UserError(f"this checkpoint was made with another schedule: {was}; now {is_now}. Give the old one, or begin a new run")


def _check_callbacks(trainer: Trainer) -> None:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
        raise UserError("StochasticWeightAveraging computes the statistics of frozen batch norms anew and replaces the rates: leave it out")
