"""What each stage of a fit reads of image data: planned before training, without a pass over the images."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from torch import nn

from ftlit.data.dataset import SPLITS
from ftlit.features.keys import stored_dtype
from ftlit.features.pixel_plan import PixelChoice, StorablePixels, with_pixels
from ftlit.features.stage_input import (
    Specs,
    StageInput,
    plan_stage_inputs,
    specs_before_training,
    specs_of,
    the_backbone,
    trained_layers,
    views_by_specs,
    with_shared_epochs,
)
from ftlit.finetuning.schedule import Schedule
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.features.cache_options import readings
from ftlit.lit.features.extraction_pass import EVALUATION
from ftlit.lit.module import FineTuner
from ftlit.lit.strategies import keeps_whole_weights, shards_later
from ftlit.models.heads import head_cuts

TRAINED_BEFORE = "because layers below have trained by then, and the strategy shards their weights"
WEIGHT_DTYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}  # by precision; else float32


@dataclass(frozen=True)
class FeaturePlanner:
    """Plans what each stage of a schedule reads of image data: features at a cut, stored pixels, or images.

    Args:
        images: the data.
        pooled: see `FeatureData`, as for the others.
        dtype: of the stored features.
        max_gb: limit on their size.
        pixels: whether stages that train on images read stored pixels.
        storable: see `storable_pixels`.
    """

    images: ImageData
    pooled: bool
    dtype: str | None
    max_gb: float
    pixels: PixelChoice
    storable: StorablePixels | None

    def stage_inputs(self, module: nn.Module, schedule: Schedule | None, trainer: Trainer) -> list[StageInput]:
        """Return what each stage reads. Computes no features.

        Raises:
            UserError: pixels that are wanted do not fit.
        """
        inputs = self._stored_features(module, schedule, trainer)
        spans, images = self._spans(schedule, trainer, len(inputs)), len(self.images.collection.splits["train"])
        read = readings(trainer, spans, images, self.images.batch_size)
        return with_pixels(inputs, read, self.storable, self.pixels, self.max_gb * 1e9)

    def _stored_features(self, module: nn.Module, schedule: Schedule | None, trainer: Trainer) -> list[StageInput]:
        layers = trained_layers(module, schedule)
        if self.images.mix != "none":
            return [StageInput((), 0, f"images, because data.mix={self.images.mix} mixes them")] * len(layers)
        sharded = not keeps_whole_weights(type(trainer.strategy))
        if sharded and not (shards_later(type(trainer.strategy)) and isinstance(module, FineTuner)):
            return [self._unstored("because the strategy shards the weights")] * len(layers)
        backbone, sizes = the_backbone(module)[1], {split: len(self.images.collection.splits[split]) for split in SPLITS}
        specs = [specs_of(backbone, names, pooled=self.pooled, head_cuts=head_cuts(module)) for names in layers]
        rows = {own: len(views) * sizes["train"] + sizes["val"] for own, views in self.views_of(specs, schedule, trainer).items()}
        with_test = {own: count + sizes["test"] if own[-1].cut == backbone.cuts[-1] else count for own, count in rows.items()}
        inputs = plan_stage_inputs(
            backbone,
            specs,
            with_test,
            dtype=stored_dtype(self.dtype, WEIGHT_DTYPES.get(str(trainer.precision), torch.float32)),
            max_bytes=self.max_gb * 1e9,
            device=trainer.strategy.root_device.type,
            input_shape=self.images.input_spec.shape,
        )
        if sharded:
            possible = specs_before_training(backbone, inputs, layers, 0)
            inputs = [own if own.specs == specs else self._unstored(TRAINED_BEFORE) for own, specs in zip(inputs, possible, strict=True)]
        return with_shared_epochs(inputs, schedule) if schedule else inputs

    def _unstored(self, reason: str) -> StageInput:
        return StageInput((), 0, f"{self.images.input_spec.noun}, {reason}")

    def views_of(self, specs: Sequence[Specs], schedule: Schedule | None, trainer: Trainer) -> dict[Specs, set[int]]:
        """Return the views of training images that will be read with the same specs, from the epochs that their stages may last."""
        spans, most = self._spans(schedule, trainer, len(specs)), max(1, self.views)
        return views_by_specs(specs, [set(map(self.view_in, span[:most])) for span in spans])

    @property
    def views(self) -> int:
        """Augmented views of each training image that stages read, in turn by epoch; 0: the plain view."""
        return self.images.number_of_views()

    @staticmethod
    def _spans(schedule: Schedule | None, trainer: Trainer, stages: int) -> list[range]:
        """Return the epochs of each stage, at most."""
        end = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else sys.maxsize
        return schedule.spans(end) if schedule else [range(end)] * stages

    def view_in(self, epoch: int) -> int:
        """Return the number of the view of training images in an epoch."""
        return 1 + epoch % views if (views := self.views) else EVALUATION
