"""Build the parts of a run: backbone, data, head, schedule, module and trainer, and of a run with training its baseline."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, Checkpoint
from omegaconf import DictConfig

from ftlit.errors import UserError
from ftlit.finetuning.examine import examine
from ftlit.finetuning.hints import ON_COMMAND_LINE
from ftlit.finetuning.plan import Plan, check_stage_factors
from ftlit.finetuning.schedule import Schedule, trains_head_alone, trains_whole_layers, without_warm_up
from ftlit.lit.callbacks.ema_weights import EmaWeights
from ftlit.lit.callbacks.live_report import LiveReport
from ftlit.lit.callbacks.probe_head import FitProbeHead, check_probe_head
from ftlit.lit.callbacks.recorder import Recorder
from ftlit.lit.callbacks.suspects_file import SuspectsFile
from ftlit.lit.callbacks.val_scores import ValScores
from ftlit.lit.checkpoint_io import use_checked_checkpoints
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.module import FineTuner
from ftlit.lit.stages.stage_begin import planned_epochs
from ftlit.lit.stages.staged_finetuning import StagedFinetuning
from ftlit.lit.strategies import compile_layers, keeps_whole_weights, shards_later
from ftlit.lit.trainer_internals import find_callback
from ftlit.models.batchnorm_fold import batchnorm_to_affine
from ftlit.recipes.baseline import Baseline, build_baseline, may_compare
from ftlit.recipes.build_module import build_module
from ftlit.recipes.checks.check_values import AFFINE, check_until
from ftlit.recipes.checks.own_parts import build_part
from ftlit.recipes.checks.validate import bind
from ftlit.recipes.config.class_weights import class_weights_of
from ftlit.recipes.config.hydra_internals import choices, instantiate
from ftlit.recipes.processes.launched import first_ahead
from ftlit.recipes.resuming.resume import checkpoint_of
from ftlit.recipes.run.hardware_settings import base_of, resolve_checkpoint, resolve_compile
from ftlit.recipes.run.head import build_probe_head, check_head, head_arguments, may_fit_head, recorded_head
from ftlit.recipes.run.loggers import build_loggers
from ftlit.recipes.run.parts import add_schedule_lora, begun_in_time, build_schedule, check_reached, load_parts, lora_patterns
from ftlit.recipes.run.trainer import build_trainer, unsharded
from ftlit.recipes.run.training_steps import check_batches, rates_of, training_steps
from ftlit.recipes.run_start import RunStart, begin_head
from ftlit.recipes.wise import check_wise


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
    baseline: Baseline | None
    start: RunStart | None = None
    notes: Sequence[str] = ()

    @property
    def trains(self) -> bool:
        """Whether there is any gradient training, besides fitting a linear probe as the head."""
        return self.probe_head is None or self.probe_head.trains


def build(cfg: DictConfig, *, compares: bool = True) -> Run:
    """Build all parts of a run.

    Args:
        cfg: the composed config.
        compares: whether a run that trains layers has a baseline.

    Raises:
        UserError: mistakes are found here, before any training.
    """
    if cfg.resume:
        bind(cfg)  # first: `checkpoint_of` compares values with those of the run
    resume_from = checkpoint_of(cfg)
    with first_ahead("parts", cfg.rank_timeout):  # it may hash many files; the others find the hashes
        parts = load_parts(cfg)
    backbone, data = parts.backbone, parts.data
    images = data
    base = base_of(cfg, backbone)  # before anything is rewritten
    if cfg.batchnorm == AFFINE:  # before the parameter groups are built
        batchnorm_to_affine(backbone)
    schedule = build_schedule(cfg, backbone)
    plain = deepcopy(backbone) if lora_patterns(schedule) else backbone  # for the baseline: other runs store the same features
    lora = add_schedule_lora(backbone, schedule)
    check_until(schedule)
    arguments = head_arguments(cfg, backbone, schedule)
    head = build_part("head", cfg.head, **arguments, num_classes=data.num_classes)
    check_head(backbone, head, data.num_classes)
    if isinstance(data, ImageData) and not data.batch_overrides:  # other data trains on batches of its own
        data = instantiate(cfg.cache)(data, pooled=not getattr(head, "takes_map", False))
    probe_head = build_probe_head(cfg, head, schedule, class_weights_of(cfg, data))
    if probe_head and probe_head.trains:
        schedule = without_warm_up(schedule)
    schedule, notes = begun_in_time(cfg, schedule)
    only_fits = probe_head is not None and not probe_head.trains
    frozen = only_fits or all(trains_head_alone(stage) for stage in schedule.stages)
    few = only_fits or not any(map(trains_whole_layers, schedule.stages))
    start = begin_head(parts.start, head, probe_head, data, backbone) if parts.start else None
    base = base if resolve_checkpoint(cfg, backbone, few=few) == "slim" else None
    model = build_module(cfg, backbone, head, data, schedule, recorded_head(cfg, arguments), base, lora)
    if resolve_compile(cfg, backbone, data, frozen=frozen) and not only_fits:
        compile_layers(backbone, head)
    callbacks = build_callbacks(cfg, schedule, probe_head, compares_start=start is not None)
    keeps_best = any(isinstance(callback, Checkpoint) for callback in callbacks)  # else Lightning would add a checkpoint of its own
    none_held_out = {"limit_val_batches": 0, "limit_test_batches": 0, "num_sanity_val_steps": 0} if cfg.final else {}
    settings = {"enable_checkpointing": keeps_best, **none_held_out, **(unsharded(cfg) if only_fits else {})}
    trainer = build_trainer(cfg, callbacks=callbacks, logger=build_loggers(cfg.logger), **settings)
    use_checked_checkpoints(trainer)
    check_sharded(trainer.strategy, slim=base is not None, resumes=resume_from is not None)
    check_trainer(cfg, trainer, data, schedule, probe_head)
    if only_fits:
        resume_from = None  # the head is fitted again, and its rows of metrics are written again
    elif probe_head:
        probe_head.resumes = resume_from is not None
    baseline = build_baseline(cfg, plain, images, base) if compares and may_compare(trainer, probe_head) else None
    return Run(model, data, schedule, trainer, resume_from, probe_head, find_callback(trainer, Recorder), baseline, start, notes)


def build_callbacks(cfg: DictConfig, schedule: Schedule, probe_head: FitProbeHead | None, *, compares_start: bool) -> list[Callback]:
    """The callbacks of a run: its own, those of the config, and that of `average`.

    Args:
        cfg: the composed config.
        schedule: of the run.
        probe_head: fits the head; `None`: no head is fitted.
        compares_start: whether the predictions are needed, to compare them with those of the run of `init_from`.

    Raises:
        UserError: see `build_average`.
    """
    only_fits = probe_head is not None and not probe_head.trains
    recorder = Recorder(cfg.paths.run) if cfg.report or compares_start else None
    suspects = SuspectsFile(cfg.paths.run, probe_head) if probe_head and only_fits else None
    scores = None if only_fits or cfg.final else ValScores()
    live = LiveReport(cfg.paths.run) if cfg.report and not only_fits else None
    own = [
        callback
        for callback in (StagedFinetuning(schedule, warns=False), probe_head, suspects, recorder, live, scores)
        if callback is not None
    ]
    configured = [instantiate(callback) for callback in cfg.callbacks.values() if callback]
    return [*own, *configured, *build_average(cfg, trains=not only_fits)]


def check_trainer(cfg: DictConfig, trainer: pl.Trainer, data: Any, schedule: Schedule, probe_head: FitProbeHead | None) -> None:
    """Check what is known once there is a trainer. Raises `UserError`: see the checks of each part."""
    check_wise(trainer, fits_head=probe_head is not None)
    if ema := find_callback(trainer, EmaWeights):
        ema.check(trainer)
    if probe_head:
        check_probe_head(trainer, data, ON_COMMAND_LINE)
    check_reached(cfg, schedule, trainer, data)
    check_stage_factors(cfg.lr_scheduler.get("stage_factors") or (), len(schedule.stages))
    if probe_head is None or probe_head.trains:
        check_batches(trainer, data)


def plan_of(run: Run) -> Plan:
    """The plan of the schedule for the model, layer by layer."""
    layers = [*(f"backbone.{layer}" for layer in run.model.backbone.cuts), "head"]
    rates = rates_of(run.model, run.trainer, run.data) if run.trains else None
    return examine(
        run.model,
        run.schedule,
        {"optimizer": run.model.build_optimizer(), "lr_scheduler": rates},
        layers,
        batch_size=run.data.batch_size,
        processes=run.trainer.world_size,
        steps=training_steps(run.trainer, run.data) if run.trains else None,
        max_epochs=planned_epochs(run.trainer) if run.trains else None,
        fits_head=run.probe_head is not None or (run.start is not None and run.start.copies_rows),
        may_fit_head=may_fit_head(run.trainer, run.data),
        hints=ON_COMMAND_LINE,
    )


def build_average(cfg: DictConfig, *, trains: bool) -> list[Callback]:
    """The callback of `average`, after which none stands: its checkpoints hold what the others made of the weights.

    Raises:
        UserError: nothing is trained, so there is nothing to average.
    """
    average = instantiate(cfg.average)
    if average is not None and not trains:
        name = choices().get("average") or type(average).__name__
        raise UserError(
            f"average={name} averages weights of training, but this run only fits a linear probe, without training: leave "
            "average out, or train layers, for instance by scenario=large_similar"
        )
    return [] if average is None else [average]


def check_sharded(strategy: object, *, slim: bool, resumes: bool) -> None:
    """Refuse, where the weights are sharded, slim checkpoints, and resuming with other strategies than `Fsdp2Strategy`."""
    if keeps_whole_weights(type(strategy)) or not (slim or (resumes and not shards_later(type(strategy)))):
        return
    what, instead = ("checkpoint=slim", "give checkpoint=full") if slim else ("resume=true", "leave resume=true out to start a new run")
    raise UserError(
        f"{what} does not work with {type(strategy).__name__}, which shards the weights: {instead}, or give trainer.strategy=ddp"
    )
