"""Staged unfreezing for any LightningModule."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn

from ftlit.errors import UserError, shorten, unknown
from ftlit.lit.clock import steps_per_epoch, training_length
from ftlit.lit.strategies import check_strategy, compile_anew, reshard, rewrap
from ftlit.rates import Rates
from ftlit.schedule import Schedule, Stage
from ftlit.trainable import modes_of, set_modes, set_trainable, trained


class StagedFinetuning(Callback):
    """Freezes and unfreezes as a schedule says. It is the one owner of the schedule and works in any LightningModule.

    The stage is derived from the epoch, the step and what metrics have decided (`Schedule.stage_at`); only the decisions are kept in a
    checkpoint. It changes `requires_grad`, modes and gradients only: build the optimizer over all parameters
    (`ftlit.build_optimizer`), nothing is added to it later. A stage that waits for a metric is decided after each validation (after
    each epoch where there is none, by metrics that its steps log) by the first process for all, and begins at the next epoch.

    `EarlyStopping` counts anew in each stage and cannot end training before the last stage has begun. A `ftlit.Rates` scheduler that
    restarts is started anew at each stage.

    Args:
        schedule: stages whose patterns name parameters of the LightningModule.

    Raises:
        UserError: when training begins: a pattern that covers nothing, or a last stage that training never reaches; later: a metric
            that is not logged; on resuming: a checkpoint of another schedule.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._begin()

    def _begin(self) -> None:
        self.index = 0
        self.decided: dict[int, int] = {}
        self._values: list[float] = []  # of the metric that the next stage waits for, since this stage began
        self._best: dict[str, Tensor] = {}  # weights at the best of them, where the next stage wants them
        self._modes: dict[nn.Module, bool] = {}
        self._least_epochs: int | None = None

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
        return {"schedule": described(self.schedule), "decided": dict(self.decided), "values": list(self._values), "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the decisions of a checkpoint over."""
        self.decided, self._values, self._best = dict(state_dict["decided"]), list(state_dict["values"]), dict(state_dict["best"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Apply the first stage: before the strategy wraps the module and before the optimizer is built."""
        if stage != "fit":
            return
        self._begin()
        check_strategy(trainer)
        self.schedule.check_reached(trainer.max_epochs, trainer.max_steps)
        for index in reversed(range(len(self.schedule.stages))):  # every pattern is checked now; the first stage is applied last and stays
            self._apply(pl_module, index)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Apply the stage that goes on: the last hook before the strategy wraps the module."""
        if trainer.state.fn != "fit":
            return
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is None:
            raise UserError("this checkpoint was made without StagedFinetuning: its stage is not known; begin a new run from its weights")
        _check_same(state["schedule"], described(self.schedule))
        self._apply(pl_module, self.schedule.stage_at(checkpoint["epoch"], checkpoint["global_step"], state["decided"]))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what depends on the number of steps in an epoch, and hold the end of training back until the last stage."""
        self.schedule.check_reached(trainer.max_epochs, trainer.max_steps, steps_per_epoch(trainer))
        self._check_optimizers(trainer, pl_module)
        self._least_epochs = trainer.fit_loop.min_epochs
        self._hold(trainer)
        if trainer.global_step == 0:
            self._restart(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enter the stage of this epoch, if it is a new one."""
        self._check_owner(pl_module)
        self._advance(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Enter the stage of this step, and keep frozen modules in evaluation mode, whoever called `.train()` in between."""
        if batch_idx % trainer.accumulate_grad_batches == 0:  # a stage never begins between the gradients of one step
            self._advance(trainer, pl_module)
        set_modes(self._modes)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether the next stage begins."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._judge(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide here where there is no validation."""
        if not trainer.enable_validation:
            self._judge(trainer, pl_module)

    def _judge(self, trainer: Trainer, module: LightningModule) -> None:
        """Take the metric that the next stage waits for into account; the first process decides for all."""
        upcoming = self.index + 1
        until = self.schedule.stages[upcoming].until if upcoming < len(self.schedule.stages) else None
        if until is None or upcoming in self.decided:
            return
        if until.metric not in trainer.callback_metrics:
            raise unknown(f"logged metric for stage {self.schedule.stages[upcoming].name!r}:", until.metric, trainer.callback_metrics)
        value = float(trainer.strategy.broadcast(float(trainer.callback_metrics[until.metric])))
        value = float(f"{value:.7g}")  # as exact as float32 is: 0.9 must not fall short of a threshold of 0.9
        best = max(self._values, key=lambda v: v if until.mode == "max" else -v, default=None)
        self._values.append(value)
        if self.schedule.stages[upcoming].from_best and until.better(value, best):
            self._best = _moving(module)
        if until.reached(self._values):
            self.decided[upcoming] = trainer.current_epoch + 1

    def _advance(self, trainer: Trainer, module: LightningModule) -> None:
        index = self.schedule.stage_at(trainer.current_epoch, trainer.global_step, self.decided)
        if index == self.index:
            return
        if self.schedule.stages[index].from_best and index == self.index + 1:
            _restore(module, self._best)
        self._values, self._best = [], {}
        reshard(module)
        if self._apply(module, index):
            rewrap(trainer)
            compile_anew(module)
        for logger in trainer.loggers:
            logger.log_metrics({"stage": float(index)}, step=trainer.global_step)
        self._restart(trainer)
        self._hold(trainer)

    def _apply(self, module: LightningModule, index: int) -> bool:
        self.index = index
        batchnorm = self.stage.batchnorm or "live"
        changed = set_trainable(module, self.stage.train, batchnorm)
        self._modes = modes_of(module, batchnorm)
        return changed

    def _check_optimizers(self, trainer: Trainer, module: LightningModule) -> None:
        """An optimizer over what requires a gradient now would leave out, without a word, what is unfrozen later."""
        held = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        for stage in self.schedule.stages:
            meant = trained(module, stage.train, stage.batchnorm or "live")
            if missing := [name for name, p in module.named_parameters() if name in meant and id(p) not in held]:
                raise UserError(
                    f"stage {stage.name!r} trains what no optimizer holds: {shorten(missing, most=3)}; "
                    "build the optimizer over all parameters, frozen ones too: ftlit.build_optimizer"
                )

    def _check_owner(self, module: LightningModule) -> None:
        """What somebody else unfroze the reducer of DDP does not know: the processes would drift apart in it."""
        meant = trained(module, self.stage.train, self.stage.batchnorm or "live")
        for name, parameter in module.named_parameters():
            if parameter.requires_grad != (name in meant):
                done = "unfrozen" if parameter.requires_grad else "frozen"
                raise UserError(f"{name!r} was {done} by something other than StagedFinetuning: let the schedule alone say what trains")

    def _restart(self, trainer: Trainer) -> None:
        """What counts from the beginning of a stage begins: restarting schedulers and the patience of `EarlyStopping`."""
        restarting = [config.scheduler for config in trainer.lr_scheduler_configs if isinstance(config.scheduler, Rates)]
        if restarting:
            per_epoch = steps_per_epoch(trainer)
            ends = [*self.schedule.latest_steps(per_epoch), training_length(trainer)[0]]
            steps = ends[self.index + 1] - trainer.global_step
        for rates in restarting:
            rates.begin_stage(steps, -(-steps // per_epoch))
        for callback in trainer.early_stopping_callbacks:
            _count_anew(callback)
        trainer.should_stop = False

    def _hold(self, trainer: Trainer) -> None:
        """No end before the last stage has begun, whatever asks for one."""
        least = self._least_epochs or 0
        if self.index + 1 < len(self.schedule.stages):
            least = max(least, self.schedule.latest_steps(per_epoch := steps_per_epoch(trainer))[-1] // per_epoch + 1)
        trainer.fit_loop.min_epochs = least


def described(schedule: Schedule) -> list[str]:
    """A schedule in lines of text that are equal where schedules are."""
    lines = [
        f"stage {stage.name!r}: {', '.join(stage.train)} from {stage.begins}; batchnorm {stage.batchnorm or 'live'}"
        + (f" (min_delta {stage.until.min_delta})" if stage.until else "")
        + (", from the best weights" if stage.from_best else "")
        for stage in schedule.stages
    ]
    return lines + [f"rate of {pattern}: x {factor:g}" for pattern, factor in schedule.lr_scale]


def _check_same(before: list[str], now: list[str]) -> None:
    if before != now:
        was, is_now = next(((a, b) for a, b in zip(before, now, strict=False) if a != b), (f"{len(before)} lines", f"{len(now)} lines"))
        raise UserError(f"this checkpoint was made with another schedule: {was}; now {is_now}. Give the old one, or begin a new run")


def _moving(module: nn.Module) -> dict[str, Tensor]:
    """Copies of what a stage changes: the parameters that train, and the buffers."""
    moving = {name: p for name, p in module.named_parameters() if p.requires_grad} | dict(module.named_buffers())
    return {name: tensor.detach().cpu().clone() for name, tensor in moving.items()}


@torch.no_grad()
def _restore(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def _count_anew(callback: EarlyStopping) -> None:
    callback.wait_count = 0
    callback.best_score = torch.tensor(float("inf") if callback.mode == "min" else float("-inf"))
