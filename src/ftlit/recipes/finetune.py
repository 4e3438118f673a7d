"""Run `recipe=finetune`: print the plan, fit the baseline, train, and evaluate the best checkpoint on val and test."""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ftlit.errors import UserError
from ftlit.features.stage_input import StageInput
from ftlit.finetuning.plan import Plan
from ftlit.inference.load_network import load
from ftlit.intervals import accuracy_interval
from ftlit.lit.callbacks.best_checkpoint import BestCheckpoint
from ftlit.lit.callbacks.exact_resume import LastCheckpoint
from ftlit.lit.callbacks.finite_loss import check_results
from ftlit.lit.callbacks.recorder import Recorder
from ftlit.lit.callbacks.val_scores import ValScores
from ftlit.lit.datamodules.feature_data import FeatureData
from ftlit.lit.hardware import describe_devices
from ftlit.lit.resumed_checkpoint import check_last
from ftlit.lit.strategies import SHARDED, compiled_layers_allowed
from ftlit.lit.trainer_internals import find_callback
from ftlit.models.heads import head_cuts
from ftlit.recipes.baseline import ACCURACY, Baseline, Results, checkpoint_in, evaluate_fitted, judged_by, propose
from ftlit.recipes.build_run import Run, build, plan_of
from ftlit.recipes.compare_start import StartPredictions, compare, predict_with_start
from ftlit.recipes.config.candidates import choice_of_run
from ftlit.recipes.console.plan_rows import plan_rows, print_plan
from ftlit.recipes.console.results_table import print_results
from ftlit.recipes.console.run_facts import RunFacts
from ftlit.recipes.run import artifacts
from ftlit.recipes.run.data_record import check_data
from ftlit.recipes.run.feature_setup import head_feature_bytes
from ftlit.recipes.run.launched import first_ahead
from ftlit.recipes.run.loggers import begin_loggers
from ftlit.recipes.run.resume import alone_in, checkpoint_of
from ftlit.recipes.run.time_estimates import estimate_run, limited
from ftlit.recipes.run.trainer import describe_fit, lost_processes
from ftlit.recipes.run.training_steps import rates_of, steps_per_epoch
from ftlit.recipes.run_report.run_pictures import ReportedNetwork
from ftlit.recipes.run_report.run_report import write_run, write_run_report
from ftlit.recipes.wise import choose_weights
from ftlit.report.scores import reliability
from ftlit.run_folder import BASELINE, TRAINED, write_result


def run(cfg: DictConfig) -> float:
    """Fine-tune by the config. Returns the best validation accuracy."""
    return fit(cfg, build(cfg))


def fit(cfg: DictConfig, run: Run) -> float:
    """Print the plan, fit the baseline, train, evaluate the best checkpoint on val and test, print the results. A head that is only fitted
    as a linear probe is refitted on train + val between the two. Returns the validation accuracy.
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
            before = _predict_with_start(cfg, run)
            baseline = _fit_baseline(cfg, run)
            run.trainer.fit(run.model, run.data, ckpt_path=run.resume_from, weights_only=True)
            choice = choose_weights(run.trainer, run.model, run.data, Path(cfg.paths.run)) if run.trains else None
            seconds = time.perf_counter() - started
            results = _evaluate(cfg, run, baseline)
        check_results(results)
        if first:
            kept = run.baseline if _keeps_baseline(run) else None
            recorder = kept.recorder if kept else run.recorder
            images, fitted_on = _judged(run)
            details = _details(cfg, results, images, fitted_on, None if run.data.multilabel else recorder)
            start = compare(run.start, run.data, before, recorder.tested) if run.start and recorder else None
            averaged = {} if choice is None else choice.record()
            write_result(
                cfg.paths.run, {**results, **details, **_compared(run, baseline, images), **averaged, **(start.record() if start else {})}
            )
            notes = [*describe_fit(run.trainer, seconds, trains=run.trains), *([choice.describe()] if choice else [])]
            print_results(cfg, results, notes, images, fitted_on, None if kept else baseline, start)
            if cfg.report and recorder and recorder.tested:
                write_run_report(cfg, run.data, recorder.tested, recorder.features, partial(_reported, cfg, run, kept))
    return _score(run, results)


def _begin(cfg: DictConfig, run: Run, plan: Plan) -> None:
    """Write and print what is known before training."""
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
    rows = plan_rows(cfg, run.model.backbone, run.data, plan, inputs, _facts(cfg, run, plan, inputs))
    rows[1:1] = run.start.rows() if run.start else []
    rows += [("note", note) for note in notes]
    print_plan(cfg, rows, plan, resuming, trains=run.trains)
    if cfg.report:
        write_run(cfg, run.data, rows, plan)


def _facts(cfg: DictConfig, run: Run, plan: Plan, inputs: Sequence[StageInput]) -> RunFacts:
    """What the plan says of this run beyond its schedule."""
    fitted, fits_head = run.baseline or run, run.probe_head is not None  # the parts with which the head is fitted
    views = fitted.probe_head.reads(fitted.trainer, fitted.data)[2] if fitted.probe_head else 0
    passes = 1 + views if fits_head else 0
    per_epoch = steps_per_epoch(run.trainer, run.data)
    epochs = -(-plan.steps // per_epoch) if plan.steps and per_epoch else None
    spans = [] if not run.trains else None if epochs is None else run.schedule.spans(epochs)
    parts = run.trainer, run.model.backbone, run.data, plan, spans, inputs
    return RunFacts(
        describe_devices(run.trainer),
        fits_head=fits_head,
        has_baseline=run.baseline is not None,
        baseline_competes=run.baseline is not None and judged_by(run.trainer) is not None,
        head_cuts=head_cuts(run.model.head),
        fitted_cuts=head_cuts(fitted.model.head),
        views=views,
        head_bytes=head_feature_bytes(fitted.trainer, fitted.data, fitted.model, fitted.probe_head) if fitted.probe_head else 0,
        start_head=run.start.head if run.start else "",
        refits_on_val=fitted.probe_head is not None and fitted.probe_head.refits(fitted.trainer, fitted.data),
        trains=run.trains,
        processes=run.trainer.world_size,
        steps_per_epoch=per_epoch,
        rates=rates_of(run.model, run.trainer, run.data) if run.trains else None,
        seconds=None if cfg.compile else estimate_run(*parts, head_passes=passes, tests=1 if run.baseline is None else 2),
    )


def _predict_with_start(cfg: DictConfig, run: Run) -> StartPredictions | None:
    """What the run of `init_from` predicts for the test images, before training changes its backbone; in the first process."""
    with first_ahead("start", cfg.rank_timeout):
        if run.start is None or not run.trainer.is_global_zero:
            return None
        return predict_with_start(run.start, run.data, str(run.trainer.precision), run.trainer.strategy.root_device)


def _fit_baseline(cfg: DictConfig, run: Run) -> Results | None:
    """Fit the baseline and start training from its head; `None`: the run has none. A run that is resumed fits it again, on cached features,
    while the backbone has the weights that it had then.
    """
    folder, last = Path(cfg.paths.run), find_callback(run.trainer, LastCheckpoint)
    if run.baseline is None or run.probe_head is None:
        return None
    results = run.baseline.fit(folder, last.run if last else None)
    run.probe_head.given = run.baseline.start_for(run.model.head)
    number = sum(run.data.counts["val"].values())
    propose(run.trainer, folder, results, limited(number, run.data.batch_size, run.trainer.limit_val_batches))
    return results


def _evaluate(cfg: DictConfig, run: Run, baseline: Results | None) -> Results:
    """Metrics of the best checkpoint on val and test."""
    checkpoints = Path(cfg.paths.run, "checkpoints")
    if run.probe_head and not run.trains:
        return evaluate_fitted(run.trainer, run.model, run.data, run.probe_head, [checkpoints / "last.ckpt", checkpoints / "best.ckpt"])
    if baseline and _keeps_baseline(run):
        return baseline
    best = getattr(run.trainer.checkpoint_callback, "best_model_path", None) or None
    val = run.trainer.validate(run.model, run.data, ckpt_path=best, weights_only=True, verbose=False)[0]
    if best is not None and (scores := find_callback(run.trainer, ValScores)):
        scores.add_to(Path(best), run.trainer)
    return {**val, **run.trainer.test(run.model, run.data, ckpt_path=best, weights_only=True, verbose=False)[0]}


def _keeps_baseline(run: Run) -> bool:
    """Whether no epoch was clearly better than the baseline."""
    best = find_callback(run.trainer, BestCheckpoint)
    return run.baseline is not None and best is not None and best.keeps_first


def _reported(cfg: DictConfig, run: Run, kept: Baseline | None) -> ReportedNetwork | None:
    """The network that the report shows; `None` where its weights are spread over processes. The backbone of a baseline has been trained
    since, so it is read from the checkpoint.
    """
    fitted = kept or run
    vectors = fitted.probe_head.train_vectors if fitted.probe_head else None
    if kept is not None:
        network = load(checkpoint_in(Path(cfg.paths.run)), trust=True)  # the run has imported its classes already
        return ReportedNetwork(network.backbone, network.head, vectors)
    return None if isinstance(run.trainer.strategy, SHARDED) else ReportedNetwork(run.model.backbone, run.model.head, vectors)


def _best_of_epochs(run: Run) -> float | None:
    """The accuracy on val of the best epoch of a run with a baseline, if epochs are judged by it."""
    best = judged_by(run.trainer) if run.baseline else None
    value = best.best_of_epochs if best and best.monitor == ACCURACY else None
    return None if value is None or isnan(value) else value


def _score(run: Run, results: Results) -> float:
    """The accuracy on val; of a run with a baseline that of the best epoch, so that a search can tell settings of training apart."""
    trained = _best_of_epochs(run)
    return results[ACCURACY] if trained is None else trained


def _judged(run: Run) -> tuple[dict[str, int], dict[str, str]]:
    """Split -> number of images whose share is its accuracy (empty if it is not one), and split -> where its model was fitted."""
    limits = (run.trainer.limit_val_batches, run.trainer.limit_test_batches)
    shares = not run.data.multilabel and all(isinstance(limit, float) and limit == 1 for limit in limits)  # the integer 1 is one batch
    images = {split: sum(counts.values()) for split, counts in run.data.counts.items()} if shares else {}
    return images, _fitted_on(run.baseline if _keeps_baseline(run) else run if not run.trains else None)


def _fitted_on(fitted: Run | Baseline | None) -> dict[str, str]:
    """Split -> splits on which the model was fitted that it judges.

    Args:
        fitted: the parts with which its head was fitted; `None` for a trained one.
    """
    refitted = fitted is not None and fitted.probe_head is not None and fitted.probe_head.refits(fitted.trainer, fitted.data)
    return {"val": "train", "test": "train + val" if refitted else "train"}


def _compared(run: Run, baseline: Results | None, images: Mapping[str, int]) -> dict[str, Any]:
    """What `result.json` holds of the baseline, and of the best epoch beside it."""
    compared: dict[str, Any] = {}
    if baseline:
        compared = {**baseline, **{f"{split}/fitted_on": splits for split, splits in _fitted_on(run.baseline).items()}}
        compared |= _intervals(baseline, images)
    trained = _best_of_epochs(run)
    return {f"{BASELINE}/{name}": value for name, value in compared.items()} | ({} if trained is None else {TRAINED: trained})


def _details(
    cfg: DictConfig, results: Results, images: Mapping[str, int], fitted_on: Mapping[str, str], recorder: Recorder | None
) -> dict[str, Any]:
    """What `result.json` holds beside the metrics: where each model was fitted, intervals of accuracy, the calibration error on test of the
    predictions that were recorded, and the backbone that was chosen among several.
    """
    details: dict[str, Any] = {f"{split}/fitted_on": splits for split, splits in fitted_on.items()}
    details |= _intervals(results, images)
    if recorder and recorder.tested:
        details["test/ece"] = reliability(recorder.tested)[3]
    if choice := choice_of_run(cfg.paths.run):
        details["backbone"] = choice["chosen"]
    return details


def _intervals(results: Results, images: Mapping[str, int]) -> Results:
    """The 95 % interval of the accuracy on each split with this number of images."""
    found: Results = {}
    for split, number in images.items():
        if f"{split}/accuracy" in results:
            low, high = accuracy_interval(results[f"{split}/accuracy"], number)
            found |= {f"{split}/accuracy_low": low, f"{split}/accuracy_high": high}
    return found
