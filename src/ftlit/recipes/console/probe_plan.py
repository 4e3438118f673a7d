"""The plan of `recipe=probe`: rows as in the plan of a run with training, and a table of the layers with the length of their features."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ftlit.features.spec import FeatureSpec
from ftlit.formatting import count, duration_in_words, shown_folder, size_in_words
from ftlit.lit.datamodules.indexed_images import IndexedImages
from ftlit.models.backbone import Backbone
from ftlit.models.pooling import pooled_size
from ftlit.printing import print_line, show
from ftlit.probes.layer_probes import LayerProbes
from ftlit.probes.linear_probe import L2_PENALTIES
from ftlit.recipes.config.class_weights import class_weights_text
from ftlit.recipes.console.plan_rows import PlanRow, data_rows, first_rows, print_rows
from ftlit.recipes.console.training_row import class_weight_note

GROUPS = ("experiment", "backbone", "data", "probe", "cache", "trainer")


TRAIN, TRAIN_AND_VAL = "train", "train + val"


def fitted_splits(data: IndexedImages, probes: LayerProbes) -> str:
    """The splits on which the chosen probe is fitted: `train + val`, or `train` where the number of training images was chosen, by
    `data.per_class` or by `probe.rows`, so that val must not add to it.
    """
    whole = data.per_class is None and probes.share_of(len(data.collection.splits["train"])) == 1
    return TRAIN_AND_VAL if whole else TRAIN


def limited(data: IndexedImages, probes: LayerProbes) -> IndexedImages:
    """The data with the training images on which the probes are fitted, `probe.rows` at most; a line says how many."""
    images = len(data.collection.splits["train"])
    if (share := probes.share_of(images)) == 1:
        return data
    some = data.with_share(share)
    fitted, noun = len(some.collection.splits["train"]), data.input_spec.noun
    alone = "" if data.per_class is not None else ", and never on val"
    print_line(
        f"note: probes are fitted on {fitted:,} of {images:,} training {noun} (the same share of each class){alone}. "
        "To fit them on all, give probe.rows=all"
    )
    return some


def probe_rows(
    cfg: DictConfig,
    backbone: Backbone,
    data: Any,
    probes: LayerProbes,
    specs: Sequence[FeatureSpec],
    fitted_on: str,
    *,
    devices: str,
    bytes_per_value: int,
    seconds: float | None,
) -> list[PlanRow]:
    """The plan of a run of `recipe=probe`.

    Args:
        cfg: the composed config.
        backbone: named layers.
        data: the images, of the first random sample where several are drawn.
        probes: which probes are fitted.
        specs: of the features that they are fitted on.
        fitted_on: the splits on which the chosen one is fitted.
        devices: description of the device and the number format.
        bytes_per_value: of a stored feature.
        seconds: estimate for the features, if there is one.
    """
    spec = data.input_spec
    rows = first_rows(cfg, backbone, spec.summary, GROUPS)
    rows += data_rows(cfg, data, spec.noun)
    rows += [("note", note) for note in class_weight_note(cfg, data, spec.noun)]
    rows.append(("probe", _probe_text(cfg, data, probes, specs, fitted_on)))
    if cfg.cache.get("folder"):
        size = sum(lengths(backbone, specs).values()) * images_read(data, probes.repeats) * bytes_per_value
        rows.append(("cache", f"features take up to {size_in_words(size)} in {shown_folder(cfg.cache.folder)}"))
    rows += [("device", devices), ("run", f"no training epochs, seed {cfg.seed}, folder {cfg.paths.run}")]
    if seconds is not None:
        time = duration_in_words(seconds)
        rows.append(("estimate", f"features about {time} (less where they are stored), and the time of the fits"))
    return rows


def _probe_text(cfg: DictConfig, data: Any, probes: LayerProbes, specs: Sequence[FeatureSpec], fitted_on: str) -> str:
    """What is fitted, how it is chosen, and what judges it."""
    noun, per_class = data.input_spec.noun, data.per_class
    fits, tried = count(len(specs) * len(probes.kinds), "linear probe"), len(probes.l2 or L2_PENALTIES)
    penalties = f"{tried} L2 penalties each" if tried > 1 else "one L2 penalty"
    text = ", ".join([f"{fits} ({', '.join(probes.kinds)})", penalties, *class_weights_text(cfg, data)])
    if probes.repeats > 1:
        text += f", in each of {probes.repeats} random samples of {per_class} {noun} per class"
    train = sum(data.counts["train"].values())
    if per_class is not None:
        how = "by cross-validation on train (val is not used)"
    elif fitted_on == TRAIN_AND_VAL:
        how = "on val, refitted on train + val"
    else:
        how = f"on val; all are fitted on {train:,} training {noun} alone, because probe.rows={probes.rows} leaves others out"
    return f"{text}; penalty, then layer, kind and pooling chosen {how}; test judges the chosen probe"


def lengths(backbone: Backbone, specs: Sequence[FeatureSpec]) -> dict[FeatureSpec, int]:
    """The length of the vectors of each spec."""
    shapes = backbone.feature_shapes
    return {spec: pooled_size(shapes[spec.cut], backbone.token_pool, spec.pooling or "average") for spec in specs}


def images_read(data: Any, repeats: int) -> int:
    """The images whose features are computed, at most: each random sample has its own training images."""
    return sum(sum(counts.values()) * (repeats if split == "train" else 1) for split, counts in data.counts.items())


def print_probe_plan(rows: Sequence[PlanRow], backbone: Backbone, specs: Sequence[FeatureSpec]) -> None:
    """Print the rows, and a table with a row for each layer that is probed, top first: the shape of its features, and their length by
    pooling.
    """
    print_rows(rows)
    sizes = lengths(backbone, specs)
    poolings = list(dict.fromkeys(spec.pooling or "average" for spec in specs))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    for name in ("output", *(f"{pooling}-pooled" for pooling in poolings)):
        table.add_column(name, justify="right", no_wrap=True)
    for cut in reversed(list(dict.fromkeys(spec.cut for spec in specs))):
        own = {spec.pooling or "average": f"{size:,}" for spec, size in sizes.items() if spec.cut == cut}
        table.add_row(cut, "x".join(map(str, backbone.feature_shapes[cut])), *(own.get(pooling, "-") for pooling in poolings))
    show(table)
