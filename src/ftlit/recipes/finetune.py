"""From config to metrics, one page: backbone, data, head, schedule, then the plan, training, and a table."""

import logging
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer

from ftlit.errors import UserError
from ftlit.grouping import Group, build_optimizer
from ftlit.lit.finetuner import FineTuner
from ftlit.lit.staging import StagedFinetuning
from ftlit.recipes import words
from ftlit.recipes.binding import bind
from ftlit.recipes.isolation import INTERRUPTED
from ftlit.schedule import Schedule, plan


@dataclass(frozen=True)
class Run:
    """What a run is made of."""

    model: FineTuner
    data: Any
    schedule: Schedule
    optimizer: Callable[[list[Group]], Optimizer]
    trainer: pl.Trainer
    resume_from: Path | None


def run(cfg: DictConfig) -> float:
    """Fine-tune as `cfg` says. Returns the best validation accuracy."""
    return fit(cfg, build(cfg))


def build(cfg: DictConfig) -> Run:
    """Build every part. Mistakes are found here, before any training; raises `UserError`."""
    _quiet()
    bind(cfg)
    resume_from = Path(cfg.paths.run, "checkpoints", "last.ckpt") if cfg.resume else None
    if resume_from and not resume_from.is_file():
        raise UserError(f"resume=true, but there is no {resume_from}: give hydra.run.dir=, the folder of the run to go on with")
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    backbone = instantiate(cfg.backbone)
    data = instantiate(cfg.data, input_spec=backbone.input_spec)
    head = instantiate(cfg.head, in_features=backbone.num_features, num_classes=data.num_classes)
    schedule = instantiate(cfg.schedule, layers=backbone.cuts)
    loss = instantiate(cfg.loss, counts=list(data.counts["train"].values()))
    if isinstance(loss, nn.CrossEntropyLoss if data.multilabel else nn.BCEWithLogitsLoss):
        raise UserError(
            f"an image of this data has {'several labels: take loss=bce' if data.multilabel else 'one label: take loss=cross_entropy'}"
        )
    optimizer = instantiate(cfg.optimizer)
    model = FineTuner(
        backbone,
        head,
        num_classes=data.num_classes,
        optimizer=optimizer,
        lr_scale=schedule.lr_scale,
        lr_scheduler=instantiate(cfg.lr_scheduler),
        loss=loss,
        multilabel=data.multilabel,
    ).to(memory_format=torch.channels_last)  # convolutions run faster so, on CPU and GPU alike
    callbacks = [StagedFinetuning(schedule), *(instantiate(callback) for callback in cfg.callbacks.values() if callback)]
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=[instantiate(logger) for logger in cfg.logger.values() if logger])
    schedule.check_reached(trainer.max_epochs)
    return Run(model, data, schedule, optimizer, trainer, resume_from)


def fit(cfg: DictConfig, run: Run) -> float:
    """Print the plan, train, evaluate the best checkpoint on val and test, print the table. Returns val accuracy."""
    if run.trainer.is_global_zero:
        words.write_folder(cfg, run.data.class_names)
        words.keep_metrics(cfg)
        words.say_plan(cfg, run.model.backbone, run.data, plan_of(run), run.resume_from)
    started = time.perf_counter()
    try:
        run.trainer.fit(run.model, run.data, ckpt_path=run.resume_from)
    except SystemExit:  # Lightning's answer to Ctrl-C, after the last checkpoint is saved
        words.say_interrupted(cfg)
        sys.exit(INTERRUPTED)
    seconds = time.perf_counter() - started
    best = getattr(run.trainer.checkpoint_callback, "best_model_path", None) or None
    results = {
        **run.trainer.validate(run.model, run.data, ckpt_path=best, verbose=False)[0],
        **run.trainer.test(run.model, run.data, ckpt_path=best, verbose=False)[0],
    }
    if run.trainer.is_global_zero:
        words.write_results(cfg, results)
        words.say_results(cfg, results, seconds)
    return float(results["val/accuracy"])


def plan_of(run: Run) -> list[str]:
    """The schedule in words, with the rates that the optimizer will have."""
    optimizer = build_optimizer(run.model, run.optimizer, run.schedule.lr_scale)
    sizes = {name: parameter.numel() for name, parameter in run.model.named_parameters()}
    return plan(run.schedule, sizes, {group["name"]: group["lr"] for group in optimizer.param_groups})


def _quiet() -> None:
    """Lightning's advice on hardware and loaders is not what a person came for; errors and our own notes are."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    for advice in (
        "does not have many workers",
        "number of training batches",
        "directory .* exists and is not empty",
        "Checkpoint directory",
        "use_distributed_sampler",
        "GPU available but not used",
        "Starting from v1.9.0, `tensorboardX`",
        "resuming from a checkpoint that ended before",
        "`lr_scheduler.step",
        "module\\(s\\) in eval mode at the start of training",  # that is what frozen means
        "isinstance\\(treespec, LeafSpec\\)",
        "`IterableDataset` has `__len__`",
    ):
        warnings.filterwarnings("ignore", message=f".*{advice}.*")
