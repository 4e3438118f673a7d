"""The baseline of a run that trains layers: a linear probe on the frozen backbone, fitted and evaluated before training begins.

It is the head that a small scenario would fit. It stays the best checkpoint of the run unless an epoch is clearly better on val.
"""

from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import Callback
from omegaconf import DictConfig
from torch import nn

from ftlit.finetuning.presets import head_only
from ftlit.finetuning.schedule import Schedule, with_batchnorm
from ftlit.inference.record import Record
from ftlit.lit.callbacks.best_checkpoint import BestCheckpoint
from ftlit.lit.callbacks.probe_head import MAX_IMAGES, FitProbeHead
from ftlit.lit.callbacks.recorder import Recorder
from ftlit.lit.callbacks.suspects_file import SuspectsFile
from ftlit.lit.callbacks.wise_weights import WiseWeights
from ftlit.lit.checkpoint_io import use_checked_checkpoints
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.module import FineTuner
from ftlit.lit.stages.staged_finetuning import StagedFinetuning
from ftlit.lit.trainer_internals import find_callback, is_trial_run
from ftlit.models.backbone import Backbone
from ftlit.models.heads import head_cuts
from ftlit.probes.fitted_head.head_probe import HeadProbe
from ftlit.recipes.build_module import build_module
from ftlit.recipes.config.class_weights import class_weights_of, trained_classes
from ftlit.recipes.config.hydra_internals import instantiate
from ftlit.recipes.run.head import head_arguments, recorded_head
from ftlit.recipes.run.parts import batchnorm_policy
from ftlit.recipes.run.trainer import build_trainer, unsharded
from ftlit.run_folder import BASELINE, RUN, RUN_STATE
from ftlit.seeding import kept_random_state

ACCURACY = "val/accuracy"
METRICS = (ACCURACY, "val/f1", "val/loss")  # that a baseline has
Results = dict[str, float]


class RunIdentity(Callback):
    """Writes the digest that identifies a run to the checkpoints of its baseline, as `LastCheckpoint` does to the others."""

    def __init__(self) -> None:
        self.run: str | None = None

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the digest."""
        if self.run is not None:
            checkpoint[RUN_STATE] = {RUN: self.run}


@dataclass(frozen=True)
class Baseline:
    """The parts of a baseline. Its backbone and images are those of the run; the trainer, the head and stored features are its own."""

    model: FineTuner
    data: Any
    trainer: pl.Trainer
    probe_head: FitProbeHead
    recorder: Recorder | None
    identity: RunIdentity

    def fit(self, folder: Path, run: str | None, found: Results | None = None) -> Results:
        """Fit the head, validate it, refit it on train + val where `FitProbeHead` does, save it, and test it.

        Random states of the run stay as they are.

        Args:
            folder: of the run.
            run: the digest that identifies it.
            found: gets the metrics as they become known, for a run that is interrupted.

        Returns:
            Metrics on val, before the refit, and on test.
        """
        self.identity.run = run
        with kept_random_state():
            self.trainer.fit(self.model, self.data)
            return evaluate_fitted(self.trainer, self.model, self.data, self.probe_head, [checkpoint_in(folder)], found)

    def start_for(self, head: nn.Module) -> HeadProbe | None:
        """The fitted probe for another head: the whole one if it reads the same cuts, else its part of the last cut, if there is one."""
        probe, cuts = self.probe_head.probe, head_cuts(head) or self.model.backbone.cuts[-1:]
        if probe is None or head_cuts(head) == head_cuts(self.model.head):
            return probe
        part = next((part for part in probe.parts if tuple(part.cuts) == tuple(cuts)), None)
        return (
            None
            if part is None
            else HeadProbe([part], views=probe.views, score=part.score, held_out=probe.held_out, class_weights=probe.class_weights)
        )


def may_compare(trainer: pl.Trainer, probe_head: FitProbeHead | None) -> bool:
    """Whether a run can have a baseline: layers train from a head that is fitted, in more than a trial run."""
    return probe_head is not None and probe_head.trains and not is_trial_run(trainer)


def build_baseline(cfg: DictConfig, backbone: Backbone, images: Any, base: Record | None) -> Baseline:
    """Build the baseline of a run.

    Args:
        cfg: the composed config.
        backbone: of the run.
        images: of the run, without stored features.
        base: weights that slim checkpoints leave out; `None` for full ones.
    """
    schedule = _schedule(cfg, backbone)
    arguments = head_arguments(cfg, backbone, schedule)
    head = instantiate(cfg.head, **arguments, num_classes=images.num_classes)
    weights, identity = class_weights_of(cfg, images), RunIdentity()
    probe_head = FitProbeHead("head", instantiate(cfg.probe), trains=False, class_weights=weights)
    probe_head.compares_views = True  # before layers train on augmented images
    recorder = Recorder(cfg.paths.run) if cfg.report or cfg.init_from is not None else None
    callbacks: list[Callback | None] = [StagedFinetuning(schedule, warns=False), probe_head, identity, recorder]
    if (count := len(images.collection.splits["train"])) > MAX_IMAGES:
        images = images.with_share(MAX_IMAGES / count)
    else:  # of all images: their places are those of the run
        callbacks.append(SuspectsFile(cfg.paths.run, probe_head))
    if progress := cfg.callbacks.get("progress"):
        callbacks.append(instantiate(progress))
    data = instantiate(cfg.cache)(images, pooled=True) if isinstance(images, ImageData) else images
    model = build_module(cfg, backbone, head, data, schedule, recorded_head(cfg, arguments), base)
    own = [callback for callback in callbacks if callback is not None]
    trainer = build_trainer(cfg, callbacks=own, logger=False, enable_checkpointing=False, **unsharded(cfg))
    use_checked_checkpoints(trainer)
    return Baseline(model, data, trainer, probe_head, recorder, identity)


def _schedule(cfg: DictConfig, backbone: Backbone) -> Schedule:
    return with_batchnorm(head_only(backbone.layers_with_parameters), {"backbone": batchnorm_policy(cfg)})


def checkpoint_in(folder: Path) -> Path:
    """The checkpoint of the baseline in the folder of a run."""
    return folder / "checkpoints" / f"{BASELINE}.ckpt"


def judged_by(trainer: pl.Trainer) -> BestCheckpoint | None:
    """The callback that keeps the baseline or an epoch; `None` where the best epoch is chosen in another way, or not at all."""
    best = find_callback(trainer, BestCheckpoint)
    return best if best is not None and best.save_top_k == 1 and best.monitor in METRICS else None


def propose(trainer: pl.Trainer, folder: Path, results: Results, val_images: float) -> None:
    """Let the trainer's best checkpoint begin with the baseline; with `average=wise` it is compared after training only.

    An epoch must be more accurate by a standard error of the baseline's accuracy: the best of many epochs is often better by chance only,
    and the baseline has been refitted on val too (after the one-standard-error rule of Breiman et al. 1984, section 3.4.3).

    Args:
        trainer: of the run.
        folder: of the run.
        results: of the baseline.
        val_images: number of images that its accuracy is the share of.
    """
    if best := judged_by(trainer):
        value = results[str(best.monitor)]
        images = round(val_images) if best.monitor == ACCURACY else 0
        margin = sqrt(max(0.0, value * (1 - value)) / max(1.0, val_images)) if best.monitor == ACCURACY else 0.0
        best.begin_with(checkpoint_in(folder), value, margin, at_once=find_callback(trainer, WiseWeights) is None, images=images)


def evaluate_fitted(
    trainer: pl.Trainer, model: FineTuner, data: Any, probe_head: FitProbeHead, paths: list[Path], found: Results | None = None
) -> Results:
    """Validate a head that was only fitted, then refit it on train + val where `FitProbeHead` does, save the module, and test it.

    Returns the metrics, which are added to `found` as they become known.
    """
    found = {} if found is None else found
    found |= trainer.validate(model, data, verbose=False)[0]
    probe_head.use_refitted(model)
    if probe_head.refitted is not None:
        model.update_record(trained_classes(data, ["train", "val"], probe_head.class_weights))
    for path in paths:
        trainer.save_checkpoint(path)
    found |= trainer.test(model, data, verbose=False)[0]
    return dict(found)
