"""A network of one weight and its training, for the contract tests of Lightning."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
BATCHES = 4  # in an epoch


class Stop(pl.Callback):
    """Ends training with an `InterruptedError` before a step; `None`: never."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise InterruptedError


class Net(pl.LightningModule):
    """A module of one weight; its gradient is the mean of a batch. Records the hooks that run."""

    def __init__(self, plateau=False):
        super().__init__()
        self.weight, self.plateau = nn.Parameter(torch.zeros(1)), plateau
        self.hooks, self.steps = [], []  # names; batches by their first value

    def training_step(self, batch, batch_idx):
        self.steps.append(float(batch.flatten()[0]))
        self.log("loss", 1.0, on_step=False, on_epoch=True)
        return (self.weight * batch).mean()

    def validation_step(self, batch, batch_idx):
        self.hooks.append("validation_step")

    def configure_optimizers(self):
        self.hooks.append("configure_optimizers")
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        if not self.plateau:
            return optimizer
        scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss", "interval": "epoch"}}


class At(pl.Callback):
    """Call a function with the trainer in one hook."""

    def __init__(self, hook, call):
        setattr(self, hook, lambda trainer, *_, **__: call(trainer))


def numbers(count=BATCHES):
    return DataLoader(torch.arange(float(count)))


def trainer(*callbacks, **settings):
    return pl.Trainer(**{"accelerator": "cpu", "max_epochs": 2, "callbacks": list(callbacks), **QUIET, **settings})


def fit(*callbacks, model=None, loader=None, ckpt_path=None, val=None, **settings):
    running, model = trainer(*callbacks, **settings), model or Net()
    running.fit(model, numbers() if loader is None else loader, val, ckpt_path=ckpt_path)
    return running, model
