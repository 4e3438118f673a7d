"""The head solved before training begins: fine-tuning starts from the optimum of a linear probe (LP-FT, Kumar et al. 2022)."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from ftlit.errors import UserError
from ftlit.features.extract import Features
from ftlit.features.spec import FeatureSpec
from ftlit.features.stage_input import the_backbone
from ftlit.features.store import Store
from ftlit.lit.datamodules.extraction import EVALUATION, VALIDATION, Extraction, View, together
from ftlit.lit.datamodules.feature_data import SHARDED, FeatureData
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.trainer_internals import datamodule_of, end_before_first_step
from ftlit.probes.layer_probes import LayerProbes, best_of
from ftlit.probes.linear_probe import Probe, fit_probe

MOST_IMAGES = 20_000  # that a head is solved on where training follows; two of each class at least


class FitProbeHead(Callback):
    """Before the first step the weights of a linear head are solved on the features of the training images (of a share of each class, where
    training follows and they are many, or where `limit_train_batches` leaves less to an epoch), pooled at the last cut, in the evaluation
    view; kind and L2 penalty are chosen by cross-validation among these images alone. The first process solves, the others take its
    solution over. Where training follows, a run that goes on from a checkpoint takes its head from there.

    Where none follows, nothing is left that val has to choose, and few labels are worth more in the head: once val has judged it, `whole`
    is the head of train and val, of the same kind and L2 penalty. It is `None` where the training images were limited on purpose
    (`per_class`, `limit_train_batches`), or those of val.

    Args:
        head: name of the linear layer in the module.
        probing: what is tried.
        trains: whether training follows; where not, it ends before its first step.

    Attributes:
        probe: of the training images; the head, once `fit` begins.
        whole: of train and val; see `take_whole`.

    Raises:
        UserError: when training begins: no such linear layer, one without a bias; and see `check_solvable`.
    """

    def __init__(self, head: str = "head", probing: LayerProbes | None = None, *, trains: bool = True) -> None:
        self.head, self.probing, self.trains = head, probing or LayerProbes(), trains
        self.probe: Probe | None = None
        self.whole: Probe | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Solve, in place."""
        if not self.trains:
            end_before_first_step(trainer)
        if trainer.ckpt_path is not None and self.trains:
            return
        head = self._head(pl_module)
        takes_val = self.takes_val(trainer, datamodule_of(trainer))
        with _features(trainer, pl_module, trains=self.trains, takes_val=takes_val) as (features, valid), together(trainer):
            if trainer.is_global_zero:
                self.probe = best_of(self.probing.at({"average": features}))
                self.whole = None if valid is None else _with(self.probe, features, valid)
        self.probe, self.whole = trainer.strategy.broadcast((self.probe, self.whole))
        assert self.probe is not None
        _copy(self.probe, head)
        if trainer.is_global_zero:
            score = "" if self.probe.score is None else f", accuracy {self.probe.score:.4f} in cross-validation"
            noun = the_backbone(pl_module)[1].input_spec.noun
            print(f"head solved on {len(features):,} training {noun}: {self.probe.summary}{score}", flush=True)

    def takes_val(self, trainer: Trainer, data: Any) -> bool:
        """Whether there will be a `whole`, from this data. Raises `UserError`, see `check_solvable`."""
        images = check_solvable(trainer, data)
        limit = trainer.limit_val_batches
        all_of_val = isinstance(limit, float) and limit == 1  # the number 1 is one batch
        return not self.trains and all_of_val and images.per_class is None and _share(trainer, images, trains=False) == 1

    def take_whole(self, pl_module: LightningModule) -> None:
        """Make the probe of train and val the head, in place, where there is one: after this, val tells nothing of it."""
        if self.whole is not None:
            _copy(self.whole, self._head(pl_module))

    def _head(self, module: LightningModule) -> nn.Linear:
        head = dict(module.named_modules()).get(self.head)
        if not isinstance(head, nn.Linear):
            raise UserError(f"{self.head!r} is no linear layer of {type(module).__name__}: a probe solves only such a head")
        if head.bias is None:
            raise UserError(f"{self.head!r} has no bias, and a probe has one: give the layer a bias")
        return head


def _copy(probe: Probe, head: nn.Linear) -> None:
    with torch.no_grad():
        head.weight.copy_(probe.weight)
        head.bias.copy_(probe.bias)


def _with(probe: Probe, features: Features, valid: Features) -> Probe:
    """The same probe, solved on these features together."""
    cut = features.cuts[0]
    vectors = torch.cat([own[cut].read(range(len(own))) for own in (features, valid)])
    labels = torch.cat([own.targets for own in (features, valid) if own.targets is not None])
    return fit_probe(vectors, labels, cut=cut, kind=probe.kind, l2=probe.l2, pooling=probe.pooling)


def check_solvable(trainer: Trainer, data: Any) -> ImageData:
    """The images of `data`, on which a head can be solved. Raises `UserError` where none can: a strategy that shards it, data that is no
    `ImageData` or `FeatureData` with one label an image.
    """
    images = data.images if isinstance(data, FeatureData) else data
    if isinstance(trainer.strategy, SHARDED):
        raise UserError("a head is solved where each process holds all of it: give head=linear for this strategy")
    if type(images) is not ImageData or images.multilabel:
        given = "these have several labels" if isinstance(images, ImageData) else f"this is {type(data).__name__}, not ImageData"
        raise UserError(f"a solved head tells one class of an image from the others, and {given}: give head=linear")
    return images


@contextmanager
def _features(trainer: Trainer, module: LightningModule, *, trains: bool, takes_val: bool) -> Iterator[tuple[Features, Features | None]]:
    """The features, at the last cut, of the training images (see `_share`), and those of val; from the store, or from a folder of this run
    alone where there is none.
    """
    data = datamodule_of(trainer)
    images = check_solvable(trainer, data)
    share = _share(trainer, images, trains=trains)
    backbone = the_backbone(module)[1]
    spec = FeatureSpec(backbone.cuts[-1], "average")
    with tempfile.TemporaryDirectory(prefix="ftlit-") as own:
        extraction = data.extraction if isinstance(data, FeatureData) else None
        extraction = extraction or Extraction(images, Store(trainer.strategy.broadcast(own)), dtype=None, seed=0)
        if share < 1:
            images = images.with_share(share)
            extraction = Extraction(images, extraction.store, dtype=extraction.dtype, seed=extraction.seed)
        views: list[View] = [("train", EVALUATION), *([VALIDATION] if takes_val else [])]
        rows = extraction.rows(trainer, backbone, {view: [spec] for view in views}, None)
        features = [Features({spec.cut: rows[view][spec]}, images.collection.targets(view[0])) for view in views]
        yield features[0], features[1] if takes_val else None
        trainer.strategy.barrier("features: read")


def _share(trainer: Trainer, images: ImageData, *, trains: bool) -> float:
    """Of each class, of which a head is solved: less than 1 where training images are more than an epoch of this trainer has, or than
    `MOST_IMAGES` where training follows.
    """
    count, limit = len(images.collection.splits["train"]), trainer.limit_train_batches
    most = MOST_IMAGES if trains else count
    return min(1.0, most / count, limit * images.batch_size / count if isinstance(limit, int) else limit)
