"""Training from stored features: the frozen layers run once, and each stage reads the features at their top."""

from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn

from ftlit.data.dataset import Split
from ftlit.errors import UserError, unknown
from ftlit.features.pixel_plan import PixelChoice
from ftlit.features.spec import FeatureSpec
from ftlit.features.stage_input import (
    Specs,
    StageInput,
    specs_before_training,
    the_backbone,
    trained_layers,
)
from ftlit.features.store import Store
from ftlit.features.stored_pixels import StoredImages
from ftlit.finetuning.schedule import Schedule
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.datamodules.image_wrapper import WrapsImageData
from ftlit.lit.features.cache_options import check_options, storable_pixels
from ftlit.lit.features.extraction import VALIDATION, Extraction
from ftlit.lit.features.extraction_pass import EVALUATION, View
from ftlit.lit.features.feature_planner import FeaturePlanner
from ftlit.lit.features.loader_features import LoaderFeatures
from ftlit.lit.features.stage_loader import ServedFeatures, StageLoader, stages_read
from ftlit.lit.sharding.sharded import is_sharded
from ftlit.lit.stages.staged_finetuning import StagedFinetuning
from ftlit.lit.trainer_internals import check_sampler_epoch, find_callback
from ftlit.models.backbone import Backbone


class FeatureData(WrapsImageData):
    """A data module that serves stored features instead of images wherever the frozen layers of a stage allow it.

    Batches are (`FeatureBatch`, targets); the module holds one `Backbone` and passes `batch[0]` to it. Of any other LightningDataModule the
    batches keep their form, and the images go to a `Backbone`, or only through modules to the one that `cut` names, which then returns the
    features. Its data sets are without augmentation, which is checked by reading some items twice; validation and test after training read
    images; one process only.

    Before training, one pass over train and val stores what is not stored yet, at every cut that the schedule of `StagedFinetuning` needs
    (else at the top of the frozen layers). Each epoch, and validation and test afterwards, read those of their stage.

    Args:
        data: an `ImageData`, or any LightningDataModule with torch's DataLoaders. A subclass of `ImageData` may override `order`, but no
            method that changes batches (`BATCH_METHODS`).
        folder: of the store, made if it does not exist; `None`: the environment variable `FTLIT_CACHE`, or else `~/.cache/ftlit`.
        pooled: store the features at the last cut as vectors, pooled as the network pools: for heads that take vectors.
        dtype: of the stored features: float32, float64, float16 or bfloat16; `None`: the dtype of the weights.
        max_gb: limit on the size of a schedule's features, in 1e9 bytes.
        seed: of the augmented views.
        trust: use features that other users have stored in the folder; otherwise they are computed again.
        pixels: whether stages that train on images read stored pixels; see `ftlit.features.pixel_plan.with_pixels`. Of `ImageData` only, as
            `seed`.
        cut: name of the submodule whose output is stored, in a module without a `Backbone`, for data other than `ImageData`.

    Attributes:
        planner: holds `pooled`, `dtype` and `max_gb`.

    Raises:
        UserError: an argument out of range, an unusable folder; when training begins, other than one backbone, too little space, or data or
            a cut that cannot be stored.
    """

    def __new__(cls, data: Any = None, *args: Any, **options: Any) -> Any:
        """Data modules of another kind are served by `LoaderFeatures`."""
        kind = cls if data is None or isinstance(data, ImageData) else LoaderFeatures
        _, *accepted = signature(kind.__init__).parameters.values()
        names = [parameter.name for parameter in accepted]
        defaults = {parameter.name: parameter.default for parameter in signature(cls.__init__).parameters.values()}
        wrong = next((name for name, value in options.items() if name not in names and value != defaults.get(name, Parameter.empty)), None)
        if wrong and all(parameter.kind is not Parameter.VAR_KEYWORD for parameter in accepted):  # of a subclass
            raise unknown("argument", wrong, names, owner="FeatureData for this data")
        if kind is cls:
            return super().__new__(cls)
        return LoaderFeatures(data, *args, **{name: value for name, value in options.items() if name in names})  # a config has the defaults

    def __init__(
        self,
        data: LightningDataModule,
        folder: str | Path | None = None,
        *,
        pooled: bool = False,
        dtype: str | None = None,
        max_gb: float = 20.0,
        seed: int = 0,
        trust: bool = False,
        pixels: PixelChoice = "auto",
        cut: str | None = None,
    ) -> None:
        super().__init__()
        assert isinstance(data, ImageData)  # see `__new__`
        check_options(data, dtype, max_gb)
        if cut is not None:
            raise UserError(
                f"cut={cut!r} does not work with ImageData: leave cut out, and make the encoder a Backbone (ftlit.backbone_from)"
            )
        self.images, self.input_spec, self.store = data, data.input_spec, Store(folder, trust=trust)
        self.store.check()
        self.class_names, self.num_classes, self.multilabel = data.class_names, data.num_classes, data.multilabel
        self.counts, self.notes = data.counts, list(data.notes)
        self.planner = FeaturePlanner(data, pooled, dtype, max_gb, pixels, storable_pixels(data, pixels))
        self.extraction = Extraction(data, self.store, dtype=dtype, seed=seed)
        self._stage_inputs: list[StageInput] = []

    __new__.__wrapped__ = __init__  # type: ignore[attr-defined]  # its signature, which configs are checked against

    def setup(self, stage: str) -> None:
        """Set up the image data module, and forget the last fit."""
        super().setup(stage)
        if stage == "fit":
            self._stage_inputs = []
            self.extraction.forget()

    def train_dataloader(self) -> StageLoader:
        """Return training batches, in each epoch those of the current stage."""
        self._prepare()
        return StageLoader(self.images, "train", self.serve)

    def val_dataloader(self) -> StageLoader:
        """Return batches of the val split."""
        self._prepare()
        return StageLoader(self.images, "val", self.serve)

    def test_dataloader(self) -> StageLoader:
        """Return batches of the test split."""
        return StageLoader(self.images, "test", self.serve)

    def plan(self, module: nn.Module, schedule: Schedule | None, trainer: Trainer) -> list[StageInput]:
        """Return what each stage reads. Computes no features.

        Raises:
            UserError: pixels that are wanted do not fit.
        """
        return self.planner.stage_inputs(module, schedule, trainer)

    def before_sharding(self, trainer: Trainer, module: nn.Module) -> None:
        """Store the features of all stages while each process has all weights; later stages read only these."""
        self._prepare()

    @property
    def views(self) -> int:
        """Augmented views of each training image that stages read, in turn by epoch; 0: the plain view."""
        return self.planner.views

    @property
    def augments(self) -> bool:
        """Whether training images are augmented."""
        return self.images.augments

    def serve(self, split: Split, epoch: int) -> ServedFeatures | StoredImages | None:
        """Return the features, or stored pixels, that the loader of this split reads in an epoch; `None`: it reads images."""
        if split == "train":
            check_sampler_epoch(self.running, epoch)
        specs = self._specs_in_fit(split) if self.running.state.fn == "fit" else self._specs_after_fit(split)
        if not specs:
            return self._stored_images(split)
        view = View(split, self.planner.view_in(epoch) if split == "train" else EVALUATION)
        rows = self.extraction.rows(self.running, self.backbone, {view: specs}, self._stage)[view]
        return ServedFeatures({spec.cut: rows[spec] for spec in specs}, next(self.backbone.parameters(), torch.empty(0)).dtype)

    def _stored_images(self, split: Split) -> StoredImages | None:
        """Return the pixels of a split where a stage reads them. Test images are read once, and not stored."""
        if split == "test" or not any(stage_input.pixels for stage_input in self._stage_inputs):
            return None
        if self.running.state.fn != "fit":
            return self.extraction.pixels.get(split)
        return self.extraction.stored_images(self.running, self.backbone, [split])[split]

    @property
    def running(self) -> Trainer:
        """The attached trainer."""
        assert self.trainer is not None
        return self.trainer

    @property
    def backbone(self) -> Backbone:
        """The backbone of the trainer's module."""
        return the_backbone(self.running.lightning_module)[1]

    @property
    def _staging(self) -> StagedFinetuning | None:
        return find_callback(self.running, StagedFinetuning)

    @property
    def _stage(self) -> int | None:
        """The current stage; `None` without a schedule: frozen layers then stay frozen."""
        return self._staging.index if self._staging and self.running.state.fn == "fit" else None

    def _prepare(self) -> None:
        """Compute, in one pass over the images, the features of all stages below which nothing trains before they begin."""
        if is_sharded(self.running.lightning_module):
            self.extraction.seal()
        if self.running.state.fn != "fit" or self._stage_inputs:
            return
        module, schedule = self.running.lightning_module, self._staging.schedule if self._staging else None
        self._stage_inputs = self.plan(module, schedule, self.running)
        if self.planner.pooled and any(getattr(part, "takes_map", False) for part in module.modules()):
            raise UserError("pooled=True stores vectors, but the head of this module needs feature maps: use pooled=False")
        specs = specs_before_training(self.backbone, self._stage_inputs, trained_layers(module, schedule), self._stage or 0)
        requested: dict[View, list[FeatureSpec]] = {}
        for own, numbers in self.planner.views_of(specs, schedule, self.running).items():
            views = [View("train", number) for number in sorted(numbers)]
            for view in [*views, VALIDATION] if self.running.enable_validation else views:
                requested[view] = list(dict.fromkeys([*requested.get(view, []), *own]))
        self.extraction.rows(self.running, self.backbone, requested, self._stage)
        if any(stage_input.pixels for stage_input in self._stage_inputs[self._stage or 0 :]):
            splits: list[Split] = ["train", "val"] if self.running.enable_validation else ["train"]
            self.extraction.stored_images(self.running, self.backbone, splits)

    def _specs_in_fit(self, split: Split) -> Specs:
        """Return the specs that the current stage reads; for train, the lowest of all stages that this epoch may reach."""
        staging, trainer = self._staging, self.running
        if staging is None:  # other code may have unfrozen layers since the plan
            self._stage_inputs = self.plan(trainer.lightning_module, None, trainer)
            return self._stage_inputs[0].specs
        return min((self._stage_inputs[place].specs for place in stages_read(trainer, staging, split)), key=self._height)

    def _height(self, specs: Specs) -> int:
        """Return the place of the highest cut; -1 for images."""
        return self.backbone.index(specs[-1].cut) if specs else -1

    def _specs_after_fit(self, split: Split) -> Specs:
        """Return the highest specs whose features from the last fit still belong to the weights; none: images.

        Features of test images are read once. They are stored only at the last cut, where only the head would run, for the jobs of a sweep.
        """
        backbones = [part for part in self.running.lightning_module.modules() if isinstance(part, Backbone)]
        if len(backbones) != 1:  # not the module of the fit
            return ()
        read = {own.specs for own in self._stage_inputs if own.specs and own.specs[-1].cut in self.backbone.cuts}
        for specs in sorted(read, key=self._height, reverse=True):
            if all(self.extraction.is_known(self.running, self.backbone, spec) for spec in specs):
                return specs if split != "test" or specs[-1].cut == self.backbone.cuts[-1] else ()
        return ()
