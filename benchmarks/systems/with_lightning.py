"""Lightning's BackboneFinetuning, and finetuning-scheduler, on a LightningModule as their documentation has it."""

import logging
import tempfile
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, Callback
from torch import Tensor, nn

from systems.by_hand import accuracy_of
from systems.task import Task, backbone_of, folders, loader

EPOCHS = 15  # BackboneFinetuning unfreezes at its tenth by default
RATE = 1e-3


class Network(pl.LightningModule):
    """A backbone and a head, Adam over what trains."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([parameter for parameter in self.parameters() if parameter.requires_grad], lr=RATE)


def backbone_finetuning(task: Task) -> float:
    """The callback at its defaults: the backbone unfreezes at epoch 10, at a tenth of the rate, which then rises; halfway through fewer.
    The last epoch is tested, as Trainer keeps it.
    """
    epochs = task.epochs or EPOCHS
    callback = BackboneFinetuning() if epochs > 10 else BackboneFinetuning(unfreeze_backbone_at_epoch=epochs // 2)
    return _trained(task, epochs, callback)


def finetuning_scheduler(task: Task) -> float:
    """The callback at its defaults: a schedule of its own making, two tensors a phase, each until the loss on val stalls, the best epoch by
    that loss is tested; but 15 epochs where it would go on through all phases (26 of squeezenet1_1), which takes hours.
    """
    from finetuning_scheduler import FinetuningScheduler

    return _trained(task, task.epochs or EPOCHS, FinetuningScheduler(logging_level=logging.ERROR))


def _trained(task: Task, epochs: int, *callbacks: Callback) -> float:
    for name in ("lightning.pytorch", "lightning.fabric", "finetuning_scheduler"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    data = folders(task)
    backbone, width = backbone_of(task)
    model = Network(backbone, nn.Linear(width, len(data["train"].classes)))
    train, val = loader(data["train"], 32, shuffle=True), loader(data["val"], 64)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=list(callbacks),
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, train, val)
        best = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
        if best:
            model.load_state_dict(torch.load(best, weights_only=False)["state_dict"])
    return accuracy_of(model, loader(data["test"], 64))
