"""Run `recipe=probe`: linear probes at every layer on features of one pass, the best one chosen on held-out images, its test accuracy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor

from ftlit.errors import UserError
from ftlit.features.extract import Features
from ftlit.formatting import count
from ftlit.lit.callbacks.recorder import MOST_FEATURES, items_of, predictions_of, to_half
from ftlit.lit.datamodules.indexed_images import IndexedImages
from ftlit.lit.features.feature_planner import WEIGHT_DTYPES
from ftlit.lit.hardware import describe_devices
from ftlit.models.pooling import POOLINGS, Pooling
from ftlit.printing import print_line, show
from ftlit.probes.layer_probes import Interval, LayerProbes, best_of, bootstrap, draw, write_csv, write_layers
from ftlit.probes.linear_probe import L2_PENALTIES, Probe
from ftlit.recipes.config.class_weights import class_weights_of, class_weights_text
from ftlit.recipes.config.hydra_internals import instantiate
from ftlit.recipes.console.plan_rows import PlanRow
from ftlit.recipes.console.probe_plan import TRAIN, TRAIN_AND_VAL, fitted_splits, images_read, limited, print_probe_plan, probe_rows
from ftlit.recipes.resuming.resume import write_config
from ftlit.recipes.run import artifacts
from ftlit.recipes.run.data import build_data
from ftlit.recipes.run.feature_setup import features_of, one_device, specs_of
from ftlit.recipes.run.parts import RunParts, check_indexed_images, check_one_process, load_parts
from ftlit.recipes.run.time_estimates import estimate_features
from ftlit.recipes.run_report.run_report import write_run, write_run_report
from ftlit.report.contents import Predictions
from ftlit.run_folder import BEST_OF, CROSS_VALIDATION, HELD_OUT_BY, PROBE_LAYERS, TRAIN_IMAGES, write_result


@dataclass(frozen=True)
class Repeat:
    """The result on one random sample of the training images.

    Args:
        probes: of every cut, kind and pooling, the highest cut first.
        best: the chosen one.
        held_out: what it was chosen on, as text.
        fitted_on: the splits that the probes are fitted on in the end.
        tests: the accuracy of each probe on test.
        predictions: of the chosen one, of the test images.
        features: `features` and `labels` of some test images.
    """

    probes: list[Probe]
    best: Probe
    held_out: str
    fitted_on: str
    tests: list[Interval]
    predictions: Predictions
    features: dict[str, Tensor]

    @property
    def cuts(self) -> list[str]:
        """The highest first."""
        return list(dict.fromkeys(str(probe.cut) for probe in self.probes))

    @property
    def test(self) -> Interval:
        """The accuracy of the chosen probe on test."""
        return next(test for probe, test in zip(self.probes, self.tests, strict=True) if probe is self.best)


def run(cfg: DictConfig) -> float:
    """Print the table, write `probe.csv`, `probe.png` and `result.json` to the run's folder.

    Returns:
        The mean held-out accuracy of the chosen probes (never the test accuracy, which must not choose the best job of a sweep); NaN where
        nothing was held out.
    """
    if cfg.resume:
        raise UserError(f"recipe=probe cannot be resumed: leave resume={str(cfg.resume).lower()} out; a new run reads cached features")
    check_one_process(cfg)
    parts = load_parts(cfg)
    probes: LayerProbes = instantiate(cfg.probe)
    per_class = cfg.data.get("per_class")
    if probes.repeats > 1 and per_class is None:
        raise UserError(
            f"probe.repeats={probes.repeats} draws random training samples: "
            "also give data.per_class=..., the number of examples per class in each sample"
        )
    if probes.repeats > 1 and "seed" not in cfg.data:
        raise UserError(
            f"probe.repeats={probes.repeats} gives another data.seed to each random sample, but this data has no option seed: "
            "add it to the function and to the config file of the data, see docs/extending.md#data-source"
        )
    check_data(cfg, parts.data)
    fitted_on = fitted_splits(parts.data, probes)
    parts = RunParts(parts.backbone, limited(parts.data, probes))
    rows = print_plan(cfg, probes, parts, fitted_on)
    repeats = []
    for i in range(probes.repeats):
        if probes.repeats > 1:
            print_line(f"random sample {i + 1} of {probes.repeats}:")
        data = limited(build_data(cfg, parts.backbone.input_spec, seed=cfg.data.seed + i), probes) if i else parts.data
        repeats.append(probe_layers(cfg, probes, RunParts(parts.backbone, data), fitted_on))
    summary = describe(repeats, per_class, parts.data.input_spec.noun)
    write_files(cfg, repeats)
    show(table_of(repeats))
    print_line(f"{summary}. Files in {cfg.paths.run}: probe.csv, {PROBE_LAYERS}, probe.png")
    if cfg.report:
        write_run(cfg, parts.data, [*rows, ("result", summary)])
        write_run_report(cfg, parts.data, repeats[0].predictions, repeats[0].features)
    return mean(nan if repeat.best.score is None else repeat.best.score for repeat in repeats)


def check_data(cfg: DictConfig, data: Any) -> None:
    """Refuse data modules that are not built in, and several labels per image."""
    check_indexed_images(cfg, data)
    if data.multilabel:
        raise UserError("recipe=probe needs one label per example, but these data have several")


def print_plan(cfg: DictConfig, probes: LayerProbes, parts: RunParts, fitted_on: str) -> list[PlanRow]:
    """Print what will be probed, where and for how long. Returns the rows."""
    trainer, backbone, data = one_device(cfg)(logger=False, enable_checkpointing=False), parts.backbone, parts.data
    specs = specs_of(backbone, backbone.cuts if probes.cuts is None else probes.cuts, poolings_tried(probes))
    number = images_read(data, probes.repeats)
    seconds = None if cfg.compile or not specs else estimate_features(trainer, backbone, data, [spec.cut for spec in specs], number)
    width = WEIGHT_DTYPES.get(str(trainer.precision), torch.float32).itemsize
    rows = probe_rows(
        cfg, backbone, data, probes, specs, fitted_on, devices=describe_devices(trainer), bytes_per_value=width, seconds=seconds
    )
    print_probe_plan(rows, backbone, specs)
    return rows


def poolings_tried(probes: LayerProbes) -> list[Pooling]:
    """The poolings of the features, in the order of the tables."""
    return [pooling for pooling in POOLINGS if pooling in probes.poolings]


def probe_layers(cfg: DictConfig, probes: LayerProbes, parts: RunParts, fitted_on: str) -> Repeat:
    """Fit the probes and choose one: on val, or, where training images are few, by cross-validation among them, so that val adds none."""
    backbone, data, noun = parts.backbone, parts.data, parts.data.input_spec.noun
    cuts = backbone.cuts if probes.cuts is None else probes.cuts
    with features_of(cfg, backbone, data, cuts, poolings=poolings_tried(probes)) as features:
        train = features["train"]
        if not train:
            raise UserError(
                f"probe.poolings={list(probes.poolings)}: not possible for features of {', '.join(cuts)}; give probe.poolings=[average]"
            )
        where = ", ".join(cuts) if len(cuts) < 4 else f"{len(cuts)} cuts"
        tried = f"{', '.join(probes.kinds)} on {', '.join(train)}-pooled features, {len(probes.l2 or L2_PENALTIES)} L2 penalties"
        tried = ", ".join([tried, *class_weights_text(cfg, data)])
        print_line(f"fitting linear probes at {where}: {tried}")
        valid = features["val"] if cfg.data.get("per_class") is None else None
        fitted = probes.at(train, valid, class_weights_of(cfg, data), refit=fitted_on == TRAIN_AND_VAL)
        best = best_of(fitted)
        val_size, train_size = len(data.collection.splits["val"]), len(train[best.pooling])
        held_out = f"{val_size} val {noun}" if valid else f"cross-validation on {train_size} training {noun}"
        tests = [bootstrap(logits.argmax(dim=1) == targets, probes.seed) for _, logits, targets in tested(fitted, features["test"])]
        return Repeat(fitted, best, held_out, fitted_on, tests, *tested_best(best, data, features["test"]))


def tested(probes: Sequence[Probe], test: Mapping[Pooling, Features]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Features, logits and labels of the test images for each probe."""
    for probe in probes:
        own = test[probe.pooling]
        assert probe.cut is not None and own.targets is not None
        vectors = own[probe.cut].read(range(len(own)))
        yield vectors, probe.logits(vectors).float(), own.targets


def tested_best(best: Probe, data: IndexedImages, test: Mapping[Pooling, Features]) -> tuple[Predictions, dict[str, Tensor]]:
    """Predictions of the chosen probe, and features of some test images, for the report."""
    ((vectors, logits, targets),) = tested([best], test)
    predictions = predictions_of(logits, targets, items_of(data.collection.splits["test"], range(len(targets))))
    some = slice(None, None, -(-len(targets) // MOST_FEATURES))
    wrong = logits.argmax(dim=1).cpu() != targets.cpu()
    return predictions, {"features": to_half(vectors[some]), "labels": targets[some].clone(), "wrong": wrong[some].clone()}


def write_files(cfg: DictConfig, repeats: Sequence[Repeat]) -> None:
    """Write `config.yaml`, `command.json`, `probe.csv`, `probe_layers.csv`, `probe.png` and `result.json`."""
    folder, first = Path(cfg.paths.run), repeats[0]
    folder.mkdir(parents=True, exist_ok=True)
    write_config(cfg)
    artifacts.write_command(folder)
    probes = [repeat.probes for repeat in repeats]
    write_csv(folder / "probe.csv", probes)
    write_layers(folder / PROBE_LAYERS, [(repeat.probes, repeat.tests) for repeat in repeats])
    several = f"; mean and standard deviation over {len(repeats)} random samples" if len(repeats) > 1 else ""
    chosen = [(repeat.best, repeat.test) for repeat in repeats]
    draw(folder / "probe.png", first.cuts[::-1], probes, chosen, f"held out: {first.held_out}{several}")
    write_result(folder, [result_of(repeat, cross_validated=cfg.data.get("per_class") is not None) for repeat in repeats])


def result_of(repeat: Repeat, *, cross_validated: bool) -> dict[str, Any]:
    """The chosen probe with its accuracies, as plain values; what it was chosen on, and among how many."""
    best, test = repeat.best, repeat.test
    chosen = {"cut": best.cut, "kind": best.kind, "pooling": best.pooling, "l2": best.l2, "test/fitted_on": repeat.fitted_on}
    chosen |= {TRAIN_IMAGES: best.samples} if repeat.fitted_on == TRAIN else {}
    held_out: dict[str, Any] = {"held_out/accuracy": best.score, "held_out/loss": best.losses.get(best.l2)}
    held_out |= {HELD_OUT_BY: CROSS_VALIDATION if cross_validated else "val", BEST_OF: len(repeat.probes)}
    return {**chosen, "objective": best.objective, **held_out, "test/accuracy": test.share, "low": test.low, "high": test.high}


def table_of(repeats: Sequence[Repeat]) -> Table:
    """A row per layer and pooling, top first: length of its features, held-out accuracy of each kind with its L2 penalty (also as
    scikit-learn's argument), or mean and deviation of several repeats.
    """
    kinds = list(dict.fromkeys(probe.kind for probe in repeats[0].probes))
    heading = "held-out accuracy" if len(repeats) > 1 else "held-out accuracy (L2)"
    table = Table("layer", "features", *(f"{kind}, {heading}" for kind in kinds))
    for cut in repeats[0].cuts:
        here = [probe for probe in repeats[0].probes if probe.cut == cut]
        for pooling, features in dict.fromkeys((probe.pooling, probe.weight.shape[1]) for probe in here):
            key = (cut, pooling)
            cells = [[p for repeat in repeats for p in repeat.probes if (p.cut, p.pooling, p.kind) == (*key, kind)] for kind in kinds]
            table.add_row(cut, f"{pooling}, {features:,}", *(_cell(probes, repeats) for probes in cells))
    return table


def _cell(probes: Sequence[Probe], repeats: Sequence[Repeat]) -> str:
    chosen = sum(probe is repeat.best for probe, repeat in zip(probes, repeats, strict=True))
    scores = [probe.score for probe in probes if probe.score is not None]
    text = with_deviation(scores) if scores else "-"
    if len(repeats) > 1:
        return f"{text} *{chosen}" if chosen else text
    text += f" ({', '.join(filter(None, (f'{probes[0].bound_sign}{probes[0].l2:.0e}', probes[0].sklearn)))})"
    return f"{text} *" if chosen else text


def with_deviation(values: Sequence[float]) -> str:
    """Mean, and standard deviation where there are several values."""
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def describe(repeats: Sequence[Repeat], per_class: int | None, noun: str) -> str:
    """The chosen probe, how it was chosen, and its test accuracy."""
    held_out, samples = repeats[0].held_out, repeats[0].best.samples
    fitted = "refitted on train + val" if repeats[0].fitted_on == TRAIN_AND_VAL else f"fitted on {samples:,} training {noun}"
    in_each = f"by {held_out.replace(' on ', ' on the ')} of each subset"
    how = f"on {held_out}, {fitted}" if per_class is None else in_each if held_out.startswith("cross") else f"on {held_out}"
    if len(repeats) == 1:
        return f"* marks the probe chosen {how}: {repeats[0].best.summary}; test accuracy with 95 % bootstrap interval {repeats[0].test}"
    accuracy = with_deviation([repeat.test.share for repeat in repeats])
    subsets = f"{len(repeats)} random subsets ({count(per_class, noun.removesuffix('s')) if per_class else noun} per class)"
    return f"*N marks a cut chosen in N of {subsets}, {how}; mean test accuracy of the chosen probes {accuracy}"
