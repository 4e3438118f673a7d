"""Data source of rendered glyphs, on which the shipped backbone is pretrained: an option of the config group `data`."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from ftlit.data.input_spec import InputSpec
from ftlit.data.sources.glyph_images import SYMBOLS, GlyphStream
from ftlit.lit.datamodules.image_data import DATA_SOURCES


@DATA_SOURCES.register("glyphs")
class GlyphData(LightningDataModule):
    """Letters and signs that are rendered during training, new ones in every epoch; val and test are streams with other seeds.

    Several processes share the batches; each renders its own images.

    Args:
        input_spec: what the network expects.
        batches: batches in a training epoch, of all processes together.
        batch_size: images in a batch.
        seed: of the training stream; val and test use the next two.
    """

    multilabel = False

    def __init__(self, input_spec: InputSpec, *, batches: int = 125, batch_size: int = 256, seed: int = 0) -> None:
        super().__init__()
        input_spec.check_pictures("data=glyphs")
        self.class_names = list(SYMBOLS)
        self.num_classes = len(SYMBOLS)
        self.notes = ["images of letters and symbols are rendered during training; none of them shows a digit"]
        sizes = {"train": batches * batch_size, "val": 4 * batch_size, "test": 16 * batch_size}
        self.counts = {split: dict.fromkeys(SYMBOLS, size // len(SYMBOLS)) for split, size in sizes.items()}
        self._spec = input_spec
        self._train = GlyphStream(batches=batches, batch_size=batch_size, size=input_spec.size, seed=seed)
        self._val = GlyphStream(batches=4, batch_size=batch_size, size=input_spec.size, seed=seed + 1, renew=False)
        self._test = GlyphStream(batches=16, batch_size=batch_size, size=input_spec.size, seed=seed + 2, renew=False)

    def train_dataloader(self) -> Any:
        """Return the stream of this epoch."""
        self._train.epoch = self.trainer.current_epoch if self.trainer else 0
        return self._loader(self._train)

    def val_dataloader(self) -> Any:
        """Return a stream of the same images each time."""
        return self._loader(self._val)

    def test_dataloader(self) -> Any:
        """Return a stream of the same images each time."""
        return self._loader(self._test)

    def _loader(self, stream: GlyphStream) -> DataLoader[tuple[Tensor, Tensor]]:
        if self.trainer:
            stream.share(self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(stream, batch_size=None, collate_fn=self._normalise)

    def _normalise(self, batch: Any) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self._spec.mean, self._spec.std))
        return (batch[0][:, : self._spec.channels] - mean) / std, batch[1]  # three equal channels
