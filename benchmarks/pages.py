"""Update the tables of measurements in README.md and docs/ from the stored results: python benchmarks/pages.py

The text between `<!-- NAME.json -->` and `<!-- end -->` is rendered from `results/NAME.json`, that after
`<!-- summary -->` and `<!-- limits -->` from several.
"""

import json
import re
from pathlib import Path
from typing import Any

import advice
import averaging
import backbone_choice
import batchnorm
import calibration
import cuts
import faults
import halving
import heads
import novelty
import poolings
import quality
import several_cuts
import suspects
import training_settings
from _measure import Row, table
from extraction import many_images
from hardware import layer_parts, precision
from planted.fault import CAUGHT, Verdict

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("benchmarks*.md"))]
SECTION = re.compile(r"(<!-- (\w+)(?:\.json)? -->\n).*?(<!-- end -->)", re.DOTALL)
PEERS = {  # in the README's table: system of quality.json -> name in faults.json, and its page
    "ftlit scenario=auto": ("ftlit", "ftlit, `scenario=auto`"),
    "BackboneFinetuning": (
        "Lightning",
        "[BackboneFinetuning](https://lightning.ai/docs/pytorch/stable/api/lightning.pytorch.callbacks.BackboneFinetuning.html)",
    ),
    "finetuning-scheduler": ("finetuning-scheduler", "[finetuning-scheduler](https://github.com/speediedan/finetuning-scheduler)"),
    "fastai": (None, "[fastai](https://docs.fast.ai), `fine_tune`"),
}


def of_faults(found: dict[str, Any]) -> str:
    """The table of planted faults."""
    rows = [
        faults.Row(row["fault"], row["title"], row["planted"], {peer: Verdict(**verdict) for peer, verdict in row["verdicts"].items()})
        for row in found["rows"]
    ]
    versions = found["options"]["versions"]
    return f"{faults.table(rows)}\n\n{measured(found['machine'], {name: version for name, version in versions.items() if version})}"


def of_quality(found: dict[str, Any]) -> str:
    """The table of accuracy and time, and the table of differences."""
    peers = {name: found["machine"][name] for name in quality.PACKAGES}
    return f"{quality.table(found['rows'])}\n\n{quality.comparison(found['rows'])}\n\n{over_seeds(found, peers)}"


def of_cuts(found: dict[str, Any]) -> str:
    """The table of cuts for a linear probe."""
    return f"{cuts.table(found['rows'])}\n\n{found['options']['draws']} draws. {measured(found['machine'])}"


def of_advice(found: dict[str, Any]) -> str:
    """Regrets of the rule of `scenario=auto` and of simple ones."""
    return f"{advice.table(found['rows'])}\n\n{found['options']['seeds']} seeds. {measured(found['machine'])}"


def of_halving(found: dict[str, Any]) -> str:
    """Successive halving against the full grid."""
    rungs = ", ".join(f"{settings} to epoch {epochs}" for epochs, settings in found["options"]["rungs"])
    return f"{halving.table(found['rows'])}\n\nSettings: {rungs}. {measured(found['machine'])}"


def of_training_settings(found: dict[str, Any]) -> str:
    """Test accuracy of large scenarios with fewer epochs and without augmentation."""
    return f"{training_settings.table(found['rows'])}\n\n{found['options']['seeds']} seeds. {measured(found['machine'])}"


def of_backbone_choice(found: dict[str, Any]) -> str:
    """Accuracy of the candidates of `backbone=auto`, regret of its choice and of simple rules."""
    return f"{backbone_choice.table(found['rows'])}\n\n{found['options']['seeds']} seeds. {measured(found['machine'])}"


def of_heads(found: dict[str, Any]) -> str:
    """The gain of heads on several cuts and views."""
    return f"{heads.table(found['rows'])}\n\n{found['options']['seeds']} seeds. {measured(found['machine'])}"


def of_poolings(found: dict[str, Any]) -> str:
    """The accuracy of poolings of tokens."""
    return f"{poolings.table(found['rows'])}\n\n{found['options']['seeds']} seeds. {measured(found['machine'])}"


def of_averaging(found: dict[str, Any]) -> str:
    """The accuracy of averaged weights, on photos as they are and shifted."""
    return f"{averaging.table(found['rows'])}\n\n{found['options']['seeds']} seeds. {measured(found['machine'])}"


def of_several_cuts(found: dict[str, Any]) -> str:
    """The accuracy after training from a head on one layer and on several."""
    return f"{several_cuts.table(found['rows'])}\n\n{found['options']['seeds']} seeds. {measured(found['machine'])}"


def of_calibration(found: dict[str, Any]) -> str:
    """The tables of calibration."""
    versions = {name: found["machine"][name] for name in ("timm", "transformers")}
    tables = f"{calibration.table(found['rows'])}\n\n{calibration.table_of_sets(found['rows'])}"
    return f"{tables}\n\n{found['options']['seeds']} seeds. {measured(found['machine'], versions)}"


def of_suspects(found: dict[str, Any]) -> str:
    """The precision of planted wrong labels."""
    return f"{suspects.table(found['rows'])}\n\n{found['options']['seeds']} seeds. {measured(found['machine'])}"


def of_novelty(found: dict[str, Any]) -> str:
    """The table of distances from the training images."""
    return f"{novelty.table(found['rows'])}\n\n{found['options']['seeds']} seeds. {measured(found['machine'])}"


def of_batchnorm(found: dict[str, Any]) -> str:
    """The table of batch-norm policies."""
    return f"{batchnorm.table(found['rows'])}\n\n{over_seeds(found)}"


def over_seeds(found: dict[str, Any], peers: dict[str, str] | None = None) -> str:
    """The number of seeds, followed by `measured`."""
    options = found["options"]
    return f"{options['seeds']} seeds. {measured(found['machine'] | {'date': options['days']}, peers)}"


def of_overhead(found: dict[str, Any]) -> str:
    """The table of step time, memory and start-up time."""
    setting = "{rounds} rounds of {steps} steps, batches of {batch} images of {size} pixels".format(**found["options"])
    return f"{table([Row(**row) for row in found['rows']])}\n\n{setting}. {measured(found['machine'])}"


def of_rounds(found: dict[str, Any]) -> str:
    """A table of rows over rounds."""
    return f"{table([Row(**row) for row in found['rows']])}\n\n{found['options']['rounds']} rounds. {measured(found['machine'])}"


def of_layer_parts(found: dict[str, Any]) -> str:
    """Memory and time of training a part of each layer."""
    return f"{layer_parts.table(found['rows'])}\n\n{found['options']['rounds']} rounds. {measured(found['machine'])}"


def of_many_images(found: dict[str, Any]) -> str:
    """Time and memory of each part of a run by the number of images."""
    return f"{many_images.table(found['rows'])}\n\n{measured(found['machine'])}"


def of_precision(found: dict[str, Any]) -> str:
    """The accuracy and the advice in both precisions."""
    return f"{precision.table(found['rows'])}\n\n{measured(found['machine'])}"


def measured(machine: dict[str, Any], others: dict[str, str] | None = None) -> str:
    """Date, machine and versions of a measurement."""
    versions = {name: machine[name] for name in ("ftlit", "torch", "lightning")} | (others or {})
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "Lightning")
    gpus = f" and {machine['gpus']} {machine['gpu']} (CUDA {machine['cuda']})" if "gpu" in machine else ""
    return f"Measured {machine['date']} on {machine['cores']} cores ({machine['cpu']}){gpus}, Python {machine['python']}; {packages}."


LIMITED = ("overhead", "passes", "loading", "startup", "scale")  # results whose rows have limits
SECTIONS = {
    "faults": of_faults,
    "cuts": of_cuts,
    "advice": of_advice,
    "halving": of_halving,
    "training_settings": of_training_settings,
    "backbone_choice": of_backbone_choice,
    "heads": of_heads,
    "poolings": of_poolings,
    "averaging": of_averaging,
    "several_cuts": of_several_cuts,
    "suspects": of_suspects,
    "calibration": of_calibration,
    "novelty": of_novelty,
    "quality": of_quality,
    "quality_equal": of_quality,
    "quality_photos": of_quality,
    "batchnorm": of_batchnorm,
    "overhead": of_overhead,
    "overhead_gpu": of_overhead,
    "startup": of_rounds,
    "passes": of_rounds,
    "loading": of_rounds,
    "scale": of_rounds,
    "many_images": of_many_images,
    "device": of_rounds,
    "precision": of_precision,
    "layer_parts": of_layer_parts,
}


def of_summary() -> str:
    """The README's table: faults that are noticed, and accuracy and time with few images, of ftlit and the libraries nearest to it."""
    faults_found, quality_found = stored("faults"), stored("quality")
    measured_cells = {(row["system"], row["data"], row["per_class"]): row for row in quality_found["rows"] if row["epochs"] is None}
    columns = [("digits", 5), ("hymenoptera", 5), ("hymenoptera", 20)]
    names = ["digits, 5 per class", "photos of ants and bees, 5 per class", "the same, 20 per class"]
    lines = [f"| | faults prevented or reported | {' | '.join(names)} |", f"|{'---|' * (len(names) + 2)}"]
    for system, (peer, link) in PEERS.items():
        cells = [measured_cells[system, *column] for column in columns]
        scores = " | ".join(f"{cell['accuracy']:.3f} ± {cell['half']:.3f}, {cell['seconds']:.1f} s" for cell in cells)
        lines.append(f"| {link} | {noticed(faults_found['rows'], peer)} | {scores} |")
    seeds = quality_found["options"]["seeds"]
    title = f"Mean test accuracy over {seeds} seeds with its 95 % interval, and median time from files to test accuracy, on two CPU cores."
    return "\n".join(lines) + f"\n\n{title}"


def of_limits() -> str:
    """All measurements of speed and memory that have a limit, and whether they meet it."""
    rows = [Row(**row) for name in LIMITED for row in stored(name)["rows"] if row["target"]]
    cells = stored("precision")["rows"]
    same = sum(row["same_advice"] for row in cells)
    rows.append(Row("the same advice in the default precision as in float32", same, len(cells), same / len(cells), ">= 0.9", "cells"))
    header, line, *body = table(rows).splitlines()
    verdicts = [f"{text} {'yes' if within(row) else '**no**'} |" for text, row in zip(body, rows, strict=True)]
    return "\n".join([f"{header} met |", f"{line}---|", *verdicts])


def within(row: Row) -> bool:
    """Whether a row meets its target: the ratio, or where nothing is compared, the value itself."""
    sign, limit, *_ = row.target.split()
    value = row.ours if row.ratio is None else row.ratio
    return value <= float(limit) if sign == "<=" else value >= float(limit)


def noticed(rows: list[dict[str, Any]], peer: str | None) -> str:
    """How many of the planted faults a library prevents or reports; empty where it was not tried."""
    if peer is None:
        return "not measured"
    return f"{sum(row['verdicts'][peer]['outcome'] in CAUGHT for row in rows)} of {len(rows)}"


def stored(name: str) -> dict[str, Any]:
    """A stored run."""
    return json.loads((RESULTS / f"{name}.json").read_text())  # type: ignore[no-any-return]


COMBINED = {"summary": of_summary, "limits": of_limits}  # of several results


def rendered(text: str) -> str:
    """The text of a page with each of its sections rendered again."""

    def body(found: re.Match[str]) -> str:
        name = found[2]
        return f"{found[1]}{COMBINED[name]() if name in COMBINED else SECTIONS[name](stored(name))}\n{found[3]}"

    return SECTION.sub(body, text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rendered(page.read_text()))
