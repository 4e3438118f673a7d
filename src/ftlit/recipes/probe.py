"""From config to a table of accuracy by layer: features of every cut from one pass, probes that are solved, one report on test."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lightning.pytorch as pl
from omegaconf import DictConfig
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from ftlit.errors import UserError
from ftlit.lit.callbacks.recorder import MOST_FEATURES, items_of, predictions_of, to_half
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.models.backbone import Backbone
from ftlit.models.pooling import POOLINGS
from ftlit.probes.layer_probes import Interval, LayerProbes, best_of, bootstrap, draw, write_csv
from ftlit.probes.linear_probe import L2_PENALTIES, Probe
from ftlit.recipes import finetune
from ftlit.recipes.config.hydra_internals import instantiate
from ftlit.recipes.config.validate import bind, check_input, check_labelled
from ftlit.recipes.run import artifacts as reporting
from ftlit.recipes.run import console as words
from ftlit.recipes.run.feature_setup import features_of
from ftlit.recipes.run.processes import several_processes
from ftlit.recipes.run.resume import write_config
from ftlit.report.contents import Predictions
from ftlit.run_folder import write_result


@dataclass(frozen=True)
class Look:
    """One draw of the training images: the probes at every cut, the chosen one, its accuracy on test."""

    probes: list[Probe]
    best: Probe
    tested: Interval
    held_out: str  # in words
    data: ImageData
    said: Predictions
    features: dict[str, Tensor]  # of some test images, and their labels

    @property
    def cuts(self) -> list[str]:
        """The highest first."""
        return list(dict.fromkeys(str(probe.cut) for probe in self.probes))


def run(cfg: DictConfig) -> float:
    """Print the table, write `probe.csv`, `probe.png` and `result.json` to the run's folder. Returns the held-out
    accuracy of what was chosen, on average (never that of test, by which no sweep shall choose); NaN where nothing was held out.
    """
    if cfg.resume:
        raise UserError("resume=true: probes take a minute and their features are stored; leave it out")
    finetune.quiet()
    bind(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    probing: LayerProbes = instantiate(cfg.probe)
    few = cfg.data.get("per_class")
    if probing.repeats > 1 and few is None:
        raise UserError(f"probe.repeats={probing.repeats} draws training images anew, and all are taken: give data.per_class too")
    if several_processes(cfg):
        raise UserError("recipe=probe runs in one process: give trainer=auto, or trainer.devices=1")
    backbone = instantiate(cfg.backbone)
    check_input(cfg, backbone.input_spec)
    looks = []
    for i in range(probing.repeats):
        if probing.repeats > 1:
            words.console().print(f"draw {i + 1} of {probing.repeats}:")
        looks.append(look(cfg, probing, backbone, cfg.data.seed + i))
    folder, first = Path(cfg.paths.run), looks[0]
    folder.mkdir(parents=True, exist_ok=True)
    write_config(cfg)
    write_csv(folder / "probe.csv", [look.probes for look in looks])
    chosen = [(look.best, look.tested) for look in looks]
    draw(folder / "probe.png", first.cuts[::-1], [look.probes for look in looks], chosen, f"held out: {first.held_out}{among(looks)}")
    write_result(folder, [result_of(look) for look in looks])
    words.console().print(table_of(looks))
    words.console().print(escape(f"{told(looks, few)}; probe.csv, probe.png: {folder}"), soft_wrap=True)
    if cfg.report:
        reporting.write_run(cfg, first.data, [("probe", told(looks, few)), *words.data_rows(first.data, first.data.input_spec.noun)])
        reporting.say_report(cfg, first.data, first.said, first.features)
    return mean(nan if look.best.score is None else look.best.score for look in looks)


def look(cfg: DictConfig, probing: LayerProbes, backbone: Backbone, seed: int) -> Look:
    """Solve and choose: on val, or, where training images are few, by cross-validation among these, so that val adds none."""
    data = instantiate(cfg.data, input_spec=backbone.input_spec, seed=seed)
    if type(data) is not ImageData:
        raise UserError(f"recipe=probe reads images in its own way: take one of ftlit's options of data, not {type(data).__name__}")
    check_labelled(data)
    if data.multilabel:
        raise UserError("recipe=probe tells one class of an image from the others, and these have several labels: take data with one")
    cuts = backbone.cuts if probing.cuts is None else probing.cuts
    with features_of(cfg, backbone, data, cuts, poolings=[way for way in POOLINGS if way in probing.poolings]) as features:
        train, test = features["train"], features["test"]
        if not train:
            raise UserError(f"probe.poolings={list(probing.poolings)}: features of {', '.join(cuts)} cannot be pooled so; give average")
        tried = f"{', '.join(probing.kinds)} on features pooled by {', '.join(train)}, {len(probing.l2 or L2_PENALTIES)} L2 penalties"
        words.console().print(f"solving at {', '.join(cuts) if len(cuts) < 4 else f'{len(cuts)} cuts'}: {tried}", soft_wrap=True)
        valid = features["val"] if cfg.data.get("per_class") is None else None
        probes = probing.at(train, valid)
        best = best_of(probes)
        targets = test[best.pooling].targets
        assert best.cut is not None and targets is not None
        vectors = test[best.pooling][best.cut].read(range(len(targets)))
        logits = best.logits(vectors).float()
        said = predictions_of(logits, targets, items_of(data.collection.splits["test"], range(len(targets))))
        kept = slice(None, None, -(-len(targets) // MOST_FEATURES))
        right = logits.argmax(dim=1) == targets
        noun = data.input_spec.noun
        held_out = (
            f"{len(data.collection.splits['val'])} {noun} of val" if valid else f"cross-validation among {len(train[best.pooling])} {noun}"
        )
        features_kept = {"features": to_half(vectors[kept]), "labels": targets[kept].clone()}
        return Look(probes, best, bootstrap(right, probing.seed), held_out, data, said, features_kept)


def result_of(look: Look) -> dict[str, Any]:
    """What was chosen, and its look at test."""
    best, tested = look.best, look.tested
    chosen = {"cut": best.cut, "kind": best.kind, "pooling": best.pooling, "l2": best.l2}
    held_out = {"held_out/accuracy": best.score, "held_out/loss": best.losses.get(best.l2)}
    return {**chosen, **held_out, "test/accuracy": tested.share, "low": tested.low, "high": tested.high}


def table_of(looks: Sequence[Look]) -> Table:
    """A row a layer and pooling, top first: length of its features, held-out accuracy of each kind; mean and deviation where there are
    several draws.
    """
    kinds = list(dict.fromkeys(probe.kind for probe in looks[0].probes))
    table = Table("layer", "features", *(f"{kind}, held-out accuracy{' (L2)' * (len(looks) == 1)}" for kind in kinds))
    for cut in looks[0].cuts:
        here = [probe for probe in looks[0].probes if probe.cut == cut]
        for pooling, features in dict.fromkeys((probe.pooling, probe.weight.shape[1]) for probe in here):
            row = (cut, pooling)
            cells = [[p for look in looks for p in look.probes if (p.cut, p.pooling, p.kind) == (*row, kind)] for kind in kinds]
            table.add_row(cut, f"{pooling}, {features:,}", *(_cell(probes, looks) for probes in cells))
    return table


def among(looks: Sequence[Look]) -> str:
    """Of how many draws the figures are."""
    return f"; mean and deviation of {len(looks)} draws" if len(looks) > 1 else ""


def _cell(probes: Sequence[Probe], looks: Sequence[Look]) -> str:
    chosen = sum(probe is look.best for probe, look in zip(probes, looks, strict=True))
    scores = [probe.score for probe in probes if probe.score is not None]
    text = spread(scores) if scores else "-"
    if len(looks) == 1:
        return f"{text} ({probes[0].bound_sign}{probes[0].l2:.0e}){' *' * chosen}"
    return text + f" *{chosen}" * (chosen > 0)


def spread(values: Sequence[float]) -> str:
    """Mean, and deviation where there are several."""
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def told(looks: Sequence[Look], few: int | None) -> str:
    """What was chosen, how, and its one look at test."""
    how = f"on {looks[0].held_out}, solved again on train and val" if few is None else f"by {looks[0].held_out}"
    if len(looks) == 1:
        best, tested = looks[0].best, looks[0].tested
        return f"* chosen {how}: {best.summary}; test accuracy {tested} (95 % of bootstraps)"
    accuracy = spread([look.tested.share for look in looks])
    return (
        f"*N: chosen in N draws, {how}; test accuracy {accuracy} over {len(looks)} draws of {few} {looks[0].data.input_spec.noun} a class"
    )
