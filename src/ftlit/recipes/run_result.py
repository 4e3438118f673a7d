"""The result of a run: which model it is, where that was fitted, and what `result.json` holds beside its metrics."""

from collections.abc import Mapping
from dataclasses import asdict
from math import isnan
from typing import Any

from omegaconf import DictConfig

from ftlit.intervals import accuracy_interval
from ftlit.lit.callbacks.best_checkpoint import BestCheckpoint
from ftlit.lit.callbacks.recorder import Recorder
from ftlit.lit.trainer_internals import find_callback
from ftlit.recipes.baseline import ACCURACY, Baseline, Results, judged_by
from ftlit.recipes.build_run import Run
from ftlit.recipes.config.candidates import choice_of_run
from ftlit.recipes.config.overrides import ignored_without_training
from ftlit.report.scores import reliability
from ftlit.run_folder import BASELINE, IGNORED, TRAIN_IMAGES, TRAINED


def has_baseline_result(run: Run) -> bool:
    """Whether no epoch was clearly better than the baseline."""
    best = find_callback(run.trainer, BestCheckpoint)
    return run.baseline is not None and best is not None and best.keeps_first


def _best_of_epochs(run: Run) -> float | None:
    """The accuracy on val of the best epoch of a run with a baseline, if epochs are judged by it."""
    best = judged_by(run.trainer) if run.baseline else None
    value = best.best_of_epochs if best and best.monitor == ACCURACY else None
    return None if value is None or isnan(value) else value


def score_of(run: Run, results: Results) -> float:
    """The accuracy on val; of a run with a baseline that of the best epoch, so that a search can tell settings of training apart."""
    trained = _best_of_epochs(run)
    return results[ACCURACY] if trained is None else trained


def judged_on(run: Run) -> tuple[dict[str, int], dict[str, str]]:
    """Split -> number of images whose share is its accuracy (empty if it is not one), and split -> where its model was fitted."""
    limits = (run.trainer.limit_val_batches, run.trainer.limit_test_batches)
    shares = not run.data.multilabel and all(isinstance(limit, float) and limit == 1 for limit in limits)  # the integer 1 is one batch
    images = {split: sum(counts.values()) for split, counts in run.data.counts.items()} if shares else {}
    return images, fitted_on(run.baseline if has_baseline_result(run) else run if not run.trains else None)


def fitted_on(fitted: Run | Baseline | None) -> dict[str, str]:
    """Split -> splits on which the model was fitted that it judges.

    Args:
        fitted: the parts with which its head was fitted; `None` for a trained one.
    """
    refitted = fitted is not None and fitted.probe_head is not None and fitted.probe_head.refits(fitted.trainer, fitted.data)
    return {"val": "train", "test": "train + val" if refitted else "train"}


def beside_result(run: Run, baseline: Results | None, images: Mapping[str, int]) -> dict[str, Any]:
    """What `result.json` holds of the training images, of the baseline, and of the best epoch beside it; of a run without training the
    options that it ignored.
    """
    number = {} if run.data.multilabel else {TRAIN_IMAGES: sum(run.data.counts["train"].values())}  # with several labels counted for each
    compared: dict[str, Any] = {}
    if baseline:
        compared = {**baseline, **{f"{split}/fitted_on": splits for split, splits in fitted_on(run.baseline).items()}}
        compared |= _intervals(baseline, images)
    if run.baseline and (effect := run.baseline.probe_head.view_effect):
        compared |= {f"augmentation/{name}": value for name, value in asdict(effect).items()}
    trained = _best_of_epochs(run)
    found = {f"{BASELINE}/{name}": value for name, value in compared.items()}
    return number | found | ({} if trained is None else {TRAINED: trained}) | _ignored(run)


def _ignored(run: Run) -> dict[str, list[str]]:
    """The names of the given options that only training reads, of a run that only fits its head."""
    if run.trains or run.probe_head is None:
        return {}
    words = ignored_without_training(augmented=bool(run.probe_head.reads(run.trainer, run.data)[2]))
    names = list(dict.fromkeys(word.lstrip("+~").partition("=")[0] for word in words))
    return {IGNORED: names} if names else {}


def details_of(
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
