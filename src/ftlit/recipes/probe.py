"""From config to a table of accuracy by layer: codes of every cut from one pass, probes that are solved, one report on test."""

import json
from pathlib import Path

import lightning.pytorch as pl
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.markup import escape
from rich.table import Table

from ftlit.backbone import Backbone
from ftlit.codes import Codes, evaluating
from ftlit.dataset import SPLITS, Split
from ftlit.errors import UserError
from ftlit.lit.extracting import EVALUATION, Extraction
from ftlit.lit.images import ImageData
from ftlit.probe import Probe
from ftlit.probing import Interval, Probing, best_of, bootstrap, draw, write_csv
from ftlit.recipes import finetune, words
from ftlit.recipes.binding import bind
from ftlit.sources import Form
from ftlit.store import Store


def run(cfg: DictConfig) -> float:
    """Print the table, write `probe.csv`, `probe.png` and `result.json` to the run's folder. Returns the held-out accuracy of the best."""
    if cfg.resume:
        raise UserError("resume=true: probes take a minute and their codes are stored; leave it out")
    finetune.quiet()
    bind(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    probing: Probing = instantiate(cfg.probe)
    backbone = instantiate(cfg.backbone)
    data = instantiate(cfg.data, input_spec=backbone.input_spec)
    codes = codes_of(cfg, backbone, data, probing)
    probes = probing.at(codes["train"], codes["val"])
    best = best_of(probes)
    test = codes["test"]
    assert best.cut is not None and test.targets is not None
    tested = bootstrap(best.predict(test[best.cut].read(range(len(test)))) == test.targets, probing.seed)
    folder = Path(cfg.paths.run)
    words.write_folder(cfg, data.class_names)
    write_csv(folder / "probe.csv", probes)
    draw(folder / "probe.png", codes["train"].cuts, probes, best, tested)
    chosen = {"cut": best.cut, "kind": best.kind, "strength": best.strength, "val/accuracy": best.score}
    (folder / "result.json").write_text(
        json.dumps({**chosen, "test/accuracy": tested.share, "low": tested.low, "high": tested.high}, indent=1)
    )
    words.console().print(table_of(probes, best, codes["train"]))
    words.console().print(escape(told(best, tested, folder)), soft_wrap=True)
    return best.score


def codes_of(cfg: DictConfig, backbone: Backbone, data: ImageData, probing: Probing) -> dict[Split, Codes]:
    """Vectors of every cut, pooled as the network pools, of the evaluation view of each split; from the store where they are."""
    if type(data) is not ImageData or data.multilabel:
        raise UserError(
            "recipe=probe tells one class of an image from the others: take data with one label an image, in ftlit's own options"
        )
    trainer: pl.Trainer = instantiate(cfg.trainer, logger=False, enable_checkpointing=False)
    if trainer.world_size > 1:
        raise UserError("recipe=probe runs in one process: give trainer.devices=1")
    names = probing.cuts if probing.cuts is not None else backbone.cuts
    forms = [Form(backbone.cuts[backbone.index(name)], True) for name in names]
    backbone.to(trainer.strategy.root_device)
    trainer.precision_plugin.convert_module(backbone)
    extraction = Extraction(data, Store(cfg.paths.cache), dtype=None, seed=0)
    with evaluating(backbone):
        rows = extraction.rows(trainer, backbone, {(split, EVALUATION): forms for split in SPLITS}, None)
    return {
        split: Codes({form.cut: own for form, own in rows[split, EVALUATION].items()}, data.collection.targets(split)) for split in SPLITS
    }


def table_of(probes: list[Probe], best: Probe, codes: Codes) -> Table:
    """A row a layer, top first: length of its codes, held-out accuracy of each kind."""
    kinds = list(dict.fromkeys(probe.kind for probe in probes))
    table = Table("layer", "features", *(f"{kind}, val accuracy (strength)" for kind in kinds))
    for cut in reversed(codes.cuts):
        own = {probe.kind: probe for probe in probes if probe.cut == cut}
        cells = (f"{own[kind].score:.4f} ({own[kind].strength:.0e})" + " *" * (own[kind] is best) for kind in kinds)
        table.add_row(cut, f"{codes[cut].shape[0]:,}", *cells)
    return table


def told(best: Probe, tested: Interval, folder: Path) -> str:
    """The chosen probe and its one look at test."""
    return (
        f"* chosen on val, solved again on train and val: {best.kind} at {best.cut}, strength {best.strength:.1e}; "
        f"test accuracy {tested} (95 % of bootstraps); probe.csv, probe.png: {folder}"
    )
