"""Training from codes: the frozen layers run once, and each stage reads what came out of them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftlit.backbone import Backbone, CodesAt
from ftlit.caching import Form, Source, plan_codes
from ftlit.codes import Views, kinds_of, read_batches, stored_dtype
from ftlit.dataset import SPLITS, Batch, Split
from ftlit.digests import Memory, digests_of
from ftlit.errors import UserError
from ftlit.fingerprint import fingerprint
from ftlit.lit.clock import steps_per_epoch
from ftlit.lit.extracting import Wanted, extract
from ftlit.lit.images import ImageData
from ftlit.lit.staging import StagedFinetuning
from ftlit.patterns import covers
from ftlit.schedule import Schedule
from ftlit.store import Digests, Kind, Rows, Store
from ftlit.trainable import trained
from ftlit.transform import Transform

TRUE = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}  # precision -> dtype of the weights
Job = tuple[Split, int]  # a split and the number of its view


class CodesData(LightningDataModule):
    """`ImageData` that serves stored codes in place of images wherever a stage's frozen layers make that possible: batches
    (`CodesAt`, targets), which a `Backbone` takes as it takes images. The module has to hold one backbone and hand `batch[0]` to it.

    Before training one pass over the images stores the codes of train and val at every cut that the schedule of the trainer's
    `StagedFinetuning` asks for; without that callback, at the top of what is frozen. What is stored already is not computed again.
    Each epoch takes the codes, or the images, of its stage; order and targets are those of the images (law 8). Validation and test
    after training read codes too, where the weights below the cut are still those of the codes.

    Args:
        data: the images.
        folder: of the store.
        pooled: store the codes at the last cut as vectors, pooled as the network pools: for heads that take these.
        dtype: float32, float64, float16 or bfloat16, as stored; `None`: that of the weights.
        max_gb: what the codes of a schedule may take, in 1e9 bytes.
        views: 1: train on the evaluation view; more: on so many augmented views of each image, in turn by epoch.
        seed: of what is drawn for the views.

    Raises:
        UserError: an argument out of its range; when training begins, a module without a backbone or with several, or a disk
            without room.
    """

    def __init__(
        self,
        data: ImageData,
        folder: str | Path,
        *,
        pooled: bool = False,
        dtype: str | None = None,
        max_gb: float = 20.0,
        views: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        stored_dtype(dtype, torch.float32)
        if views < 1:
            raise UserError(f"cache.views={views}: give a whole number, 1 or more")
        if max_gb < 0:
            raise UserError(f"cache.max_gb={max_gb}: give a number from 0")
        self.images = data
        self.store = Store(folder)
        self.pooled, self.dtype, self.max_gb, self.seed = pooled, dtype, max_gb, seed
        same = fingerprint(data.transforms["train"]) == fingerprint(data.transforms["val"])
        self.views = 1 if same else views
        self.class_names, self.num_classes, self.multilabel = data.class_names, data.num_classes, data.multilabel
        self.counts, self.notes, self.batch_size = data.counts, data.notes, data.batch_size
        self._targets = {split: data.collection.targets(split) for split in data.collection.splits}
        self._digests: dict[Split, Digests] = {}
        self._begin()

    def setup(self, stage: str) -> None:
        """Hand the trainer on."""
        self.images.trainer = self.trainer
        if stage == "fit":
            self._begin()

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

    def state_dict(self) -> dict[str, int]:
        """How far training is; Lightning keeps it in a checkpoint."""
        return self.images.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from there."""
        self.images.load_state_dict(state_dict)

    def plan(self, module: nn.Module, schedule: Schedule | None, trainer: Trainer) -> list[Source]:
        """What each stage trains from. Nothing is computed."""
        layers = _trained_layers(module, schedule)
        if self.images.mix != "none":
            return [Source(None, 0, f"images: data.mix={self.images.mix} mixes them")] * len(layers)
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            return [Source(None, 0, "images: the strategy shards the weights")] * len(layers)
        sizes = {split: len(self.images.collection.splits[split]) for split in SPLITS}
        return plan_codes(
            _backbone(module)[1],
            layers,
            sum(sizes.values()) + (self.views - 1) * sizes["train"],
            pooled=self.pooled,
            dtype=stored_dtype(self.dtype, TRUE.get(str(trainer.precision), torch.float32)),
            max_bytes=self.max_gb * 1e9,
            device=trainer.strategy.root_device.type,
        )

    def serve(self, split: Split) -> tuple[Form, list[Rows]] | None:
        """The codes that the loader of this split reads now, those of each view; `None`: images."""
        form = self._form_in_fit(split) if self._fits else self._form_at_rest()
        if form is None:
            return None
        jobs = self._jobs(split)
        rows = self._extract(jobs, [form])
        return form, [rows[job, form] for job in jobs]

    def _begin(self) -> None:
        """Forget what held for the fit before."""
        self._sources: list[Source] = []
        self._kinds: dict[tuple[int, int, Form], Kind] = {}  # (stage, view, form)
        self._rows: dict[tuple[Split, str], Rows] = {}  # (split, key)
        self._known: dict[Form, str] = {}  # keys of the evaluation view

    @property
    def _running(self) -> Trainer:
        assert self.trainer is not None
        return self.trainer

    @property
    def _fits(self) -> bool:
        return self._running.state.fn == "fit"

    @property
    def _staging(self) -> StagedFinetuning | None:
        callbacks: list[Any] = self._running.callbacks  # type: ignore[attr-defined]
        return next((callback for callback in callbacks if isinstance(callback, StagedFinetuning)), None)

    def _prepare(self) -> None:
        """One pass over the images for all cuts that can be known now: no layer below them trains before their stage."""
        if not self._fits or self._sources:
            return
        staging, module = self._staging, self._running.lightning_module
        schedule, now = (staging.schedule, staging.index) if staging else (None, 0)
        self._sources = self.plan(module, schedule, self._running)
        backbone, layers = _backbone(module)[1], _trained_layers(module, schedule)
        forms = []
        for stage in range(now, len(layers)):
            form = self._sources[stage].form
            if form and not set(backbone.upto(form.cut).cuts) & set().union(*layers[now:stage]):
                forms.append(form)
        self._extract([*self._jobs("train"), *self._jobs("val")], list(dict.fromkeys(forms)))

    def _form_in_fit(self, split: Split) -> Form | None:
        """What the stage in force reads; of the training batches, what all stages that begin within this epoch can go on from."""
        staging, trainer = self._staging, self._running
        if staging is None:
            return self._sources[0].form
        stages = {staging.index}
        if split == "train":
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed // trainer.accumulate_grad_batches
            end = trainer.global_step - done + steps_per_epoch(trainer)
            later = list(enumerate(staging.schedule.stages))[staging.index + 1 :]
            stages |= {place for place, stage in later if stage.step is not None and stage.step < end}
        forms = [self._sources[place].form for place in stages]
        cuts = _backbone(trainer.lightning_module)[1].cuts
        return None if None in forms else min((form for form in forms if form), key=lambda form: cuts.index(form.cut))

    def _form_at_rest(self) -> Form | None:
        """The highest cut whose codes, as the last fit knew them, are still those of the weights."""
        backbone = _backbone(self._running.lightning_module)[1]
        for form in sorted(self._known, key=lambda form: -backbone.index(form.cut)):
            if self._kind_now("val", 0, [form])[form].key == self._known[form]:
                return form
        return None

    def _jobs(self, split: Split) -> list[Job]:
        return [(split, view) for view in range(self.views if split == "train" else 1)]

    def _view(self, split: Split, view: int) -> tuple[Transform, tuple[int, int]]:
        """Transform, and what it draws from."""
        augmented = split == "train" and self.views > 1
        return self.images.transforms["train" if augmented else "val"], (self.seed, view + 1) if augmented else (0, 0)

    def _kind_now(self, split: Split, view: int, forms: Sequence[Form]) -> dict[Form, Kind]:
        """What the store keeps for a view, with the weights as they are."""
        transform, drawn = self._view(split, view)
        backbone = _backbone(self._running.lightning_module)[1]
        size = backbone.input_spec.size
        parameter = next(backbone.parameters())
        with self._running.precision_plugin.forward_context():
            return kinds_of(
                backbone,
                forms,
                view=fingerprint(transform, self.images.collection.splits[split].load, drawn),
                size=(size, size),
                dtype=stored_dtype(self.dtype, parameter.dtype),
                about={"view": f"augmented {drawn[1]}" if any(drawn) else "evaluation", "input": str(backbone.input_spec)},
            )

    def _extract(self, jobs: Sequence[Job], forms: Sequence[Form]) -> dict[tuple[Job, Form], Rows]:
        """The codes of all jobs in all forms: from memory, from the store, or computed now."""
        stage = self._staging.index if self._staging and self._fits else 0
        kinds: dict[tuple[Job, Form], Kind] = {}
        for job in jobs:
            place = (stage, self._view(*job)[1][1])
            if not self._fits or any((*place, form) not in self._kinds for form in forms):
                self._kinds |= {(*place, form): kind for form, kind in self._kind_now(*job, forms).items()}
            kinds |= {(job, form): self._kinds[*place, form] for form in forms}
            if place[1] == 0:
                self._known |= {form: kinds[job, form].key for form in forms if self._fits}
        asked = [job for job in jobs if any((job[0], kinds[job, form].key) not in self._rows for form in forms)]
        if asked:
            self._rows |= self._read(asked, {pair: kind for pair, kind in kinds.items() if pair[0] in asked})
        return {(job, form): self._rows[job[0], kind.key] for (job, form), kind in kinds.items()}

    def _read(self, jobs: Sequence[Job], kinds: Mapping[tuple[Job, Form], Kind]) -> dict[tuple[Split, str], Rows]:
        """The rows of these jobs; what the store lacks is computed first."""
        trainer = self._running
        for first in (True, False):  # the first process reads the files, the others what it remembers of them
            if trainer.is_global_zero is first:
                for split in {job[0] for job in jobs} - self._digests.keys():
                    self._digests[split] = digests_of(self.images.collection.splits[split], Memory(self.store.folder))
            trainer.strategy.barrier("codes: digests")
        wanted = []
        for job in jobs:
            images = Views(self.images.collection.splits[job[0]], self._digests[job[0]], *self._view(*job))
            wanted.append(Wanted(images, {form: self.store.column(kind) for (own, form), kind in kinds.items() if own == job}))
        extract(
            self.store,
            _backbone(trainer.lightning_module)[1],
            wanted,
            trainer,
            batch_size=self.batch_size,
            num_workers=self.images.num_workers,
        )
        return {
            (job[0], kinds[job, form].key): Rows(column, one.digests)
            for job, one in zip(jobs, wanted, strict=True)
            for form, column in one.columns.items()
        }


class ByStage:
    """The loader of a split: each time it is gone through it serves what the stage in force trains from, in the same order.

    Args:
        data: which knows.
        split: of it.
    """

    def __init__(self, data: CodesData, split: Split) -> None:
        self._data, self._split = data, split
        self.sampler = data.images.order(split)  # under the names by which Lightning sets the epoch
        self.batch_sampler = None
        self._images: DataLoader[Batch] | None = None

    def __len__(self) -> int:
        """Batches in an epoch, the same in every stage."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor | CodesAt, Tensor]]:
        served = self._data.serve(self._split)  # runs when the first batch is asked for, after the stage has begun
        images, self._images = self._images, None  # worker processes end where they are no longer needed
        if served is None:
            self._images = images or self._data.images.loader(self._split, self.sampler)
            yield from self._images
        else:
            form, rows = served
            parameter = next(_backbone(self._data._running.lightning_module)[1].parameters())
            targets = self._data.images.collection.targets(self._split)
            yield from read_batches(self.sampler, rows, targets, form.cut, parameter.dtype)


def cached(data: Any, **options: Any) -> Any:
    """`CodesData` where `data` is `ImageData`; any other data module serves its images. An option of the group `cache`."""
    return CodesData(data, **options) if isinstance(data, ImageData) else data


def images_only(data: Any, *, pooled: bool = False) -> Any:
    """Every stage trains on images. An option of the group `cache`."""
    return data


def _backbone(module: nn.Module) -> tuple[str, Backbone]:
    """Prefix of its parameters' names, and the backbone."""
    found = [(f"{name}." if name else "", part) for name, part in module.named_modules() if isinstance(part, Backbone)]
    if len(found) != 1:
        raise UserError(f"{type(module).__name__} holds {len(found)} backbones: codes are stored for one, give images instead")
    return found[0]


def _trained_layers(module: nn.Module, schedule: Schedule | None) -> list[set[str]]:
    """For each stage the layers of the backbone that train; without a schedule those that do now."""
    prefix, backbone = _backbone(module)
    now = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    stages = [now] if schedule is None else [trained(module, stage.train, stage.batchnorm or "live") for stage in schedule.stages]
    return [{layer for layer in backbone.cuts if any(covers(prefix + layer, name) for name in names)} for names in stages]
