"""Training from features: the frozen layers run once, and each stage reads what came out of them."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftlit.data.dataset import SPLITS, Batch, Split
from ftlit.errors import UserError, unknown
from ftlit.features.batches import read_batches
from ftlit.features.keys import DTYPE_OF, stored_dtype
from ftlit.features.spec import FeatureSpec
from ftlit.features.stage_input import StageInput, plan_stage_inputs, spec_of, the_backbone, trained_layers
from ftlit.features.store import Store
from ftlit.features.table import Rows
from ftlit.finetuning.schedule import Schedule
from ftlit.fingerprint import fingerprint
from ftlit.lit.datamodules.extraction import EVALUATION, VALIDATION, Extraction, View
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.staged_finetuning import StagedFinetuning
from ftlit.lit.trainer_internals import check_sampler_epoch, completed_batches, find_callback, steps_per_epoch
from ftlit.models.backbone import Backbone, FeatureBatch

SHARDED = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)  # no process holds the weights
TRUE = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}  # precision -> dtype of the weights


class FeatureData(LightningDataModule):
    """`ImageData` that serves stored features in place of images wherever a stage's frozen layers make that possible: batches
    (`FeatureBatch`, targets), which a `Backbone` takes as it takes images. The module has to hold one backbone and hand `batch[0]` to it.

    Before training one pass over the images stores the features of train and val at every cut that the schedule of the trainer's
    `StagedFinetuning` asks for; without that callback, at the top of what is frozen. What is stored already is not computed again.
    Each epoch takes the features, or the images, of its stage; order and targets are those of the images (invariant 8). Validation and test
    after training read features too, where the weights below the cut are still those of the features. All images of a split are stored, also
    where the trainer limits the batches of an epoch.

    Args:
        data: the images.
        folder: of the store, made where it is not there; `None`: what the environment variable `FTLIT_CACHE` says, else `~/.cache/ftlit`.
        pooled: store the features at the last cut as vectors, pooled as the network pools: for heads that take these.
        dtype: float32, float64, float16 or bfloat16, as stored; `None`: that of the weights.
        max_gb: what the features of a schedule may take, in 1e9 bytes.
        views: 1: train on the evaluation view; more: on so many augmented views of each image, in turn by epoch.
        seed: of what is drawn for the views.

    Raises:
        UserError: an argument out of its range, or a folder that cannot be used; when training begins, a module without a backbone or
            with several, or a disk without room.
    """

    def __init__(
        self,
        data: ImageData,
        folder: str | Path | None = None,
        *,
        pooled: bool = False,
        dtype: str | None = None,
        max_gb: float = 20.0,
        views: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(data, ImageData):
            raise UserError(f"FeatureData takes ImageData, and this is {type(data).__name__}: for a loader there is extract_features")
        if dtype is not None and dtype not in DTYPE_OF:
            raise unknown("cache.dtype", dtype, DTYPE_OF)
        if views < 1:
            raise UserError(f"cache.views={views}: give a whole number, 1 or more")
        if max_gb < 0:
            raise UserError(f"cache.max_gb={max_gb}: give a number from 0")
        self.augments = fingerprint(data.transforms["train"]) != fingerprint(data.transforms["val"])
        alike = f"data.augment=none draws nothing: {views} views of an image would be the same, one is stored"
        self.images, self.input_spec, self.store = data, data.input_spec, Store(folder)
        self.store.check()
        self.pooled, self.dtype, self.max_gb, self.views = pooled, dtype, max_gb, views if self.augments else 1
        self.class_names, self.num_classes, self.multilabel = data.class_names, data.num_classes, data.multilabel
        self.counts, self.notes = data.counts, [*data.notes, *[alike] * (views > 1 and not self.augments)]
        self.extraction = Extraction(data, self.store, dtype=dtype, seed=seed)
        self._stage_inputs: list[StageInput] = []

    def setup(self, stage: str) -> None:
        """Hand the trainer on."""
        self.images.trainer = self.trainer
        if stage == "fit":
            self._stage_inputs = []
            self.extraction.forget()

    def train_dataloader(self) -> "ByStage":
        """Batches of the stage in force when an epoch begins."""
        self._prepare()
        return ByStage(self, "train")

    def val_dataloader(self) -> "ByStage":
        """The same of the val split."""
        self._prepare()
        return ByStage(self, "val")

    def test_dataloader(self) -> "ByStage":
        """The same of the test split."""
        return ByStage(self, "test")

    @property
    def batch_size(self) -> int:
        """Images in a batch of one process."""
        return self.images.batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self.images.batch_size = size

    def teardown(self, stage: str) -> None:
        """Hand it on."""
        self.images.teardown(stage)

    def state_dict(self) -> dict[str, int]:
        """How far training is; Lightning keeps it in a checkpoint."""
        return self.images.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from there."""
        self.images.load_state_dict(state_dict)

    def plan(self, module: nn.Module, schedule: Schedule | None, trainer: Trainer) -> list[StageInput]:
        """What each stage trains from. Nothing is computed."""
        layers = trained_layers(module, schedule)
        if self.images.mix != "none":
            return [StageInput(None, 0, f"images: data.mix={self.images.mix} mixes them")] * len(layers)
        if isinstance(trainer.strategy, SHARDED):
            return [StageInput(None, 0, f"{self.images.input_spec.noun}: the strategy shards the weights")] * len(layers)
        backbone, sizes = the_backbone(module)[1], {split: len(self.images.collection.splits[split]) for split in SPLITS}
        specs = [spec_of(backbone, names, pooled=self.pooled) for names in layers]
        shown = self._views_by_spec(specs, schedule, trainer)
        sources = plan_stage_inputs(
            backbone,
            specs,
            {
                spec: len(views) * sizes["train"] + sizes["val"] + sizes["test"] * (spec.cut == backbone.cuts[-1])
                for spec, views in shown.items()
            },
            dtype=stored_dtype(self.dtype, TRUE.get(str(trainer.precision), torch.float32)),
            max_bytes=self.max_gb * 1e9,
            device=trainer.strategy.root_device.type,
            input_shape=self.images.input_spec.shape,
        )
        for i, stage in enumerate(schedule.stages[1:] if schedule else ()):
            if stage.step is not None and sources[i].spec and sources[i].spec != sources[i + 1].spec:
                sources[i] = replace(
                    sources[i], reason=f"{sources[i].reason}; the epoch in which stage {i + 1} begins reads what that needs"
                )
        return sources

    def _views_by_spec(
        self, specs: Sequence[FeatureSpec | None], schedule: Schedule | None, trainer: Trainer
    ) -> dict[FeatureSpec, set[int]]:
        """The views of training images in which each spec will be read, by the epochs that its stages may last."""
        end = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else sys.maxsize
        found: dict[FeatureSpec, set[int]] = {}
        for spec, span in zip(specs, schedule.spans(end) if schedule else [range(end)] * len(specs), strict=True):
            if spec:
                found.setdefault(spec, set()).update(map(self._view_in, span[: self.views]))
        return found

    def _view_in(self, epoch: int) -> int:
        """The number of the view of training images that is shown in an epoch."""
        return EVALUATION if self.views == 1 else 1 + epoch % self.views

    def serve(self, split: Split, epoch: int) -> tuple[FeatureSpec, Rows] | None:
        """The features that the loader of this split reads in an epoch; `None`: images."""
        spec = self._spec_in_fit(split) if self.running.state.fn == "fit" else self._spec_at_rest(split)
        if spec is None:
            return None
        view = (split, self._view_in(epoch) if split == "train" else EVALUATION)
        return spec, self.extraction.rows(self.running, self.backbone, {view: [spec]}, self._stage)[view][spec]

    @property
    def running(self) -> Trainer:
        """The trainer."""
        assert self.trainer is not None
        return self.trainer

    @property
    def backbone(self) -> Backbone:
        """That of the trainer's module."""
        return the_backbone(self.running.lightning_module)[1]

    @property
    def _staging(self) -> StagedFinetuning | None:
        return find_callback(self.running, StagedFinetuning)

    @property
    def _stage(self) -> int | None:
        """The stage in force; `None` where nobody says that what is frozen stays so."""
        return self._staging.index if self._staging and self.running.state.fn == "fit" else None

    def _prepare(self) -> None:
        """One pass over the images for all cuts that can be known now: no layer below trains before their stage."""
        now = self._stage or 0
        if self.running.state.fn != "fit" or self._stage_inputs:
            return
        module, schedule = self.running.lightning_module, self._staging.schedule if self._staging else None
        self._stage_inputs = self.plan(module, schedule, self.running)
        if self.pooled and any(getattr(part, "takes_map", False) for part in module.modules()):
            raise UserError("pooled=True stores vectors, and this module has a head that takes maps: give pooled=False")
        layers = trained_layers(module, schedule)
        specs = [stage_input.spec if i >= now else None for i, stage_input in enumerate(self._stage_inputs)]
        for i, spec in enumerate(specs):
            if spec and set(self.backbone.upto(spec.cut).cuts) & set().union(*layers[now:i]):  # they train before
                specs[i] = None
        wanted: dict[View, list[FeatureSpec]] = {}
        for spec, numbers in self._views_by_spec(specs, schedule, self.running).items():
            views: list[View] = [("train", number) for number in sorted(numbers)]
            for view in [*views, *[VALIDATION] * self.running.enable_validation]:
                wanted.setdefault(view, []).append(spec)
        if wanted:
            self.extraction.rows(self.running, self.backbone, wanted, self._stage)

    def _spec_in_fit(self, split: Split) -> FeatureSpec | None:
        """What the stage in force reads; of the training batches, what all stages of this epoch can go on from."""
        staging, trainer = self._staging, self.running
        if staging is None:  # somebody else may have unfrozen something since
            self._stage_inputs = self.plan(trainer.lightning_module, None, trainer)
            return self._stage_inputs[0].spec
        stages = {staging.index}
        if split == "train":
            done = completed_batches(trainer) // trainer.accumulate_grad_batches
            begin = trainer.global_step - done
            end = begin + steps_per_epoch(trainer)
            stages |= {*range(staging.schedule.stage_at(trainer.current_epoch, begin, staging.trigger.decided), staging.index)}
            later = list(enumerate(staging.schedule.stages))[staging.index + 1 :]
            stages |= {place for place, stage in later if stage.step is not None and stage.step < end}
        specs = [self._stage_inputs[place].spec for place in stages]
        found = sorted((spec for spec in specs if spec), key=lambda spec: self.backbone.index(spec.cut))
        return found[0] if len(found) == len(specs) else None

    def _spec_at_rest(self, split: Split) -> FeatureSpec | None:
        """The highest cut whose features, as the last fit knew them, are still those of the weights. Features of test images are read once:
        they are stored only where none but the head would run, for the jobs of a sweep.
        """
        backbones = [part for part in self.running.lightning_module.modules() if isinstance(part, Backbone)]
        if len(backbones) != 1:  # another module than that of the fit
            return None
        specs = sorted(
            {stage_input.spec for stage_input in self._stage_inputs if stage_input.spec and stage_input.spec.cut in self.backbone.cuts},
            key=lambda spec: -self.backbone.index(spec.cut),
        )
        spec = next((spec for spec in specs if self.extraction.is_known(self.running, self.backbone, spec)), None)
        return spec if spec and (split != "test" or spec.cut == self.backbone.cuts[-1]) else None


class ByStage:
    """The loader of a split: each time it is gone through it serves what the stage in force trains from, in the same order.

    Args:
        data: which knows.
        split: of it.
    """

    def __init__(self, data: FeatureData, split: Split) -> None:
        self._data, self._split = data, split
        self.sampler = data.images.order(split)  # under the names by which Lightning sets the epoch
        self.batch_sampler = None
        self._images: DataLoader[Batch] | None = None

    def __len__(self) -> int:
        """Batches in an epoch, the same in every stage."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor | FeatureBatch, Tensor]]:
        if self._split == "train":
            check_sampler_epoch(self._data.running, self.sampler.epoch)
        served = self._data.serve(self._split, self.sampler.epoch)  # runs when the first batch is asked for, after the stage has begun
        images, self._images = self._images, None  # worker processes end where they are no longer needed
        if served is None:
            self._images = images or self._data.images.loader(self._split, self.sampler)
            yield from self._images
        else:
            spec, rows = served
            targets = self._data.images.collection.targets(self._split)
            yield from read_batches(self.sampler, rows, targets, spec.cut, next(self._data.backbone.parameters(), torch.empty(0)).dtype)


def images_only(data: Any, *, pooled: bool = False) -> Any:
    """Every stage trains on images. An option of the group `cache`."""
    return data
