"""What each stage of a fit reads of loaders of any kind, and the features that it has read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftlit.data.dataset import Split
from ftlit.errors import UserError, one_line, shorten, unknown
from ftlit.features.batch_parts import BatchParts, check_items, joined
from ftlit.features.extract import Extracted, extract, source_of
from ftlit.features.keys import stored_dtype
from ftlit.features.spec import FeatureSpec
from ftlit.features.stage_input import (
    Specs,
    StageInput,
    layers_of_stages,
    may_change,
    names_of_stages,
    plan_stage_inputs,
    specs_before_training,
    specs_of,
)
from ftlit.features.store import Store
from ftlit.features.submodules import Submodules
from ftlit.features.table import Rows
from ftlit.finetuning.schedule import Schedule
from ftlit.formatting import count, size_in_words
from ftlit.identity.fingerprint import prefixes
from ftlit.lit.features.extraction_progress import progress_of_features
from ftlit.lit.features.loader_items import collate_features, in_order, items_of
from ftlit.lit.features.stage_loader import stages_read
from ftlit.lit.stages.staged_finetuning import StagedFinetuning
from ftlit.lit.trainer_internals import find_callback
from ftlit.models.backbone import Backbone
from ftlit.models.feature_batch import FeatureBatch, accept_features, images_only
from ftlit.models.heads import head_cuts
from ftlit.patterns import outermost_first
from ftlit.seeding import kept_random_state
from ftlit.zoo.timm_split.timm_trace import preserved_state


@dataclass(frozen=True)
class LoaderOptions:
    """The arguments of `FeatureData`, and the name of the data for messages."""

    data_name: str
    store: Store
    cut: str | None
    pooled: bool
    dtype: str | None
    max_gb: float


class LoaderPlan:
    """What each stage of a fit reads, and the features that have been read.

    Args:
        options: where and how features are stored.
        trainer: of the fit.
        loader: whose first batch shows the form of the images.
        train: makes the training loader, which is checked before features of another one are computed.
    """

    def __init__(self, options: LoaderOptions, trainer: Trainer, loader: DataLoader[Any], train: Callable[[], DataLoader[Any]]) -> None:
        if trainer.world_size > 1:
            raise UserError(
                f"FeatureData of {options.data_name} works in one process only, but this trainer has {trainer.world_size}: give "
                "Trainer(devices=1), or train without FeatureData; only FeatureData of ImageData works in several processes"
            )
        self.options, self.trainer, self._train = options, trainer, train
        self.module = trainer.lightning_module
        self.path, part = _part(self.module, options.cut)
        self.staging = find_callback(trainer, StagedFinetuning)
        schedule = self.staging.schedule if self.staging else None
        images = BatchParts.of(next(iter(in_order(loader, workers=0)))).images
        self._shape = tuple(images.shape[1:])
        self.source = part if isinstance(part, Backbone) else source_of(self.module, [self.path], images)
        assert isinstance(self.source, Backbone | Submodules)
        self.way = self.source.way_to(self.path) if isinstance(self.source, Submodules) else [part]
        self.layers = self._layers(schedule)
        self.inputs = self._inputs(len(loader.dataset))  # type: ignore[arg-type]
        self._check()
        accept_features(self.way)
        self._try(images[:2].to(self.trainer.strategy.root_device, self._dtype if images.is_floating_point() else None))
        self._rows: dict[tuple[str, FeatureSpec], tuple[str, Rows]] = {}
        self._others: dict[str, tuple[Any, Mapping[Any, Tensor | list[Any]]]] = {}
        self._form: Any = None

    def _layers(self, schedule: Schedule | None) -> list[set[str]]:
        """The layers of a backbone, or else the submodule, that train in each stage."""
        if isinstance(self.source, Backbone):
            return layers_of_stages(self.module, schedule, self.path, self.source.cuts)
        below = {id(parameter) for parameter in self.source.parameters_below(self.path)}
        names = {name for name, parameter in self.module.named_parameters(remove_duplicate=False) if id(parameter) in below}
        return [{self.path} if names & trained else set() for trained in names_of_stages(self.module, schedule)]

    def _try(self, images: Tensor) -> None:
        """Run the network on two images and on their features. Raises `UserError` where the results differ: images take other ways too."""
        if not isinstance(self.source, Submodules) or self.way == [self.source.entry]:
            return
        entry = self.source.entry
        with preserved_state(entry):
            features = self.source.outputs(images, [self.path])
            live = entry(images)
            try:
                served = entry(FeatureBatch(features))
            except AttributeError as error:
                raise UserError(one_line(error)) from error
        if isinstance(live, Tensor) and not torch.allclose(live, served, rtol=1e-3, atol=1e-4):
            raise UserError(
                f"{type(entry).__name__} needs more than the output of {self.path!r}, so this output cannot be stored: name another module"
            )

    def _inputs(self, images: int) -> list[StageInput]:
        if isinstance(self.source, Submodules):
            if self.options.pooled:
                raise UserError(f"pooled=True works only with a Backbone, and {self.path!r} is not one: leave pooled out")
            spec = FeatureSpec(self.path, None)
            return [StageInput((), 0, f"because {self.path} trains") if names else StageInput((spec,), 0, "") for names in self.layers]
        specs = [specs_of(self.source, names, pooled=self.options.pooled, head_cuts=head_cuts(self.module)) for names in self.layers]
        dtype = stored_dtype(self.options.dtype, self._dtype)
        limits: dict[str, Any] = {"dtype": dtype, "max_bytes": self.options.max_gb * 1e9, "device": self.trainer.strategy.root_device.type}
        return plan_stage_inputs(self.source, specs, dict.fromkeys(specs, images), input_shape=self._shape, **limits)

    def _check(self) -> None:
        """Say which stages read images. Raises `UserError` where all do."""
        reading = [
            f"stage {number} reads images, {own.reason.rpartition(', ')[2]}" for number, own in enumerate(self.inputs) if not own.specs
        ]
        if len(reading) == len(self.inputs):
            raise UserError(
                f"features of {self.path!r} cannot be stored, because {self.path!r} is trained in all epochs: freeze the module with "
                f"module.{self.path}.requires_grad_(False) or StagedFinetuning, or train without FeatureData"
                if isinstance(self.source, Submodules)
                else f"no stage can read stored features ({reading[0]}): train without FeatureData"
            )
        for line in reading:
            self.module.print(line)
        if self.staging is None and any(map(may_change, self.way)):
            self.module.print(
                f"note      {self.path} is frozen but in training mode; its features are computed in evaluation mode (dropout off, "
                f"fixed statistics of batch norms); for the same without FeatureData, call module.{self.path}.eval()"
            )

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.source.parameters(), torch.empty(0)).dtype

    def serve(self, split: Split, name: str, loader: DataLoader[Any]) -> Any:
        """Return the function that makes batches of the features that this epoch reads; `None`: it reads images."""
        if self.staging is None:  # other code may have frozen or unfrozen layers since
            self.layers = self._layers(None)
            self.inputs = self._inputs(len(loader.dataset))  # type: ignore[arg-type]
        stages = {0} if self.staging is None else stages_read(self.trainer, self.staging, split)
        specs = min((self.inputs[stage].specs for stage in stages), key=self._height)
        if not specs:
            return None
        now = self.staging.index if self.staging else 0
        soon = [spec for own in self._before_training(now) for spec in own]
        digests = self._digests()
        if name not in self._others or self._others[name][0] is not items_of(loader):
            if split != "train" and not self._others:
                with kept_random_state():
                    self._check_items(self._train(), "train")
            self._check_items(loader, name)
            self._rows = {key: found for key, found in self._rows.items() if key[0] != name}
        wanted = list(dict.fromkeys([*specs, *soon]))
        if missing := [spec for spec in wanted if self._rows.get((name, spec), ("",))[0] != digests[spec.cut]]:
            extracted = self._extract(name, loader, missing)
            self._rows |= {(name, spec): (digests[spec.cut], rows) for spec, rows in extracted.rows.items()}
            self._others[name] = items_of(loader), joined(extracted.parts)
            self._form = extracted.parts[0].key
        rows = {spec.cut: self._rows[name, spec][1] for spec in specs}
        return partial(collate_features, self._form, rows, self._others[name][1], self._dtype)

    def _check_items(self, loader: DataLoader[Any], name: str) -> None:
        check_items(items_of(loader), loader.collate_fn, f"the {name} loader of {self.options.data_name}")

    def _before_training(self, now: int) -> list[Specs]:
        if isinstance(self.source, Backbone):
            return specs_before_training(self.source, self.inputs, self.layers, now)
        return []

    def _height(self, specs: Specs) -> int:
        if not specs:
            return -1
        return self.source.index(specs[-1].cut) if isinstance(self.source, Backbone) else 0

    def _digests(self) -> Mapping[str, str]:
        with images_only(self.way):
            return self.source.digests() if isinstance(self.source, Submodules) else prefixes(dict(self.source.items()))

    @kept_random_state()
    def _extract(self, name: str, loader: DataLoader[Any], specs: Sequence[FeatureSpec]) -> Extracted:
        images, cuts = len(loader.dataset), ", ".join(spec.cut for spec in specs)  # type: ignore[arg-type]
        itemsize = stored_dtype(self.options.dtype, self._dtype).itemsize
        shapes = [self.source.on_meta(self._shape)[spec.cut][0] for spec in specs if spec.pooling is None]
        size = images * itemsize * sum(torch.Size(shape).numel() for shape in shapes)
        if size > self.options.max_gb * 1e9:
            raise UserError(
                f"features at {cuts} need {size_in_words(size)}, more than max_gb={self.options.max_gb:g}: raise max_gb, or give a "
                "cut nearer to the output"
            )
        with ExitStack() as stack:
            stack.enter_context(images_only(self.way))
            shown = self.trainer.is_global_zero
            progress = progress_of_features(images, "images", cuts, shown=shown, processes=1, all_missing=False)
            advance = stack.enter_context(progress)

            def batches() -> Iterator[Any]:
                for batch in in_order(loader, workers=loader.num_workers):
                    yield batch
                    advance(len(BatchParts.of(batch).images))

            context = self.trainer.precision_plugin.forward_context
            found = extract(self.source, specs, batches(), self.options.store, dtype=self.options.dtype, context=context)
        computed = [f"{found.computed:,} computed"] if found.computed else []
        known = images - found.computed
        stored = [f"{known:,} read from the cache" if computed else "all read from the cache"] if known else []
        self.module.print(f"features of {images:,} images of {name} at {cuts}: {', '.join(computed + stored)}")
        return found


def _part(module: LightningModule, cut: str | None) -> tuple[str, nn.Module]:
    """Path and module whose output is stored: the one that is named, or the only `Backbone`."""
    modules = dict(module.named_modules())
    if cut is not None:
        if cut not in modules or not cut:
            raise unknown("module", cut, outermost_first(modules), owner=type(module).__name__)
        return cut, modules[cut]
    found = [name for name, part in modules.items() if isinstance(part, Backbone)]
    if len(found) != 1:
        children = shorten(name for name, child in module.named_children() if any(True for _ in child.parameters()))
        raise UserError(
            f"{type(module).__name__} has {count(len(found), 'Backbone')}, so FeatureData does not know which output to store: give "
            f"FeatureData(cut=NAME), where NAME is a module that takes the images, one of {children}"
        )
    return found[0], modules[found[0]]
