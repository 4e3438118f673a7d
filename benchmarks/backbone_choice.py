"""Regret of `backbone=auto`, and of three simple rules: the largest backbone, the best on ImageNet, and the one with the best LogME.

python benchmarks/backbone_choice.py --data DATA --work FOLDER [--cells hymenoptera:90] [--seeds 5] [--out ...backbone_choice.json]

DATA is as in heads.py. A cell is a data set with a number of training images of each class. Regret is the test accuracy of the best
candidate, in the mean of the seeds, minus that of the picked one. CPU time is that of the images and heads that the choice asks for: the
time of an image, decoding included, is measured once for each candidate and data set, that of a fit each time.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from _ledger import interval
from _measure import machine, written
from _options import count, existing, interruptible
from heads import CUTS, HALF, NETWORKS, draw, examples, features_of
from torch import Tensor

from ftlit import Backbone, load_backbone
from ftlit.features.extract import Features
from ftlit.probes.backbone_choice import MeasuredBackbone, choose_backbone
from ftlit.probes.fitted_head.head_probe import HeadProbe, fit_head
from ftlit.probes.layer_probes import LayerProbes
from ftlit.probes.logme import logme

CELLS = "hymenoptera:90,cats_dogs:50,sign_digits:40,malaria:100,cats_dogs:400,malaria:1000"
POOL = 1.25  # times the training images of a cell: the images from which the seeds draw
TIMED = 64  # images by which the CPU time of one is measured
MAX_TEST = 500
CANDIDATES = {
    **NETWORKS,
    "mobilenet_v2, width 0.35": lambda folder: load_backbone(
        "mobilenet_v2", weights=folder / "mobilenetv2_w035_imagenet_torchvision_nohead.pth", width_mult=0.35, input_spec=HALF
    ),
}
IMAGENET = {  # accuracy as published, in per cent
    "squeezenet1_1": 58.2,
    "mobilenet_v2": 71.9,
    "efficientnet_lite0": 75.5,
    "mobilevit_xxs": 69.0,
    "mobilenet_v2, width 0.35": 60.3,
}
WITHOUT = "efficientnet_lite0"  # left out in the second half of the table
SPEED_ROUNDS, SPEED_BATCH = 8, 8


class InMemory:
    """Features of one cut in memory, read as those on disk are."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors, self.shape, self.dtype = vectors, tuple(vectors.shape[1:]), vectors.dtype
        self.row_bytes = vectors[0].numel() * vectors.element_size()

    def __len__(self) -> int:
        return len(self.vectors)

    def read(self, places: Any) -> Tensor:
        """Features at these places."""
        return self.vectors[torch.as_tensor(list(places))]


def subset(cuts: dict[str, Tensor], labels: Tensor, places: Sequence[int]) -> Features:
    """The features of some images."""
    return Features({cut: InMemory(own[list(places)]) for cut, own in cuts.items()}, labels[list(places)])  # type: ignore[misc]


def of_network(data: Path, cell: str, network: str, work: Path, pool: Sequence[Any], test: Sequence[Any]) -> dict[str, Any]:
    """Features of the pool and the test images at the upper cuts, CPU seconds of an image, speed and size; kept in the folder."""
    file = work / f"{cell.replace(':', '-')}-{network}.pt"
    if not file.is_file():
        backbone = CANDIDATES[network](data / "weights").eval()
        backbone.to(memory_format=torch.channels_last)
        with tempfile.TemporaryDirectory() as fresh:
            started = time.process_time()
            features_of(backbone, pool[:TIMED], Path(fresh))
            seconds = (time.process_time() - started) / len(pool[:TIMED])
        found = [features_of(backbone, some, work / "store") for some in (pool, test)]
        cuts = backbone.cuts[-CUTS:]
        both = [{cut: own[cut].read(range(len(own))) for cut in cuts} for own in found]
        about = {
            "seconds": seconds,
            "speed": speed_of(backbone),
            "parameters": sum(tensor.numel() for tensor in backbone.parameters()),
            "bytes": sum(tensor.numel() * tensor.element_size() for tensor in backbone.state_dict().values()),
        }
        torch.save({"about": json.dumps(about), "pool": both[0], "test": both[1]}, file)
        print(f"{cell}, {network}: {seconds:.3f} s an image", file=sys.stderr, flush=True)
    stored = torch.load(file, weights_only=True)
    return {**json.loads(stored["about"]), "pool": stored["pool"], "test": stored["test"]}


def speed_of(backbone: Backbone) -> float:
    """Images per second of the network alone."""
    batch = torch.randn(SPEED_BATCH, 3, 224, 224).to(memory_format=torch.channels_last)
    least = float("inf")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(SPEED_ROUNDS):
            started = time.perf_counter()
            backbone(batch)
            least = min(least, time.perf_counter() - started)
    return SPEED_BATCH / least


def accuracy(probe: HeadProbe, test: dict[str, Tensor], labels: Tensor) -> float:
    """On the test images."""
    with torch.no_grad():
        logits = probe.as_head()(*(test[cut] for cut in probe.parts[-1].cuts))
    return float((logits.argmax(dim=1) == labels).double().mean())


def measured(data: Path, cell: str, seeds: int, work: Path) -> Iterator[dict[str, Any]]:
    """A row for each seed: test accuracy and LogME of each candidate, and the choice with and without `WITHOUT`."""
    name, per_class = cell.split(":")
    known, test = examples(data, name, work)
    pool, test = draw(known, round(POOL * int(per_class)), 0), test[:MAX_TEST]
    labels, tested = (torch.tensor([label for _, label in some]) for some in (pool, test))
    found = {network: of_network(data, cell, network, work, pool, test) for network in CANDIDATES}
    place = {example: number for number, example in enumerate(pool)}
    for seed in range(seeds):
        some = [place[example] for example in draw(pool, int(per_class), seed + 1)]
        fits: dict[tuple[str, int], tuple[HeadProbe, float]] = {}

        def fit(network: str, images: int, some: list[int] = some, fits: Any = fits) -> tuple[HeadProbe, float]:
            """The head on a number of images, equally many of each class, and its CPU seconds."""
            if (network, images) not in fits:
                classes = int(labels.max()) + 1
                few = [some[i * (len(some) // classes) + j] for i in range(classes) for j in range(images // classes)]
                features, started = subset(found[network]["pool"], labels, few), time.process_time()
                probe = fit_head(LayerProbes(), features, (), features.cuts, "blend")
                fits[network, images] = probe, time.process_time() - started
            return fits[network, images]  # type: ignore[no-any-return]

        def measure(network: str, images: int, fit: Any = fit) -> MeasuredBackbone:
            held_out = fit(network, images)[0].held_out_logits
            assert held_out is not None
            return MeasuredBackbone(held_out.logits.argmax(1) == held_out.labels, found[network]["speed"], found[network]["bytes"])

        row: dict[str, Any] = {"cell": cell, "seed": seed, "candidates": {}}
        for network, own in found.items():
            top = [*own["pool"]][-1]
            row["candidates"][network] = {
                "accuracy": accuracy(fit(network, len(some))[0], own["test"], tested),
                "logme": logme(own["pool"][top][some], labels[some]),
                **{key: own[key] for key in ("seconds", "speed", "parameters")},
            }
        for key, left_out in (("auto", None), ("auto without", WITHOUT)):
            names = [network for network in CANDIDATES if network != left_out]
            asked: set[tuple[str, int]] = set()

            def noted(network: str, images: int, asked: set[tuple[str, int]] = asked, measure: Any = measure) -> MeasuredBackbone:
                asked.add((network, images))
                return measure(network, images)  # type: ignore[no-any-return]

            choice = choose_backbone(names, noted, len(some))
            seconds = sum(own * found[network]["seconds"] for network, own in choice.images.items())
            heads = sum(fits[one][1] for one in asked)
            cheapest = min(found[network]["seconds"] for network in names) * len(some)
            more = seconds - choice.images[choice.chosen] * found[choice.chosen]["seconds"]
            row[key] = {"chosen": choice.chosen, "ratio": (seconds + heads) / cheapest, "images": seconds / cheapest}
            row[key] |= {"others": more / cheapest, "heads": heads / cheapest}
        print(f"{cell}, seed {seed}: {row['auto']}", file=sys.stderr, flush=True)
        yield row


def picks(row: dict[str, Any], *, without: bool) -> dict[str, str]:
    """Rule -> the candidate that it picks."""
    candidates = {name: own for name, own in row["candidates"].items() if not (without and name == WITHOUT)}
    by = {
        "largest": lambda name: candidates[name]["parameters"],
        "best on ImageNet": IMAGENET.__getitem__,
        "LogME": lambda name: candidates[name]["logme"],
    }
    return {"auto": row["auto without" if without else "auto"]["chosen"], **{rule: max(candidates, key=key) for rule, key in by.items()}}


def regrets(rows: Sequence[dict[str, Any]], *, without: bool) -> dict[str, float]:
    """Rule -> its regret in a cell, whose rows these are."""
    names = [name for name in rows[0]["candidates"] if not (without and name == WITHOUT)]
    best = max(_mean([row["candidates"][name]["accuracy"] for row in rows]) for name in names)
    chosen = [(row, picks(row, without=without)) for row in rows]
    rules = chosen[0][1]
    return {rule: best - _mean([row["candidates"][own[rule]]["accuracy"] for row, own in chosen]) for rule in rules}


def _of(found: dict[str, dict[str, float]], rule: str) -> list[float]:
    return [own[rule] for own in found.values()]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy of each candidate by cell; regret of each rule; CPU time of the choice."""
    cells = {cell: [row for row in rows if row["cell"] == cell] for cell in dict.fromkeys(row["cell"] for row in rows)}
    names = [*rows[0]["candidates"]]
    lines = [f"| training images per class | {' | '.join(names)} | auto chooses |", "|---" * (len(names) + 2) + "|"]
    for cell, own in cells.items():
        means = [f"{_mean([row['candidates'][name]['accuracy'] for row in own]):.3f}" for name in names]
        chosen = [row["auto"]["chosen"] for row in own]
        often = ", ".join(f"{name} {chosen.count(name)}" for name in dict.fromkeys(chosen))
        lines.append(f"| {cell.replace(':', ', ')} | {' | '.join(means)} | {often} |")
    for title, without in (("Regret, all candidates", False), (f"Regret, without {WITHOUT}", True)):
        found = {cell: regrets(own, without=without) for cell, own in cells.items()}
        rules = [*next(iter(found.values()))]
        lines += ["", f"| {title} | {' | '.join(rules)} | CPU time of auto |", "|---" * (len(rules) + 2) + "|"]
        key = "auto without" if without else "auto"
        for cell, regret in found.items():
            parts = [_mean([row[key][part] for row in cells[cell]]) for part in ("ratio", "heads", "others")]
            cpu = "{:.1f} ({:.1f} heads, {:.1f} features of others)".format(*parts)
            lines.append(f"| {cell.replace(':', ', ')} | {' | '.join(f'{regret[rule]:.3f}' for rule in rules)} | {cpu} |")
        ends = (f"{mean:.3f}" + (f" ± {half:.3f}" if half else "") for mean, half in (interval(_of(found, rule)) for rule in rules))
        lines.append(f"| mean | {' | '.join(ends)} | {_mean([row[key]['ratio'] for row in rows]):.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Run, write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=existing, default=os.environ.get("FTLIT_TEST_DATA"), help="default: FTLIT_TEST_DATA")
    parser.add_argument("--work", type=Path, required=True, help="folder of the features")
    parser.add_argument("--cells", default=CELLS)
    parser.add_argument("--seeds", type=count, default=5)
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with interruptible():
        for cell in given.cells.split(","):
            rows += measured(given.data, cell, given.seeds, given.work)
            if given.out:
                written(given.out, machine(("timm",)), {"seeds": given.seeds, "cells": given.cells}, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
