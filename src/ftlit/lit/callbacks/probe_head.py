"""Fit a linear probe as the head before training begins: fine-tuning starts from its optimum (LP-FT, Kumar et al. 2022)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from ftlit.data.dataset import Split
from ftlit.errors import UserError
from ftlit.features.stage_input import the_backbone
from ftlit.finetuning.hints import IN_PYTHON, Hints
from ftlit.finetuning.losses import ClassWeights
from ftlit.inference.novelty import KEY as SUBSPACE
from ftlit.inference.novelty import FeatureSubspace, feature_subspace, some_places
from ftlit.inference.prediction_sets import KEY as CALIBRATION
from ftlit.inference.prediction_sets import calibration_of
from ftlit.lit.datamodules.indexed_images import IndexedImages, number_of_views
from ftlit.lit.features.extraction_pass import together
from ftlit.lit.features.feature_data import FeatureData
from ftlit.lit.features.head_features import features_for_head
from ftlit.lit.features.loader_features import LoaderFeatures
from ftlit.lit.rank_store import first_ahead
from ftlit.lit.sharding.fsdp2 import assign
from ftlit.lit.sharding.sharded import is_sharded
from ftlit.lit.strategies import keeps_whole_weights, shards_later
from ftlit.lit.trainer_internals import datamodule_of, end_before_first_step
from ftlit.models.heads import Combine, LinearHead, head_cuts
from ftlit.plain_arguments import plain_arguments
from ftlit.probes.fitted_head.head_probe import HeadProbe, fit_head
from ftlit.probes.fitted_head.view_effect import ViewEffect, effect_of_views
from ftlit.probes.layer_probes import LayerProbes
from ftlit.probes.nearest import TrainVectors

MAX_IMAGES = 20_000  # on which a head is fitted if training follows; at least two of each class
TOO_MANY = "; its logits are too many to be kept, so there is no temperature, no prediction set and no suspects.csv"


class FitProbeHead(Callback):
    """Fits a linear probe before the first step and copies it into the head.

    The probe is fitted on the features of the training images, pooled at the cuts that the head reads (see `LinearHead`), in the evaluation
    view and in augmented ones (see `views` of `ImageData`). At most `probing.rows` of them are used, where training follows at most
    `MAX_IMAGES`, and no more than `limit_train_batches` leaves to an epoch. Kind and L2 penalty are chosen by cross-validation among these
    images only. The first process fits, the others receive its result. A run with training that resumes from a checkpoint takes the head
    from there.

    Without training, val has nothing left to choose, and few labels are worth more in the head. So a second probe of the same kind and L2
    penalty, `refitted`, is fitted on train + val, to be used after validation. It is `None` if the images of train (`per_class`,
    `limit_train_batches`, `probing.rows`) or val are limited. `fit` ends before its first step, so it validates nothing: call
    `trainer.validate`, then `use_refitted`, then `trainer.test`, or save the module. Both have the temperature from the held-out logits of
    the cross-validation, see `fit_temperature`, so that their probabilities are calibrated; where training follows, the head starts at
    temperature 1.

    Args:
        head: name of the linear layer in the module.
        probing: the kinds and L2 penalties to try.
        trains: whether training follows; otherwise training ends before its first step.
        class_weights: see `fit_probe`; `balanced` is counted on the images that the head is fitted on.

    Attributes:
        given: a probe that was fitted before, which is then the head; `None`: fit one.
        then: called with the head after the probe was copied into it, where training follows; it may change the head in place.
        resumes: whether `fit` loads a checkpoint, from which the head comes; read under `Fsdp2Strategy` only, because Lightning says so too
            late there: after the weights are sharded.
        compares_views: whether the first augmented view is compared with the plain one, see `effect_of_views`: for a head from which layers
            will train elsewhere.
        view_effect: the result of this comparison, in the first process; `None`: not compared.
        probe: fitted on the training images; it is the head once `fit` begins.
        refitted: fitted on train + val; see `use_refitted`.
        train_vectors: features of the training images at the highest cut, in the first process; `None` where training follows, or where
            they are too many.

    Raises:
        UserError: when training begins: no such linear layer, or one without a bias; see also `check_probe_head`.
    """

    fits_head = True  # the plan of `StagedFinetuning` asks for it

    @plain_arguments
    def __init__(
        self,
        head: str = "head",
        probing: LayerProbes | None = None,
        *,
        trains: bool = True,
        class_weights: ClassWeights | None = None,
    ) -> None:
        self.head, self.probing, self.trains, self.class_weights = head, probing or LayerProbes(), trains, class_weights
        self.given: HeadProbe | None = None
        self.then: Callable[[nn.Linear], None] | None = None
        self.probe: HeadProbe | None = None
        self.refitted: HeadProbe | None = None
        self.train_vectors: TrainVectors | None = None
        self.subspace: FeatureSubspace | None = None
        self.resumes = self.compares_views = False
        self.view_effect: ViewEffect | None = None

    def before_sharding(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the probe and copy it into the head, in place, while each process has all weights."""
        if not (self.resumes and self.trains):
            self._begin(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the probe and copy it into the head, in place."""
        if not self.trains:
            end_before_first_step(trainer)
        if (trainer.ckpt_path is None or not self.trains) and not is_sharded(pl_module):
            self._begin(trainer, pl_module)

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        head = self._head(pl_module)
        if self.given is not None:
            self.probe = replace(self.given, temperature=1.0)
            return self._begin_with(self.probe, head)
        images, fitted_on, views = self.reads(trainer, datamodule_of(trainer))
        cuts = head_cuts(head) or the_backbone(pl_module)[1].cuts[-1:]
        combine: Combine = head.combine if isinstance(head, LinearHead) else "concat"
        with features_for_head(trainer, images, cuts, fitted_on, views) as splits, together(trainer), first_ahead(trainer):
            features, *augmented = splits[0]
            if trainer.is_global_zero:
                self.probe = fit_head(self.probing, features, augmented, cuts, combine, self.class_weights)
                both = [own[0] for own in splits], [own[1:] for own in splits]
                self.refitted = self.probe.refitted(*both) if "val" in fitted_on else None
                if augmented and self.compares_views:
                    self.view_effect = effect_of_views(self.probing, self.probe, features, augmented[0], cuts[-1])
                self.train_vectors = None if self.trains else TrainVectors.of(features, cuts[-1])
                if not self.trains:
                    places = some_places(*(len(own[0]) for own in splits))
                    known = [own[0][cuts[-1]].read(some) for own, some in zip(splits, places, strict=True)]
                    self.subspace = feature_subspace(torch.cat(known))
        self.probe, self.refitted = trainer.strategy.broadcast((self.probe, self.refitted))
        assert self.probe is not None
        self._begin_with(replace(self.probe, temperature=1.0) if self.trains else self.probe, head)
        if trainer.is_global_zero:
            noun, held_out = the_backbone(pl_module)[1].input_spec.noun, self.probe.held_out
            how = "in cross-validation" if 2 * held_out > len(features) else f"on {held_out:,} of these that were held out"
            score = "" if self.probe.score is None else f"; accuracy {self.probe.score:.4f} {how}"
            if not self.trains and self.probe.score is not None:
                kept = self.probe.held_out_logits is not None
                score += f", temperature {self.probe.temperature:.2f}" if kept else TOO_MANY
            print(f"fitted {self.probe.summary}, {len(features):,} training {noun}{score}", flush=True)

    def _begin_with(self, probe: HeadProbe, head: nn.Linear) -> None:
        _copy(probe, head)
        if self.trains and self.then is not None:
            self.then(head)

    def refits(self, trainer: Trainer, data: Any) -> bool:
        """Return whether the head will be refitted on train + val of this data. Raises `UserError`, see `check_probe_head`."""
        images = check_probe_head(trainer, data)
        limit = trainer.limit_val_batches
        all_of_val = isinstance(limit, float) and limit == 1  # the integer 1 is one batch
        return not self.trains and all_of_val and images.per_class is None and self._train_share(trainer, images) == 1

    def _train_share(self, trainer: Trainer, images: IndexedImages) -> float:
        """Return the share of each class on which the head is fitted, 0 to 1.

        It is below 1 if an epoch of this trainer has fewer images, if there are more than `probing.rows`, or if training follows and there
        are more than `MAX_IMAGES`.
        """
        count, limit = len(images.collection.splits["train"]), trainer.limit_train_batches
        most = min(self.probing.share_of(count), MAX_IMAGES / count if self.trains else 1.0)
        return min(most, limit * images.batch_size / count if isinstance(limit, int) else limit)

    def reads(self, trainer: Trainer, data: Any) -> tuple[IndexedImages, list[Split], int]:
        """Return the images on which the head is fitted, a share of these data, their splits that are read, and the number of augmented
        views of each image. Raises `UserError`, see `check_probe_head`.
        """
        images = check_probe_head(trainer, data)
        fitted_on: list[Split] = ["train", "val"] if self.refits(trainer, data) else ["train"]
        if (share := self._train_share(trainer, images)) < 1:
            images = images.with_share(share)
        return images, fitted_on, number_of_views(images, () if self.trains else fitted_on)

    def use_refitted(self, pl_module: LightningModule) -> None:
        """Copy the probe of train + val into the head, in place, if there is one. Afterwards scores on val are too high."""
        if self.refitted is not None:
            _copy(self.refitted, self._head(pl_module))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the out-of-fold scores of a head that is only fitted, for prediction sets, and the subspace of its training features."""
        if not self.trains and self.probe is not None and (held_out := self.probe.held_out_logits) is not None:
            checkpoint[CALIBRATION] = calibration_of(held_out.logits, held_out.labels).record()
        if self.subspace is not None:
            checkpoint[SUBSPACE] = self.subspace.record()

    @property
    def temperature(self) -> float | None:
        """Temperature by which the logits of the head are divided; `None` if they are not, or if those of each part are (`average`)."""
        probe = self.probe
        if self.trains or probe is None or probe.held_out_logits is None or (probe.combine == "average" and len(probe.parts) > 1):
            return None
        return probe.temperature

    def _head(self, module: LightningModule) -> nn.Linear:
        head = dict(module.named_modules()).get(self.head)
        if not isinstance(head, nn.Linear):
            found = "no module" if head is None else f"the {type(head).__name__}"
            raise UserError(
                f"FitProbeHead needs an nn.Linear, but {type(module).__name__} has {found} {self.head!r}: "
                "give FitProbeHead(head=...) the name of an nn.Linear in the module"
            )
        if head.bias is None:
            raise UserError(f"{self.head!r} has no bias, but a linear probe needs one: build the layer with bias=True")
        return head


def _copy(probe: HeadProbe, head: nn.Linear) -> None:
    fitted = probe.as_head()
    assert isinstance(fitted, nn.Linear)
    with torch.no_grad():
        assign(head.weight, fitted.weight)
        assign(head.bias, fitted.bias)


def check_probe_head(trainer: Trainer, data: Any, hints: Hints = IN_PYTHON) -> IndexedImages:
    """Return the images on which a linear probe can be fitted.

    Args:
        trainer: with its strategy.
        data: of the run.
        hints: what to type, for the errors.

    Raises:
        UserError: the strategy shards the head, or `data` is not image data (`ImageData`, `FeatureData`) with one label per image, or
            overrides its batches, which the probe would not be fitted on.
    """
    images = data.images if isinstance(data, FeatureData) else data
    way_out = f"{hints.trained_head}{hints.own_fit}"
    strategy = type(trainer.strategy)
    if not keeps_whole_weights(strategy) and not shards_later(strategy):
        raise UserError(f"a linear probe needs the whole head in each process, but this strategy shards the head: {way_out}")
    if not isinstance(images, IndexedImages):
        given = "a plain DataLoader" if data is None else type(data).__name__
        given = f"FeatureData({type(data.data).__name__})" if isinstance(data, LoaderFeatures) else given
        raise UserError(f"a linear probe can be fitted only on ImageData, not on {given}: {way_out}")
    if overrides := ", ".join(images.batch_overrides):
        name = type(data).__name__
        raise UserError(f"a linear probe cannot be fitted on the batches of {name}, because {name} overrides {overrides}: {way_out}")
    if images.multilabel:
        raise UserError(f"a linear probe needs one label per example, but these data have several: {hints.trained_head}")
    return images
