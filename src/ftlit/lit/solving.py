"""The head solved before training begins: fine-tuning starts from the optimum of a linear probe (LP-FT, Kumar et al. 2022)."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from ftlit.codes import Codes
from ftlit.errors import UserError
from ftlit.lit.caching import SHARDED, CodesData
from ftlit.lit.extracting import EVALUATION, Extraction, View, together
from ftlit.lit.images import ImageData
from ftlit.probe import Probe
from ftlit.probing import Probing, best_of
from ftlit.sources import Form, the_backbone
from ftlit.store import Store

MOST_IMAGES = 20_000  # that a head is solved on where training follows; two of each class at least


class SolvedHead(Callback):
    """Before the first step the weights of a linear head are solved on the codes of the training images (of a share of each class, where
    training follows and they are many, or where `limit_train_batches` leaves less to an epoch), pooled at the last cut, in the evaluation
    view; kind and strength are chosen by cross-validation among these images alone. The first process solves, the others take its
    solution over. A run that goes on from a checkpoint takes its head from there.

    Args:
        head: name of the linear layer in the module.
        probing: what is tried.
        trains: whether training follows; where not, it ends before its first step.

    Raises:
        UserError: when training begins: no such linear layer, one without a bias; and see `check_solvable`.
    """

    def __init__(self, head: str = "head", probing: Probing | None = None, *, trains: bool = True) -> None:
        self.head, self.probing, self.trains = head, probing or Probing(), trains
        self.probe: Probe | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Solve, in place."""
        if not self.trains:
            trainer.fit_loop.epoch_loop.max_steps = 0  # now that all is set up for the steps there would be: fit ends before the first
        if trainer.ckpt_path is not None:
            return
        head = dict(pl_module.named_modules()).get(self.head)
        if not isinstance(head, nn.Linear):
            raise UserError(f"{self.head!r} is no linear layer of {type(pl_module).__name__}: a probe solves only such a head")
        if head.bias is None:
            raise UserError(f"{self.head!r} has no bias, and a probe has one: give the layer a bias")
        with _codes(trainer, pl_module, most=MOST_IMAGES if self.trains else None) as codes, together(trainer):
            if trainer.is_global_zero:
                self.probe = best_of(self.probing.at({"average": codes}))
        self.probe = trainer.strategy.broadcast(self.probe)
        assert self.probe is not None
        with torch.no_grad():
            head.weight.copy_(self.probe.weight)
            head.bias.copy_(self.probe.bias)
        if trainer.is_global_zero:
            score = "" if self.probe.score is None else f", accuracy {self.probe.score:.4f} in cross-validation"
            noun = the_backbone(pl_module)[1].input_spec.noun
            print(f"head solved on {len(codes):,} training {noun}: {self.probe.told}{score}", flush=True)


def check_solvable(trainer: Trainer, data: Any) -> ImageData:
    """The images of `data`, on which a head can be solved. Raises `UserError` where none can: a strategy that shards it, data that is no
    `ImageData` or `CodesData` with one label an image.
    """
    images = data.images if isinstance(data, CodesData) else data
    if isinstance(trainer.strategy, SHARDED):
        raise UserError("a head is solved where each process holds all of it: give head=linear for this strategy")
    if type(images) is not ImageData or images.multilabel:
        given = "these have several labels" if isinstance(images, ImageData) else f"this is {type(data).__name__}, not ImageData"
        raise UserError(f"a solved head tells one class of an image from the others, and {given}: give head=linear")
    return images


@contextmanager
def _codes(trainer: Trainer, module: LightningModule, most: int | None) -> Iterator[Codes]:
    """The codes of the training images, of a share of each class where they are more than `most` or than an epoch of this trainer has, at
    the last cut; from the store, or from a folder of this run alone where there is none.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    images = check_solvable(trainer, data)
    count, limit = len(images.collection.splits["train"]), trainer.limit_train_batches
    share = min(1.0, (most or count) / count, limit * images.batch_size / count if isinstance(limit, int) else limit)
    backbone = the_backbone(module)[1]
    form = Form(backbone.cuts[-1], "average")
    view: View = ("train", EVALUATION)
    with tempfile.TemporaryDirectory(prefix="ftlit-") as own:
        extraction = data.extraction if isinstance(data, CodesData) else None
        extraction = extraction or Extraction(images, Store(trainer.strategy.broadcast(own)), dtype=None, seed=0)
        if share < 1:
            images = images.with_share(share)
            extraction = Extraction(images, extraction.store, dtype=extraction.dtype, seed=extraction.seed)
        rows = extraction.rows(trainer, backbone, {view: [form]}, None)
        yield Codes({form.cut: rows[view][form]}, images.collection.targets("train"))
        trainer.strategy.barrier("codes: read")
