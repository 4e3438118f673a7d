"""The compared libraries, each with the settings of its documentation. All get the same network, data, learning rates and epochs."""

from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.optim import SGD

LEARNING_RATE, RATIO = 0.1, 0.1  # learning rate of the head; learning rate of the backbone / that of the head
EPOCHS = 4


class Ours:
    """ftlit."""

    distribution = "ftlit"
    early_stopping = staticmethod(EarlyStopping)
    checkpoint = staticmethod(ModelCheckpoint)

    def optimizer(self, module: LightningModule) -> SGD:
        from ftlit import build_optimizer

        return build_optimizer(module, partial(SGD, lr=LEARNING_RATE, momentum=0.9), [("head", 1.0), ("*", RATIO)])

    def callbacks(self, module: LightningModule, *, epoch: int = 1, metric: bool = False) -> list[Callback]:
        from ftlit import Schedule, Stage, StagedFinetuning, Until

        until = Until("val_loss", mode="min", patience=1) if metric else None
        return [StagedFinetuning(Schedule([Stage(["head"]), Stage(["*"], epoch, until=until)]))]


class Lightning:
    """Lightning's own callback."""

    distribution = "lightning"
    early_stopping = staticmethod(EarlyStopping)
    checkpoint = staticmethod(ModelCheckpoint)

    def optimizer(self, module: LightningModule) -> SGD:
        return trainable_only(module)

    def callbacks(self, module: LightningModule, *, epoch: int = 1, metric: bool = False) -> list[Callback]:
        from lightning.pytorch.callbacks import BackboneFinetuning

        return [BackboneFinetuning(epoch, lambda_func=lambda _: 1.0, initial_denom_lr=1 / RATIO, train_bn=False)]


class Scheduler:
    """finetuning-scheduler. Phases are lists of parameter names and end at an epoch, or by a metric if `metric`."""

    distribution = "finetuning-scheduler"
    early_stopping = None  # its own class replaces Lightning's

    def optimizer(self, module: LightningModule) -> SGD:
        return trainable_only(module)

    def callbacks(self, module: LightningModule, *, epoch: int = 1, metric: bool = False) -> list[Callback]:
        from finetuning_scheduler import FinetuningScheduler, FTSEarlyStopping

        names = [name for name, _ in module.named_parameters()]
        head = [name for name in names if name.startswith("head")]
        last = {"params": [name for name in names if name not in head], "lr": LEARNING_RATE * RATIO}
        if not metric:
            last["max_transition_epoch"] = EPOCHS  # required; the run ends at the max_epochs of Trainer
        scheduler = FinetuningScheduler(
            ft_schedule={0: {"params": head, "max_transition_epoch": epoch}, 1: last},
            restore_best=False,
            epoch_transitions_only=not metric,
            apply_lambdas_new_pgs=True,
            frozen_bn_track_running_stats=False,
        )
        return [scheduler, *([FTSEarlyStopping("val_loss", patience=1)] if metric else [])]

    def checkpoint(self, *args: Any, **kwargs: Any) -> Callback:
        from finetuning_scheduler import FTSCheckpoint

        return FTSCheckpoint(*args, **kwargs)


PEERS = {"Lightning": Lightning, "finetuning-scheduler": Scheduler, "ftlit": Ours}


def trainable_only(module: LightningModule) -> SGD:
    return SGD([p for p in module.parameters() if p.requires_grad], lr=LEARNING_RATE, momentum=0.9)
