"""From config to metrics, one page: backbone, data, head, schedule, then the plan, training, and a table."""

import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from ftlit.lit.finetuner import FineTuner
from ftlit.lit.staging import StagedFinetuning
from ftlit.recipes import words
from ftlit.recipes.binding import bind
from ftlit.schedule import Schedule


@dataclass(frozen=True)
class Run:
    """What a run is made of."""

    model: FineTuner
    data: pl.LightningDataModule
    schedule: Schedule
    trainer: pl.Trainer
    resume_from: Path | None


def run(cfg: DictConfig) -> float:
    """Fine-tune as `cfg` says. Returns the best validation accuracy."""
    return fit(cfg, build(cfg))


def build(cfg: DictConfig) -> Run:
    """Build every part. Mistakes are found here, before any training; raises `UserError`."""
    _quiet()
    bind(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    backbone = instantiate(cfg.backbone)
    data = instantiate(cfg.data, input_spec=backbone.input_spec)
    head = instantiate(cfg.head, in_features=backbone.num_features, num_classes=data.num_classes)
    schedule = instantiate(cfg.schedule, layers=backbone.cuts)
    model = FineTuner(
        backbone,
        head,
        num_classes=data.num_classes,
        optimizer=instantiate(cfg.optimizer),
        lr_scale=schedule.lr_scale,
        lr_scheduler=instantiate(cfg.lr_scheduler),
        loss=instantiate(cfg.loss, counts=list(data.counts["train"].values())),
        multilabel=data.multilabel,
    ).to(memory_format=torch.channels_last)  # convolutions run faster so, on CPU and GPU alike
    callbacks = [StagedFinetuning(schedule), *(instantiate(callback) for callback in cfg.callbacks.values())]
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=[instantiate(logger) for logger in cfg.logger.values()])
    last = Path(cfg.paths.run, "checkpoints", "last.ckpt")
    return Run(model, data, schedule, trainer, last if cfg.resume and last.is_file() else None)


def fit(cfg: DictConfig, run: Run) -> float:
    """Print the plan, train, evaluate the best checkpoint on val and test, print the table. Returns val accuracy."""
    schedule_plan = run.schedule.plan(run.model, run.model.configure_rates())
    if run.trainer.is_global_zero:
        words.write_folder(cfg, run.data)
        words.say_plan(cfg, run, schedule_plan)
    started = time.perf_counter()
    run.trainer.fit(run.model, run.data, ckpt_path=run.resume_from, weights_only=True)
    seconds = time.perf_counter() - started
    best = run.trainer.checkpoint_callback.best_model_path or None
    results = {
        **run.trainer.validate(run.model, run.data, ckpt_path=best, verbose=False, weights_only=True)[0],
        **run.trainer.test(run.model, run.data, ckpt_path=best, verbose=False, weights_only=True)[0],
    }
    if run.trainer.is_global_zero:
        words.say_results(cfg, results, seconds)
    return results["val/accuracy"]
