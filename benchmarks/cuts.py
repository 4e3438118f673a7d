"""Where to put a head that alone trains, by measures on a few training images: test accuracy at the cut that each choice comes to.

python benchmarks/cuts.py --data DATA [--names hymenoptera,malaria] [--draws 20] [--out benchmarks/results/cuts.json]

The choices are: no lower cut at all; the most accurate in cross-validation; the best by LogME; that which `scenario=auto` takes.
DATA is as in quality.py. A draw takes so many images a class out of 80; the test images, 300 a class at most, stay. Photos run
through squeezenet1_1 with ImageNet's weights, digits through the shipped glyph.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from _ledger import cell, difference, interval
from _measure import machine, written
from _options import count, existing, sources, stoppable
from PIL import Image
from quality import NAMES, WEIGHTS, digits, images, split
from torch import Tensor

from ftlit import Backbone, extract_features, fit_probe, load_backbone
from ftlit.data.transforms import eval_transform
from ftlit.probes.advice import Depth, Measurements, advise
from ftlit.probes.logme import logme

SIZES = (4, 8, 16, 24)  # images a class: few, in the words of `ftlit.probes.advice`
POOL, TESTED, BATCH = 100, 300, 32  # of the pool a fifth is val, which has no part in this
CHOICES = ("top", "accuracy", "LogME", "scenario=auto")
Vectors = dict[str, Tensor]  # cut -> (N, C)


def vectors(backbone: Backbone, folder: Path, most: int, store: Path) -> tuple[Vectors, Tensor]:
    """Pooled features at every cut, and class numbers (N,), of at most so many images of each class."""
    view = eval_transform(backbone.input_spec)
    files = [(file, number) for number, label in enumerate(sorted(folder.iterdir())) for file in images(label)[:most]]
    parts = (files[begin : begin + BATCH] for begin in range(0, len(files), BATCH))
    batches = (torch.stack([view(Image.open(file).convert("RGB")) for file, _ in part]) for part in parts)
    found = extract_features(backbone, batches, backbone.cuts, cache=store)
    return {cut: found[cut].read(range(len(files))) for cut in found.cuts}, torch.tensor([number for _, number in files])


def chosen(features: Vectors, labels: Tensor) -> dict[str, str]:
    """Choice -> cut."""
    depths = [Depth(cut, fit_probe(own, labels, kind="ridge").score or 0.0, logme(own, labels)) for cut, own in features.items()]
    classes = int(labels.max()) + 1
    measured = Measurements(len(labels), classes, depths, len(labels), 1 / classes, steps=0)
    most_accurate = max(reversed(depths), key=lambda depth: depth.accuracy)
    evident = max(reversed(depths), key=lambda depth: depth.logme)
    cuts = (depths[-1].cut, most_accurate.cut, evident.cut, advise(measured).cut)
    return dict(zip(CHOICES, cuts, strict=True))


def measured(name: str, draws: int, data: Path, work: Path) -> Iterator[dict[str, Any]]:
    """A row for each size and choice: test accuracy, the mean with half its interval, and that of each draw."""
    photos = name != "digits"
    backbone = load_backbone("squeezenet1_1", weights=str(data / WEIGHTS["squeezenet1_1"])) if photos else load_backbone("glyph")
    root = split(data / "images" / name if photos else digits(work / "digits"), work / "cells" / Path(name).name, POOL, 0)
    pool, labels = vectors(backbone, root / "train", POOL, work / "features")
    tested, truth = vectors(backbone, root / "test", TESTED, work / "features")
    for size in SIZES:
        accuracies: dict[str, dict[str, float]] = {choice: {} for choice in CHOICES}
        for draw in range(draws):
            random = torch.Generator().manual_seed(draw)
            places = [(labels == label).nonzero()[:, 0] for label in range(int(labels.max()) + 1)]
            few = torch.cat([own[torch.randperm(len(own), generator=random)[:size]] for own in places])
            cuts = chosen({cut: own[few] for cut, own in pool.items()}, labels[few])
            probes = {cut: fit_probe(pool[cut][few], labels[few]) for cut in set(cuts.values())}
            for choice, cut in cuts.items():
                outputs = tested[cut] @ probes[cut].weight.T + probes[cut].bias
                accuracies[choice][str(draw)] = float(outputs.argmax(1).eq(truth).double().mean())
        print(f"{name}, {size} images a class: {draws} draws", file=sys.stderr, flush=True)
        for choice, own in accuracies.items():
            mean, half = interval(list(own.values()))
            yield {"data": name, "per_class": size, "choice": choice, "accuracy": mean, "half": half, "accuracies": own}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a cell, a column a choice: the mean over the draws; beside that of the top the mean difference to it with its interval, and
    the worst of a draw.
    """
    lines = [f"| data, images a class | {' | '.join(CHOICES)} |", "|---" * (len(CHOICES) + 1) + "|"]
    for group in dict.fromkeys((row["data"], row["per_class"]) for row in rows):
        own = {row["choice"]: row for row in rows if (row["data"], row["per_class"]) == group}
        top = own["top"]
        told = [cell(top, None)]
        for row in (own[choice] for choice in CHOICES[1:]):
            worst = min(row["accuracies"][draw] - top["accuracies"][draw] for draw in top["accuracies"])
            told.append(
                f"{row['accuracy']:.3f} ({difference(row, top)}, {worst:+.3f} at worst)"
                if row["accuracies"] != top["accuracies"]
                else "the same"
            )
        lines.append(f"| {Path(group[0]).name}, {group[1]} | {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=existing, default=os.environ.get("FTLIT_TEST_DATA"), help="FTLIT_TEST_DATA unless said")
    parser.add_argument("--names", help=f"digits, folders of DATA/images, or photos of your own; {','.join(NAMES)} unless said")
    parser.add_argument("--draws", type=count, default=20)
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    names = sources(parser, given.names.split(",") if given.names else NAMES, given.data)
    with stoppable(), tempfile.TemporaryDirectory() as work:
        rows = [row for name in names for row in measured(name, given.draws, given.data, Path(work))]
    if given.out:
        written(given.out, machine(), {"draws": given.draws}, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
