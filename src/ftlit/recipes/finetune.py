"""Run `recipe=finetune`: build backbone, data, head and schedule, print the plan, train, evaluate on val and test."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ftlit.errors import UserError
from ftlit.features.stage_input import StageInput
from ftlit.finetuning.losses import LOSSES
from ftlit.finetuning.plan import Plan, examine
from ftlit.finetuning.schedule import Schedule, trains_head_alone, without_warm_up
from ftlit.inference.record import part_of, record_of
from ftlit.lit.callbacks.exact_resume import LastCheckpoint
from ftlit.lit.callbacks.finite_loss import check_results
from ftlit.lit.callbacks.probe_head import FitProbeHead, check_probe_head
from ftlit.lit.callbacks.recorder import Recorder
from ftlit.lit.callbacks.suspects_file import SuspectsFile
from ftlit.lit.callbacks.val_scores import ValScores
from ftlit.lit.checkpoint_io import use_checked_checkpoints
from ftlit.lit.datamodules.feature_data import FeatureData
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.hardware import describe_devices
from ftlit.lit.module import FineTuner
from ftlit.lit.resumed_checkpoint import check_last
from ftlit.lit.staged_finetuning import StagedFinetuning
from ftlit.lit.strategies import SHARDED, compile_layers, compiled_layers_allowed
from ftlit.lit.trainer_internals import find_callback
from ftlit.models.backbone import Backbone
from ftlit.models.batchnorm_fold import batchnorm_to_affine
from ftlit.models.heads import head_cuts
from ftlit.recipes.config.check_values import AFFINE, check_until
from ftlit.recipes.config.hydra_internals import instantiate
from ftlit.recipes.config.validate import bind
from ftlit.recipes.console.plan_rows import plan_rows, print_plan
from ftlit.recipes.console.results_table import print_results
from ftlit.recipes.console.run_facts import RunFacts
from ftlit.recipes.run import artifacts
from ftlit.recipes.run.data_record import check_data
from ftlit.recipes.run.feature_setup import head_feature_bytes
from ftlit.recipes.run.hardware_settings import base_of, resolve_checkpoint, resolve_compile
from ftlit.recipes.run.head import build_probe_head, check_head, head_arguments, may_fit_head, recorded_head
from ftlit.recipes.run.launched import first_ahead
from ftlit.recipes.run.loggers import begin_loggers, build_loggers
from ftlit.recipes.run.parts import build_schedule, check_reached, load_parts
from ftlit.recipes.run.resume import alone_in, checkpoint_of
from ftlit.recipes.run.time_estimates import estimate_run
from ftlit.recipes.run.trainer import build_trainer, describe_fit, lost_processes
from ftlit.recipes.run.training_steps import check_batches, rates_of, steps_per_epoch, training_steps
from ftlit.run_folder import write_result


@dataclass(frozen=True)
class Run:
    """The parts of a run, ready to train."""

    model: FineTuner
    data: Any
    schedule: Schedule
    trainer: pl.Trainer
    resume_from: Path | None
    probe_head: FitProbeHead | None
    recorder: Recorder | None

    @property
    def trains(self) -> bool:
        """Whether there is any gradient training, besides fitting a linear probe as the head."""
        return self.probe_head is None or self.probe_head.trains


def run(cfg: DictConfig) -> float:
    """Fine-tune by the config. Returns the best validation accuracy."""
    return fit(cfg, build(cfg))


def build(cfg: DictConfig) -> Run:
    """Build all parts of a run. Raises `UserError`: mistakes are found here, before any training."""
    bind(cfg)  # first: `checkpoint_of` reads values as they are given
    resume_from = checkpoint_of(cfg)
    with first_ahead("parts", cfg.rank_timeout):  # it may hash many files; the others find the hashes
        parts = load_parts(cfg)
    backbone, data = parts.backbone, parts.data
    base = base_of(cfg, backbone)  # before anything is rewritten
    if cfg.batchnorm == AFFINE:  # before the parameter groups are built
        batchnorm_to_affine(backbone)
    schedule = build_schedule(cfg, backbone)
    check_until(schedule)
    arguments = head_arguments(cfg, backbone, schedule)
    head = instantiate(cfg.head, **arguments, num_classes=data.num_classes)
    check_head(backbone, head, data.num_classes)
    if isinstance(data, ImageData) and not data.batch_overrides:  # other data trains on batches of its own
        data = instantiate(cfg.cache)(data, pooled=not getattr(head, "takes_map", False))
    probe_head = build_probe_head(cfg, head, schedule)
    if probe_head and probe_head.trains:
        schedule = without_warm_up(schedule)
    only_fits = probe_head is not None and not probe_head.trains
    frozen = only_fits or all(trains_head_alone(stage) for stage in schedule.stages)
    base = base if resolve_checkpoint(cfg, backbone, frozen=frozen) == "slim" else None
    model = _build_module(cfg, backbone, head, data, schedule, recorded_head(cfg, arguments), base)
    if resolve_compile(cfg, backbone, data, frozen=frozen) and not only_fits:
        compile_layers(backbone, head)
    recorder = Recorder(cfg.paths.run) if cfg.report else None
    suspects = SuspectsFile(cfg.paths.run, probe_head) if probe_head else None
    own = [callback for callback in (StagedFinetuning(schedule), probe_head, suspects, recorder, ValScores()) if callback is not None]
    configured = [instantiate(callback) for callback in cfg.callbacks.values() if callback]
    trainer = build_trainer(cfg, callbacks=[*own, *configured], logger=build_loggers(cfg.logger))
    use_checked_checkpoints(trainer)
    check_sharded(trainer.strategy, slim=base is not None, resumes=resume_from is not None)
    if probe_head:
        check_probe_head(trainer, data)
    check_reached(cfg, schedule, trainer, data)
    if only_fits:
        resume_from = None  # the head is fitted again, and its rows of metrics are written again
    else:
        check_batches(trainer, data)
    return Run(model, data, schedule, trainer, resume_from, probe_head, recorder)


def fit(cfg: DictConfig, run: Run) -> float:
    """Print the plan, train, evaluate the best checkpoint on val and test, print the results. A head that is only fitted as a linear probe
    is refitted on train + val between the two. Returns the validation accuracy.
    """
    plan = plan_of(run)
    if plan.warnings and cfg.doctor == "strict":
        raise UserError(f"doctor=strict: {plan.warnings[0]}")
    first = run.trainer.is_global_zero
    with alone_in(cfg.paths.run) if first else nullcontext():
        with lost_processes(cfg, run.trainer), first_ahead("plan", cfg.rank_timeout):
            if first:
                _begin(cfg, run, plan)
        started = time.perf_counter()
        with lost_processes(cfg, run.trainer), compiled_layers_allowed(run.model):
            run.trainer.fit(run.model, run.data, ckpt_path=run.resume_from, weights_only=True)
            seconds = time.perf_counter() - started
            results = _evaluate(cfg, run)
        check_results(results)
        if first:
            write_result(cfg.paths.run, results)
            print_results(cfg, results, describe_fit(run.trainer, seconds, trains=run.trains), *_judged(run))
            if run.recorder and run.recorder.tested:
                vectors = run.probe_head.train_vectors if run.probe_head else None
                similar = artifacts.Similar(run.model.backbone, vectors) if vectors else None
                artifacts.write_run_report(cfg, run.data, run.recorder.tested, run.recorder.features, similar)
    return results["val/accuracy"]


def plan_of(run: Run) -> Plan:
    """The plan of the schedule for the model, layer by layer."""
    layers = [*(f"backbone.{layer}" for layer in run.model.backbone.cuts), "head"]
    return examine(
        run.model,
        layers,
        run.schedule,
        run.model.build_optimizer(),
        batch_size=run.data.batch_size,
        processes=run.trainer.world_size,
        steps=training_steps(run.trainer, run.data) if run.trains else None,
        fits_head=run.probe_head is not None,
        may_fit_head=may_fit_head(run.trainer, run.data, run.schedule, run.model.loss),
    )


def check_sharded(strategy: object, *, slim: bool, resumes: bool) -> None:
    """Refuse, where the weights are sharded, resuming and slim checkpoints (Lightning would miss the tensors that are left out)."""
    if not isinstance(strategy, SHARDED) or not (slim or resumes):
        return
    what, instead = ("checkpoint=slim", "give checkpoint=full, or") if slim else ("resume=true", "start a new run, or give")
    raise UserError(f"{what} does not work with {type(strategy).__name__}: {instead} one device or ddp")


def _begin(cfg: DictConfig, run: Run, plan: Plan) -> None:
    """Write and print what is known before training."""
    checkpoint_of(cfg)  # again: another run may have begun or ended here since
    identity, notes = check_data(cfg, run.data)
    if last := find_callback(run.trainer, LastCheckpoint):
        last.run = identity
    if run.resume_from:
        check_last(run.resume_from, identity)
    begin_loggers(run.trainer.loggers, again=bool(cfg.resume and not run.resume_from))
    artifacts.write_folder(cfg, run.data, resumed=run.resume_from is not None)
    inputs: list[StageInput] = run.data.plan(run.model, run.schedule, run.trainer) if isinstance(run.data, FeatureData) else []
    rows = plan_rows(cfg, run.model.backbone, run.data, plan, inputs, _facts(cfg, run, plan, inputs))
    rows += [("note", note) for note in notes]
    print_plan(cfg, rows, plan, run.resume_from, trains=run.trains)
    if run.recorder:
        artifacts.write_run(cfg, run.data, rows, plan)


def _facts(cfg: DictConfig, run: Run, plan: Plan, inputs: Sequence[StageInput]) -> RunFacts:
    """What the plan says of this run beyond its schedule."""
    fits_head = run.probe_head is not None
    views = run.probe_head.reads(run.trainer, run.data)[2] if run.probe_head else 0
    passes = 1 + views if fits_head else 0
    per_epoch = steps_per_epoch(run.trainer, run.data)
    epochs = -(-plan.steps // per_epoch) if plan.steps and per_epoch else None
    spans = [] if not run.trains else None if epochs is None else run.schedule.spans(epochs)
    return RunFacts(
        describe_devices(run.trainer),
        fits_head=fits_head,
        head_cuts=head_cuts(run.model.head),
        views=views,
        head_bytes=head_feature_bytes(run.trainer, run.data, run.model, run.probe_head) if run.probe_head else 0,
        refits_on_val=run.probe_head is not None and run.probe_head.refits(run.trainer, run.data),
        trains=run.trains,
        processes=run.trainer.world_size,
        steps_per_epoch=per_epoch,
        rates=rates_of(run.model, run.trainer, run.data) if run.trains else None,
        seconds=None if cfg.compile else estimate_run(run.trainer, run.model.backbone, run.data, plan, spans, inputs, head_passes=passes),
    )


def _evaluate(cfg: DictConfig, run: Run) -> dict[str, float]:
    """Metrics of the best checkpoint on val and test."""
    best = getattr(run.trainer.checkpoint_callback, "best_model_path", None) or None
    val = run.trainer.validate(run.model, run.data, ckpt_path=best, weights_only=True, verbose=False)[0]
    if run.trains and best is not None and (scores := find_callback(run.trainer, ValScores)):
        scores.add_to(Path(best), run.trainer)
    if run.probe_head and not run.trains:
        run.probe_head.use_refitted(run.model)
        for name in ("last", "best"):
            run.trainer.save_checkpoint(Path(cfg.paths.run, "checkpoints", f"{name}.ckpt"))
    return {**val, **run.trainer.test(run.model, run.data, ckpt_path=best, weights_only=True, verbose=False)[0]}


def _judged(run: Run) -> tuple[dict[str, int], dict[str, str]]:
    """Split -> number of images whose share is its accuracy (empty if it is not one), and split -> where its model was fitted."""
    limits = (run.trainer.limit_val_batches, run.trainer.limit_test_batches)
    shares = not run.data.multilabel and all(isinstance(limit, float) and limit == 1 for limit in limits)  # the integer 1 is one batch
    images = {split: sum(counts.values()) for split, counts in run.data.counts.items()} if shares else {}
    refitted = run.probe_head is not None and not run.trains and run.probe_head.refitted is not None
    return images, {"val": "train", "test": "train + val" if refitted else "train"}


def _build_module(
    cfg: DictConfig,
    backbone: Backbone,
    head: nn.Module,
    data: Any,
    schedule: Schedule,
    recorded: dict[str, Any],
    base: dict[str, str] | None,
) -> FineTuner:
    loss = instantiate(cfg.loss, counts=list(data.counts["train"].values()))
    if isinstance(loss, nn.CrossEntropyLoss if data.multilabel else nn.BCEWithLogitsLoss):
        advice = "several labels per example: give loss=bce" if data.multilabel else "one label per example: give loss=cross_entropy"
        raise UserError(f"this data has {advice}")
    own: Any = OmegaConf.to_container(cfg.backbone, resolve=True)
    about = {"class_names": data.class_names, "multilabel": data.multilabel, "affine": cfg.batchnorm == AFFINE}
    record = record_of(backbone, own, recorded, loss=part_of(cfg.loss, LOSSES), **about)
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
