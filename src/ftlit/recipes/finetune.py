"""From config to metrics, one page: backbone, data, head, schedule, then the plan, training, and a table."""

import logging
import sys
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ftlit.errors import UserError, one_line
from ftlit.features.stage_input import StageInput
from ftlit.finetuning.freeze import Choice
from ftlit.finetuning.losses import LOSSES
from ftlit.finetuning.plan import Plan, examine
from ftlit.finetuning.schedule import Schedule, trains_head_alone, with_batchnorm, with_reinit, without_warm_up
from ftlit.inference.record import part_of, record_of
from ftlit.inference.slim import base_record
from ftlit.lit.callbacks.probe_head import FitProbeHead, check_solvable
from ftlit.lit.callbacks.recorder import Recorder
from ftlit.lit.datamodules.feature_data import SHARDED, FeatureData
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.module import FineTuner
from ftlit.lit.staged_finetuning import StagedFinetuning
from ftlit.models.backbone import Backbone
from ftlit.models.batchnorm_fold import batchnorm_to_affine
from ftlit.models.heads import LinearProbeHead, logits_of
from ftlit.recipes.config.check_values import AFFINE, check_until
from ftlit.recipes.config.hydra_internals import instantiate
from ftlit.recipes.config.validate import bind, check_input, check_labelled
from ftlit.recipes.run import artifacts as reporting
from ftlit.recipes.run import console as words
from ftlit.recipes.run.loggers import begin_loggers, build_loggers
from ftlit.recipes.run.processes import INTERRUPTED_STATUS
from ftlit.recipes.run.resume import alone_in, checkpoint_of

LOST = ("closed by peer", "reset by peer", "remote process exited")  # what gloo and NCCL say where another process died


@dataclass(frozen=True)
class Run:
    """What a run is made of."""

    model: FineTuner
    data: Any
    schedule: Schedule
    trainer: pl.Trainer
    resume_from: Path | None
    solved: FitProbeHead | None
    recorder: Recorder | None

    @property
    def trains(self) -> bool:
        """Whether anything is left to train once the head is solved."""
        return self.solved is None or self.solved.trains

    @property
    def sources(self) -> list[StageInput]:
        """What each stage trains from, where features are stored at all."""
        return self.data.plan(self.model, self.schedule, self.trainer) if isinstance(self.data, FeatureData) else []


def run(cfg: DictConfig) -> float:
    """Fine-tune as `cfg` says. Returns the best validation accuracy."""
    return fit(cfg, build(cfg))


def build(cfg: DictConfig) -> Run:
    """Build every part. Mistakes are found here, before any training; raises `UserError`."""
    quiet()
    bind(cfg)
    loggers = build_loggers(cfg.logger)
    resume_from = checkpoint_of(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    backbone = instantiate(cfg.backbone)
    base = _base(cfg, backbone)
    if cfg.batchnorm == AFFINE:  # before the groups are built
        batchnorm_to_affine(backbone)
    check_input(cfg, backbone.input_spec)
    data = instantiate(cfg.data, input_spec=backbone.input_spec)
    check_labelled(data)
    head = instantiate(cfg.head, in_features=backbone.num_features, num_classes=data.num_classes)
    _check_head(backbone, head)
    if type(data) is ImageData:  # another data module may load in ways of its own
        data = instantiate(cfg.cache)(data, pooled=not getattr(head, "takes_map", False))
    policy: Choice = "auto" if cfg.batchnorm == AFFINE else cfg.batchnorm
    schedule = with_batchnorm(instantiate(cfg.schedule, layers=backbone.layers_with_parameters), {"backbone": policy})
    schedule = with_reinit(schedule, [layer for layer in backbone.reinit if layer in backbone.layers_with_parameters])
    solved = _solved(cfg, head, schedule)
    schedule = without_warm_up(schedule) if solved and solved.trains else schedule
    check_until(schedule)
    model = _joined(cfg, backbone, head, data, schedule, base)
    if cfg.compile:
        backbone.compile()
        head.compile()
    others = (instantiate(callback) for callback in cfg.callbacks.values() if callback)
    recorder = Recorder(cfg.paths.run) if cfg.report else None
    trainer = instantiate(
        cfg.trainer,
        callbacks=[StagedFinetuning(schedule), *([solved] if solved else []), *([recorder] if recorder else []), *others],
        logger=loggers,
    )
    if base is not None:
        check_slim(trainer.strategy)
    if solved:
        check_solvable(trainer, data)
    try:
        schedule.check_reached(trainer.max_epochs, trainer.max_steps)
    except UserError as error:
        given = ", ".join(f"schedule.{name}" for name in ("epoch", "every", "stages") if name in cfg.schedule)
        raise UserError(f"{error} ({given})" if given else str(error)) from None
    return Run(model, data, schedule, trainer, resume_from, solved, recorder)


def check_slim(strategy: object) -> None:
    """Refuse slim checkpoints where Lightning loads by itself, strictly, what the shards hold: it would miss what they leave out."""
    if isinstance(strategy, SHARDED):
        raise UserError(f"checkpoint=slim cannot be loaded under {type(strategy).__name__}: give checkpoint=full, or one device or ddp")


def _solved(cfg: DictConfig, head: nn.Module, schedule: Schedule) -> FitProbeHead | None:
    if not isinstance(head, LinearProbeHead):
        return None
    probing = instantiate(cfg.probe)
    if probing.cuts is not None or probing.repeats > 1:
        raise UserError("head=linear_probe is solved once, at the cut of the backbone: probe.cuts and probe.repeats are of recipe=probe")
    if "average" not in probing.poolings:
        raise UserError(f"probe.poolings={list(probing.poolings)}: a solved head takes the average; others are of recipe=probe")
    return FitProbeHead("head", probing, trains=not all(trains_head_alone(stage) for stage in schedule.stages))


def _base(cfg: DictConfig, backbone: Backbone) -> dict[str, str] | None:
    """What a slim checkpoint leaves out, told before anything is rewritten."""
    return base_record(backbone) if cfg.checkpoint == "slim" else None


def _joined(cfg: DictConfig, backbone: Backbone, head: nn.Module, data: Any, schedule: Schedule, base: dict[str, str] | None) -> FineTuner:
    loss = instantiate(cfg.loss, counts=list(data.counts["train"].values()))
    if isinstance(loss, nn.CrossEntropyLoss if data.multilabel else nn.BCEWithLogitsLoss):
        raise UserError(
            f"an image of this data has {'several labels: take loss=bce' if data.multilabel else 'one label: take loss=cross_entropy'}"
        )
    own: Any = OmegaConf.to_container(cfg.backbone, resolve=True)
    made: Any = OmegaConf.to_container(cfg.head, resolve=True)
    recorded = part_of(cfg.loss, LOSSES)
    about = {"class_names": data.class_names, "multilabel": data.multilabel, "affine": cfg.batchnorm == AFFINE}
    record = record_of(backbone, own, made, loss=recorded, **about)
    return FineTuner(
        backbone,
        head,
        num_classes=data.num_classes,
        optimizer=instantiate(cfg.optimizer),
        lr_scale=schedule.lr_scale,
        lr_scheduler=instantiate(cfg.lr_scheduler),
        decay_all=cfg.decay_all,
        loss=loss,
        multilabel=data.multilabel,
        record={**record, "base": base},
        slim=base is not None,
    )


def fit(cfg: DictConfig, run: Run) -> float:
    """Print the plan, train, evaluate the best checkpoint on val and test, print the table; a head that alone is solved takes val in
    between. Returns val accuracy.
    """
    plan = plan_of(run)
    if plan.warnings and cfg.doctor == "strict":
        raise UserError(f"doctor=strict: {plan.warnings[0]}")
    with alone_in(cfg.paths.run) if run.trainer.is_global_zero else nullcontext():
        if run.trainer.is_global_zero:
            checkpoint_of(cfg)  # another run may have begun or ended here since
            begin_loggers(run.trainer.loggers)
            words.write_folder(cfg, run.data)
            rows = _rows(cfg, run, plan)
            words.say_plan(cfg, rows, plan, run.resume_from, trains=run.trains)
            if run.recorder:
                reporting.write_run(cfg, run.data, rows, plan)
        started = time.perf_counter()
        _train(cfg, run)
        seconds = time.perf_counter() - started
        best = getattr(run.trainer.checkpoint_callback, "best_model_path", None) or None
        judged = run.trainer.validate(run.model, run.data, ckpt_path=best, verbose=False)[0]
        if run.solved and not run.trains:
            run.solved.take_whole(run.model)
            for name in ("last", "best"):
                run.trainer.save_checkpoint(Path(cfg.paths.run, "checkpoints", f"{name}.ckpt"))
        results = {**judged, **run.trainer.test(run.model, run.data, ckpt_path=best, verbose=False)[0]}
        if run.trainer.is_global_zero:
            words.write_results(cfg, results)
            words.say_results(cfg, results, f"{'trained' if run.trains else 'solved'} in {seconds:.1f} s")
            if run.recorder and run.recorder.tested:
                reporting.say_report(cfg, run.data, run.recorder.tested, run.recorder.features)
    return float(results["val/accuracy"])


def _rows(cfg: DictConfig, run: Run, plan: Plan) -> list[tuple[str, str]]:
    parts = run.model.backbone, run.data, plan, run.sources
    takes_val = run.solved is not None and run.solved.takes_val(run.trainer, run.data)
    processes = run.trainer.world_size
    return words.plan_rows(cfg, *parts, solves=run.solved is not None, takes_val=takes_val, trains=run.trains, processes=processes)


def _train(cfg: DictConfig, run: Run) -> None:
    try:
        run.trainer.fit(run.model, run.data, ckpt_path=run.resume_from)
    except UnpicklingError as error:  # what it would run was not run
        raise UserError(f"{run.resume_from} holds more than tensors and plain values, and is not loaded: begin a new run") from error
    except SystemExit:  # Lightning's answer to Ctrl-C
        words.say_interrupted(cfg)
        sys.exit(INTERRUPTED_STATUS)
    except RuntimeError as error:
        if run.trainer.world_size == 1 or not any(sign in str(error) for sign in LOST):
            raise
        words.say_lost(cfg, run.trainer.global_rank)
        sys.exit(1)


def plan_of(run: Run) -> Plan:
    """What the schedule will do to the model, layer by layer."""
    layers = [*(f"backbone.{layer}" for layer in run.model.backbone.cuts), "head"]
    world = run.trainer.world_size
    return examine(run.model, layers, run.schedule, run.model.build_optimizer(), batch_size=run.data.batch_size, processes=world)


def _check_head(backbone: Backbone, head: nn.Module) -> None:
    """A head of somebody's own is tried on features of zeros before anything is written or trained."""
    shape = backbone.feature_shapes[backbone.cuts[-1]]
    features = torch.zeros(2, *shape)
    try:
        with torch.no_grad():
            logits_of(head.eval(), features, backbone.pool)
    except Exception as error:
        raise UserError(
            f"{type(head).__name__} cannot take the features {shape} of cut {backbone.cuts[-1]!r}: {one_line(error)}"
        ) from error


def quiet() -> None:
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
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # one line, without the source
