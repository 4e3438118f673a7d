"""Images are normalised on the device of the network: until there a batch holds integers of 8 bits, a quarter of the bytes."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from ftlit.data.pixels import Normalization
from ftlit.lit.module_internals import overrides
from ftlit.lit.trainer_internals import datamodule_of


class NormalizesOnDevice(LightningDataModule):
    """A data module that normalises its images after their transfer, so that every `training_step` gets normalised floats.

    Its loaders give images of 8 bits only while a trainer runs that was given the data module, and that calls this hook with each batch.
    """

    @property
    def normalization(self) -> Normalization | None:
        """Of the images in all splits; `None`: they are normalised, or texts."""
        return None

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise the images of a batch, convert them to the trainer's precision; then call the hook of the trainer's module."""
        assert self.trainer is not None
        is_of_pixels = isinstance(batch, list | tuple) and isinstance(batch[0], Tensor) and batch[0].dtype == torch.uint8
        if is_of_pixels and (normalization := self.normalization):
            batch = self.trainer.precision_plugin.convert_input(normalization(batch[0])), *batch[1:]
        return self.trainer.lightning_module.on_after_batch_transfer(batch, dataloader_idx)


def normalizes_batches(trainer: Trainer | None) -> bool:
    """Whether a running trainer normalises the images of its batches on the device, and no hook of its module sees them before."""
    if trainer is None or trainer.state.status != "running":
        return False
    data = datamodule_of(trainer)
    normalizes = isinstance(data, NormalizesOnDevice) and not overrides(data, NormalizesOnDevice, "on_after_batch_transfer")
    return normalizes and not overrides(trainer.lightning_module, LightningModule, "on_before_batch_transfer", "transfer_batch_to_device")
