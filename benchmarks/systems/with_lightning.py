"""Lightning's BackboneFinetuning and finetuning-scheduler, on a LightningModule as in their documentation."""

import logging
import tempfile
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, Callback
from torch import Tensor, nn

from systems.task import Task, backbone_of, folders, loader
from systems.with_pytorch import accuracy_of

EPOCHS = 15  # BackboneFinetuning unfreezes at epoch 10 by default
LEARNING_RATE = 1e-3


class Network(pl.LightningModule):
    """A backbone and a head, with Adam over the trainable parameters."""

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
        return torch.optim.Adam([parameter for parameter in self.parameters() if parameter.requires_grad], lr=LEARNING_RATE)


def backbone_finetuning(task: Task) -> float:
    """Test accuracy with the default callback: the backbone unfreezes at epoch 10 (with fewer epochs, halfway) at a tenth of the learning
    rate, which then rises. The last epoch is tested, which is the one that Trainer keeps.
    """
    epochs = task.epochs or EPOCHS
    callback = BackboneFinetuning() if epochs > 10 else BackboneFinetuning(unfreeze_backbone_at_epoch=epochs // 2)
    return _trained(task, epochs, callback)


def finetuning_scheduler(task: Task) -> float:
    """Test accuracy with the default callback: a generated schedule, two tensors per phase, each until the validation loss stops improving;
    the best epoch by that loss is tested. It is stopped after 15 epochs, because all phases (26 for squeezenet1_1) would take hours.
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
