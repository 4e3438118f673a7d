"""Run `recipe=finetune`: print the plan, fit the baseline, train, and evaluate the best checkpoint on val and test."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from math import nan
from pathlib import Path

from omegaconf import DictConfig

from ftlit.errors import UserError
from ftlit.features.stage_input import StageInput
from ftlit.finetuning.freeze import trained
from ftlit.finetuning.plan import Plan
from ftlit.inference.load_network import load
from ftlit.lit.callbacks.best_checkpoint import BestCheckpoint
from ftlit.lit.callbacks.exact_resume import LastCheckpoint
from ftlit.lit.callbacks.finite_loss import check_results
from ftlit.lit.callbacks.metrics_file import MetricsFile
from ftlit.lit.callbacks.val_scores import ValScores
from ftlit.lit.features.feature_data import FeatureData
from ftlit.lit.hardware import describe_devices
from ftlit.lit.resumed_checkpoint import check_last
from ftlit.lit.stop_signals import PauseReached
from ftlit.lit.strategies import compiled_layers_allowed, keeps_whole_weights
from ftlit.lit.trainer_internals import find_callback
from ftlit.models.heads import head_cuts
from ftlit.printing import print_line
from ftlit.recipes.baseline import Baseline, Results, checkpoint_in, evaluate_fitted, judged_by, propose
from ftlit.recipes.build_run import Run, build, plan_of
from ftlit.recipes.compare_start import StartPredictions, compare, predict_with_start
from ftlit.recipes.console.plan_rows import plan_rows, print_plan
from ftlit.recipes.console.results_table import print_results
from ftlit.recipes.console.run_facts import RunFacts
from ftlit.recipes.console.training_row import harmful_augmentation_note
from ftlit.recipes.final_run import check_final, end_final, plan_rows_of
from ftlit.recipes.interrupted_run import left_after_interruption
from ftlit.recipes.processes.job_process import is_sweep
from ftlit.recipes.processes.launched import first_ahead
from ftlit.recipes.resuming.data_record import check_data
from ftlit.recipes.resuming.elastic import describe_change
from ftlit.recipes.resuming.resume import alone_in, began_with, checkpoint_of, finish_checkpoints
from ftlit.recipes.run import artifacts
from ftlit.recipes.run.feature_setup import head_feature_bytes
from ftlit.recipes.run.loggers import begin_loggers, log_result, logged_to
from ftlit.recipes.run.machines import check_machines
from ftlit.recipes.run.time_estimates import estimate_run, limited
from ftlit.recipes.run.trainer import describe_fit, lost_processes
from ftlit.recipes.run.training_steps import rates_of, steps_per_epoch
from ftlit.recipes.run_report.run_pictures import ReportedNetwork
from ftlit.recipes.run_report.run_report import write_run, write_run_report
from ftlit.recipes.run_result import beside_result, details_of, has_baseline_result, judged_on, score_of
from ftlit.recipes.wise import choose_weights
from ftlit.report.scores import class_scores, low_recalls
from ftlit.run_folder import write_result
from ftlit.sweeps.running import tell_estimate


def run(cfg: DictConfig) -> float:
    """Fine-tune by the config. Returns the best validation accuracy."""
    return fit(cfg, build(cfg, compares=not cfg.final))


def fit(cfg: DictConfig, run: Run) -> float:
    """Print the plan, fit the baseline, train, evaluate the best checkpoint on val and test, print the results. A head that is only fitted
    as a linear probe is refitted on train + val between the two. Returns the validation accuracy, NaN with
    `final=true`, which has no val and no test.

    Raises:
        PauseReached: a job of successive halving has trained `sweep.until` epochs; it goes on from its last checkpoint.
    """
    check_final(cfg, run.schedule, run.trainer)
    plan = plan_of(run)
    if plan.warnings and cfg.doctor == "strict":
        raise UserError(f"doctor=strict: {plan.warnings[0]}")
    if last := find_callback(run.trainer, LastCheckpoint):
        last.pause_at = cfg.sweep.get("until") if is_sweep() else None
    first = run.trainer.is_global_zero
    with alone_in(cfg.paths.run) if first else nullcontext():
        with lost_processes(cfg, run.trainer):
            with first_ahead("plan", cfg.rank_timeout):
                if first:
                    _begin(cfg, run, plan)
            check_machines(cfg, run.data)
        started, known = time.perf_counter(), Results()
        with left_after_interruption(cfg, run, known), lost_processes(cfg, run.trainer), compiled_layers_allowed(run.model):
            before = _predict_with_start(cfg, run)
            baseline = _fit_baseline(cfg, run, known)
            run.trainer.fit(run.model, run.data, ckpt_path=run.resume_from, weights_only=True)
            if last and last.paused:
                raise PauseReached
            if cfg.final:
                end_final(cfg, run, time.perf_counter() - started)
                return nan
            choice = choose_weights(run.trainer, run.model, run.data, Path(cfg.paths.run)) if run.trains else None
            seconds = time.perf_counter() - started
            results = _evaluate(cfg, run, baseline, known)
        check_results(results)
        if first:
            kept = run.baseline if has_baseline_result(run) else None
            recorder = kept.recorder if kept else run.recorder
            images, fitted_on = judged_on(run)
            judged = None if run.data.multilabel else recorder
            details = details_of(cfg, results, images, fitted_on, judged)
            low = low_recalls(class_scores(judged.tested, run.data.class_names)) if judged and judged.tested else []
            start = compare(run.start, run.data, before, recorder.tested) if run.start and recorder else None
            averaged = {} if choice is None else choice.record()
            write_result(
                cfg.paths.run,
                {**results, **details, **beside_result(run, baseline, images), **averaged, **(start.record() if start else {})},
            )
            notes = [*describe_fit(run.trainer, seconds, trains=run.trains), *([choice.describe()] if choice else [])]
            best = find_callback(run.trainer, BestCheckpoint)
            outcome = best.describe() if best and best.keeps_first else ""
            print_results(cfg, results, notes, images, fitted_on, None if kept else baseline, start, low, outcome)
            if cfg.report and recorder and recorder.tested:
                write_run_report(cfg, run.data, recorder.tested, recorder.features, partial(_reported, cfg, run, kept))
    return score_of(run, results)


def _begin(cfg: DictConfig, run: Run, plan: Plan) -> None:
    """Write and print what is known before training."""
    finish_checkpoints(cfg)
    checkpoint_of(cfg)  # again: another run may have begun or ended here since
    identity, notes = check_data(cfg, run.data)
    if last := find_callback(run.trainer, LastCheckpoint):
        last.run = identity
    resuming = ""
    if run.resume_from:
        where = check_last(run.resume_from, identity)
        resuming = f"{run.resume_from} ({where})" if where else str(run.resume_from)
    begin_loggers(run.trainer.loggers, again=bool(cfg.resume and not run.resume_from))
    artifacts.write_folder(cfg, run.data, resumed=run.resume_from is not None)
    inputs: list[StageInput] = run.data.plan(run.model, run.schedule, run.trainer) if isinstance(run.data, FeatureData) else []
    facts = _facts(cfg, run, plan, inputs)
    rows = plan_rows(cfg, run.model.backbone, run.data, plan, inputs, facts)
    rows[1:1] = [*(run.start.rows() if run.start else []), *(plan_rows_of(run.data) if cfg.final else [])]
    if run.trains and (resized := describe_change(cfg, began_with(cfg))):
        rows.append(("processes", resized))
    rows += [("note", note) for note in (*run.notes, *notes)]
    print_plan(cfg, rows, plan, resuming, trains=run.trains)
    if facts.seconds and run.trains:  # jobs of a sweep that only fit a head differ: the first one stores features that others read
        tell_estimate(facts.seconds[0])
    if cfg.report:
        write_run(cfg, run.data, rows, plan)


def _facts(cfg: DictConfig, run: Run, plan: Plan, inputs: Sequence[StageInput]) -> RunFacts:
    """What the plan says of this run beyond its schedule."""
    fitted, fits_head = run.baseline or run, run.probe_head is not None  # the parts with which the head is fitted
    read, _, views = fitted.probe_head.reads(fitted.trainer, fitted.data) if fitted.probe_head else (None, [], 0)
    passes = 1 + views if fits_head else 0
    per_epoch = steps_per_epoch(run.trainer, run.data)
    epochs = -(-plan.steps // per_epoch) if plan.steps and per_epoch else None
    spans = [] if not run.trains else None if epochs is None else run.schedule.spans(epochs)
    parts = run.trainer, run.model.backbone, run.data, plan, spans, inputs
    shards = not keeps_whole_weights(type(run.trainer.strategy))
    return RunFacts(
        describe_devices(run.trainer),
        fits_head=fits_head,
        has_baseline=run.baseline is not None,
        baseline_competes=run.baseline is not None and judged_by(run.trainer) is not None,
        head_cuts=head_cuts(run.model.head),
        fitted_cuts=head_cuts(fitted.model.head),
        fitted_images=len(read.collection.splits["train"]) if read else 0,
        views=views,
        head_bytes=head_feature_bytes(fitted.trainer, fitted.data, fitted.model, fitted.probe_head) if fitted.probe_head else 0,
        start_head=run.start.head if run.start else "",
        refits_on_val=fitted.probe_head is not None and fitted.probe_head.refits(fitted.trainer, fitted.data),
        trains=run.trains,
        processes=run.trainer.world_size,
        steps_per_epoch=per_epoch,
        rates=rates_of(run.model, run.trainer, run.data) if run.trains else None,
        shards=shards,
        memory=run.model.process_memory(_trained(run), run.trainer.world_size) if shards else None,
        seconds=None if cfg.compile else estimate_run(*parts, head_passes=passes, tests=1 if run.baseline is None else 2),
    )


def _trained(run: Run) -> list[set[str]]:
    """The names of the parameters that train, for each stage."""
    return [trained(run.model, stage.train, stage.policy) for stage in run.schedule.stages]


def _predict_with_start(cfg: DictConfig, run: Run) -> StartPredictions | None:
    """What the run of `init_from` predicts for the test images, before training changes its backbone; in the first process."""
    with first_ahead("start", cfg.rank_timeout):
        if run.start is None or cfg.final or not run.trainer.is_global_zero:
            return None
        return predict_with_start(run.start, run.data, str(run.trainer.precision), run.trainer.strategy.root_device)


def _fit_baseline(cfg: DictConfig, run: Run, found: Results) -> Results | None:
    """Fit the baseline and start training from its head; `None`: the run has none. A run that is resumed fits it again, on cached features,
    while the backbone has the weights that it had then. Adds its metrics to `found` as they become known.
    """
    folder, last = Path(cfg.paths.run), find_callback(run.trainer, LastCheckpoint)
    if run.baseline is None or run.probe_head is None:
        return None
    if run.resume_from is None and run.trainer.is_global_zero:  # a run that was interrupted before its first step left an earlier head
        (folder / "checkpoints" / "best.ckpt").unlink(missing_ok=True)
    results = run.baseline.fit(folder, last.run if last else None, found)
    for note in harmful_augmentation_note(cfg, run.baseline.probe_head.view_effect):
        print_line(f"note      {note}")
    run.probe_head.given = run.baseline.start_for(run.model.head)
    number = sum(run.data.counts["val"].values())
    propose(run.trainer, folder, results, limited(number, run.data.batch_size * run.trainer.world_size, run.trainer.limit_val_batches))
    return results


def _evaluate(cfg: DictConfig, run: Run, baseline: Results | None, found: Results) -> Results:
    """Metrics of the best checkpoint on val and test. Adds those of a head that was only fitted to `found` as they become known."""
    checkpoints = Path(cfg.paths.run, "checkpoints")
    files = [logger for logger in run.trainer.loggers if isinstance(logger, MetricsFile)]
    for file in files:
        file.trains = False
    if run.probe_head and not run.trains:
        paths = [checkpoints / "last.ckpt", checkpoints / "best.ckpt"]
        return evaluate_fitted(run.trainer, run.model, run.data, run.probe_head, paths, found)
    if baseline and has_baseline_result(run):
        return baseline
    best = getattr(run.trainer.checkpoint_callback, "best_model_path", None) or None
    with logged_to(run.trainer, files):
        val = run.trainer.validate(run.model, run.data, ckpt_path=best, weights_only=True, verbose=False)[0]
    log_result(run.trainer, val)
    last = find_callback(run.trainer, LastCheckpoint)  # the result where no best epoch is kept
    stored = Path(best) if best is not None else last.path if last else None
    if stored is not None and (scores := find_callback(run.trainer, ValScores)):
        scores.add_to(stored, run.trainer)
    return {**val, **run.trainer.test(run.model, run.data, ckpt_path=best, weights_only=True, verbose=False)[0]}


def _reported(cfg: DictConfig, run: Run, kept: Baseline | None) -> ReportedNetwork | None:
    """The network that the report shows; `None` where no process can hold it. It is read from the checkpoint where its weights are sharded,
    and of a baseline, whose backbone has been trained since.
    """
    fitted, folder = kept or run, Path(cfg.paths.run)
    vectors = fitted.probe_head.train_vectors if fitted.probe_head else None
    if kept is None and keeps_whole_weights(type(run.trainer.strategy)):
        return ReportedNetwork(run.model.backbone, run.model.head, vectors)
    stored = checkpoint_in(folder) if kept else folder / "checkpoints" / "best.ckpt"
    if not stored.is_file():
        return None
    network = load(stored, trust=True)  # the run has imported its classes already
    return ReportedNetwork(network.backbone, network.head, vectors)
