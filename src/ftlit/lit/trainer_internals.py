"""Private and undocumented parts of Lightning's Trainer, its loops, loaders, loggers and callbacks: every access is a function here.

Each function has a contract test, "Lightning still does this", on a real Trainer, in tests/lit/test_trainer_internals*.py. After an
update of Lightning these tests show what changed; they also test behaviour that ftlit relies on without an access, such as the order of
hooks. Parts of LightningModule, strategies, metrics and compiled modules are in `ftlit.lit.module_internals`, those
of clusters in `ftlit.lit.cluster_internals`.

| part of Lightning | function | reason |
|---|---|---|
| `callbacks`, `datamodule` | `callbacks_of`, `find_callback`, `datamodule_of` | set, but not declared |
| `fast_dev_run`, `overfit_batches` | `is_trial_run`, `overfits_batches` | set, but not declared |
| `rank_zero_only.rank` | `rank_before_trainer` | an attribute of a function, from the environment |
| `fit_loop.setup_data` | `steps_per_epoch` | with `max_steps` alone the number of batches is not known before the loop asks for it |
| `batch_progress`, `epoch_progress` of loops | `completed_batches`, `epoch_position` | how far the epoch is, in all hooks |
| `fit_loop.done` | `has_ended` | whether an interruption came in training or after it |
| `_TunerExitException` | `leave_fit` | any other way out of a step runs hooks that change the run, or tells loggers that it failed |
| `fit_loop.epoch_loop.max_steps` | `end_before_first_step` | `fit` shall set up everything and then train nothing |
| `distributed_sampler_kwargs` | `process_share` | which processes share the images is known to the strategy only |
| `_active_loop._combined_loader` | `running_loader` | `val_dataloaders` may be those of an earlier fit |
| `fit_loop._data_fetcher`, `_set_sampler_epoch` | `restart_loaders` | a resumed loader with workers has begun before its epoch is set |
| `.sampler` and `set_epoch` of any loader | `check_sampler_epoch` | Lightning sets the epoch by duck typing, with no error if it cannot |
| `loops` in a checkpoint, `val_check_batch`, `total_batch_idx` | `mark_batch_not_begun` | Lightning counts a batch before its first hook |
| `fit_loop.restarting` | `step_skipped_plateau_schedulers` | Lightning leaves these schedulers out in an epoch that it resumed |
| fields of `EarlyStopping` | `StoppingLimits`, `restart_early_stopping` | it knows nothing of stages |
| `CSVLogger._experiment` and its `metrics` | `has_csv_writer`, `waiting_rows` | it cannot continue a file |
| `log_every_n_steps` | `log_at_least_every` | an epoch may be shorter |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor, inf
from typing import Any, NoReturn, TypeVar

import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import _TunerExitException

from ftlit.errors import UserError

AnyCallback = TypeVar("AnyCallback", bound=Callback)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The callbacks of a trainer in the order in which their hooks run: as they were given, checkpoint callbacks last."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def find_callback(trainer: Trainer, of: type[AnyCallback]) -> AnyCallback | None:
    """The first callback of this class; `None` if there is none."""
    return next((callback for callback in callbacks_of(trainer) if isinstance(callback, of)), None)


def datamodule_of(trainer: Trainer) -> Any:
    """The data module that `fit`, `validate` or `test` was given; `None` for loaders."""
    return trainer.datamodule  # type: ignore[attr-defined]


def is_trial_run(trainer: Trainer) -> bool:
    """Whether `fast_dev_run` limits the trainer to a few batches."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def overfits_batches(trainer: Trainer | None) -> bool:
    """Whether `overfit_batches` limits the trainer to a few batches, in an order of Lightning's; False without a trainer."""
    return trainer is not None and bool(trainer.overfit_batches)  # type: ignore[attr-defined]


def rank_before_trainer() -> int:
    """The rank of this process as its environment gives it, before there is a Trainer; 0 for a process started by hand."""
    return getattr(rank_zero_only, "rank", 0)


def log_at_least_every(trainer: Trainer, steps: float) -> None:
    """Lower `log_every_n_steps` to this many steps, at least 1. 0, which turns logging off, stays."""
    interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if interval:
        trainer.log_every_n_steps = max(1, int(min(interval, steps)))  # type: ignore[attr-defined]


def steps_per_epoch(trainer: Trainer) -> int:
    """Optimizer steps in an epoch. Raises `UserError` where the training loader has no length and no limit."""
    if trainer.num_training_batches == inf:
        trainer.fit_loop.setup_data()  # with max_steps alone nothing has asked for the loader yet
    if (batches := trainer.num_training_batches) == inf:
        raise UserError("the training loader has no length: set trainer.limit_train_batches to a whole number of batches")
    return steps_of(trainer, batches)


def steps_of(trainer: Trainer, batches: float) -> int:
    """Optimizer steps of an epoch with this many batches; at least 1, to divide by, also where no batch is left."""
    return max(1, ceil(batches / trainer.accumulate_grad_batches))


def validations_per_epoch(trainer: Trainer) -> float:
    """Number of validations in an epoch of training, below 1 where some epochs have none; 1 where it is not known, or none runs."""
    every: float | None = trainer.val_check_batch
    batches = trainer.num_training_batches
    if not trainer.enable_validation or every in (None, inf) or batches == inf:
        return 1.0
    per_epoch = batches / every
    return per_epoch if trainer.check_val_every_n_epoch is None else floor(per_epoch) / trainer.check_val_every_n_epoch


def training_length(trainer: Trainer) -> tuple[int, int]:
    """(optimizer steps, epochs) of the whole training. Raises `UserError` where it has no end."""
    steps = trainer.estimated_stepping_batches
    if steps == inf:
        raise UserError("a learning-rate schedule needs the length of training: set trainer.max_epochs or trainer.max_steps")
    return int(steps), ceil(steps / steps_per_epoch(trainer))


def completed_batches(trainer: Trainer) -> int:
    """Training batches of the current epoch that are complete. All of them after the epoch's last, until the next epoch begins."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.completed


def epoch_position(trainer: Trainer) -> dict[str, int]:
    """The current epoch, and how many of its batches are complete: none where the epoch before has ended and it has not begun."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return {"epoch": trainer.current_epoch, "batch": completed_batches(trainer) if progress.started > progress.completed else 0}


def has_ended(trainer: Trainer) -> bool:
    """Whether training has reached its last epoch or step."""
    return bool(trainer.fit_loop.done)


def end_before_first_step(trainer: Trainer) -> None:
    """Let `fit` end before its first step. For `on_fit_start`: optimizers and schedulers are built for the steps there would be."""
    trainer.fit_loop.epoch_loop.max_steps = 0


def leave_fit() -> NoReturn:
    """Let `fit` return at once: with `teardown` and loggers that end well, but without the hooks at the end of training."""
    raise _TunerExitException


def process_share(trainer: Trainer | None) -> tuple[int, int]:
    """(number of processes that share the data, the one that this is); (1, 0) without a trainer or under a strategy of one process."""
    share = trainer.distributed_sampler_kwargs if trainer is not None else None
    return (share["num_replicas"], share["rank"]) if share else (1, 0)


def running_loader(trainer: Trainer | None) -> Any:
    """The loader, or loaders, that training or evaluation reads now; `None` outside of a loop."""
    loop = trainer._active_loop if trainer is not None else None
    loaders = loop._combined_loader if loop is not None else None
    return None if loaders is None else loaders.iterables


def restart_loaders(trainer: Trainer) -> None:
    """Begin the loaders of training again, in the current epoch. For `on_train_start`: no batch has been read."""
    loop = trainer.fit_loop
    assert loop._combined_loader is not None and loop._data_fetcher is not None
    for loader in loop._combined_loader.flattened:
        _set_sampler_epoch(loader, trainer.current_epoch)
    iter(loop._data_fetcher)


def check_sampler_epoch(trainer: Trainer, epoch: int) -> None:
    """Compare the epoch that Lightning has set on a training sampler with the epoch of training.

    Raises:
        RuntimeError: they differ: Lightning did not find the loader's `sampler`, and each epoch would read the batches of the first.
    """
    if epoch != trainer.current_epoch:
        raise RuntimeError(
            f"the training sampler is in epoch {epoch}, but the trainer is in epoch {trainer.current_epoch}: this version of Lightning "
            "does not call loader.sampler.set_epoch; install another version of Lightning"
        )


def mark_batch_not_begun(trainer: Trainer, loops: Mapping[str, Any]) -> None:
    """Edit the loops' state in a checkpoint made in `on_train_batch_start`, so that resumed training begins with this batch.

    Lightning counts a batch as ready before that hook. Where a validation lies just before the batch, Lightning passes over it on
    resuming and counts a step for the loggers as it does.

    Args:
        trainer: in the hook.
        loops: `checkpoint["loops"]`; changed in place.
    """
    epoch_loop = loops["fit_loop"]
    progress = epoch_loop["epoch_loop.batch_progress"]
    progress["is_last_batch"] = False
    for counts in (progress["total"], progress["current"]):
        counts["ready"] -= 1
    epoch_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= int(_follows_validation(trainer))


def _follows_validation(trainer: Trainer) -> bool:
    """Whether a validation ran between the batch before this one and this one."""
    every, after = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or after is None or (every is not None and (trainer.current_epoch + 1) % every):
        return False
    loop = trainer.fit_loop.epoch_loop
    return (loop.total_batch_idx if every is None else loop.batch_idx) % after == 0


def step_skipped_plateau_schedulers(trainer: Trainer) -> None:
    """Step the schedulers that need a metric, in `on_train_epoch_end` of an epoch that was resumed: Lightning leaves them out there."""
    if not trainer.fit_loop.restarting:
        return
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.interval == "epoch" and (trainer.current_epoch + 1) % config.frequency == 0:
            config.scheduler.step(float(trainer.callback_metrics[str(config.monitor)]))  # type: ignore[arg-type]


@dataclass(frozen=True)
class StoppingLimits:
    """The limits at which `EarlyStopping` ends training. A metric that is not finite, or diverges, ends it in any case.

    Args:
        patience: checks without progress.
        threshold: value of the metric that is good enough; `None` for no such value.
    """

    patience: float = inf
    threshold: float | None = None

    @classmethod
    def of(cls, callback: EarlyStopping) -> "StoppingLimits":
        """The limits of a callback as they are now."""
        return cls(callback.patience, callback.stopping_threshold)

    def apply(self, callback: EarlyStopping) -> None:
        """Give the callback these limits."""
        callback.patience, callback.stopping_threshold = self.patience, self.threshold  # type: ignore[assignment]


def restart_early_stopping(callback: EarlyStopping) -> None:
    """Forget the best score and the checks without progress: the next check is the best so far."""
    callback.wait_count = 0
    callback.best_score = torch.tensor(inf if callback.mode == "min" else -inf)


def has_csv_writer(logger: CSVLogger) -> bool:
    """Whether `logger.experiment` has been built: building it removes a `metrics.csv` that is there."""
    return logger._experiment is not None


def waiting_rows(writer: Any) -> list[Mapping[str, Any]]:
    """The rows that the writer, a `CSVLogger.experiment`, has not written yet: its own list, empty on the dummy of further processes."""
    waiting = writer.metrics
    return waiting if isinstance(waiting, list) else []
