"""Choice of the cut for a linear probe by measurements on few training images: test accuracy at the cut of each rule.

python benchmarks/cuts.py --data DATA [--names hymenoptera,malaria] [--draws 20] [--out benchmarks/results/cuts.json]

The rules are: always the top; the most accurate cut in cross-validation; the best LogME; the choice of `scenario=auto`. DATA is as in
quality.py. A draw samples a number of images per class from 80; the test images, at most 300 per class, are always the same. Photos use
squeezenet1_1 with ImageNet weights, digits the shipped glyph.
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
from _options import count, existing, interruptible, sources
from PIL import Image
from quality import NAMES, WEIGHTS, digits, images, split
from torch import Tensor

from ftlit import Backbone, extract_features, fit_probe, load_backbone
from ftlit.data.transforms import eval_transform
from ftlit.probes.advice import Depth, Measurements, advise
from ftlit.probes.logme import logme

SIZES = (4, 8, 16, 24)  # images per class, "few" for `ftlit.probes.advice`
POOL, MAX_TEST_IMAGES, BATCH = 100, 300, 32  # images per class; a fifth of the pool is val, which is not used here
CHOICES = ("top", "accuracy", "LogME", "scenario=auto")
Vectors = dict[str, Tensor]  # cut -> (N, C)


def vectors(backbone: Backbone, folder: Path, most: int, store: Path) -> tuple[Vectors, Tensor]:
    """Pooled features at every cut, and class numbers (N,), of at most `most` images per class."""
    view = eval_transform(backbone.input_spec)
    files = [(file, number) for number, label in enumerate(sorted(folder.iterdir())) for file in images(label)[:most]]
    parts = (files[begin : begin + BATCH] for begin in range(0, len(files), BATCH))
    batches = (torch.stack([view(Image.open(file).convert("RGB")) for file, _ in part]) for part in parts)
    found = extract_features(backbone, batches, backbone.cuts, cache=store)
    return {cut: found[cut].read(range(len(files))) for cut in found.cuts}, torch.tensor([number for _, number in files])


def chosen(features: Vectors, labels: Tensor) -> dict[str, str]:
    """The cut of each rule."""
    depths = [Depth(cut, fit_probe(own, labels, kind="ridge").score or 0.0, logme(own, labels)) for cut, own in features.items()]
    classes = int(labels.max()) + 1
    measured = Measurements(len(labels), classes, depths, len(labels), 1 / classes, steps=0)
    most_accurate = max(reversed(depths), key=lambda depth: depth.accuracy)
    best_logme = max(reversed(depths), key=lambda depth: depth.logme)
    cuts = (depths[-1].cut, most_accurate.cut, best_logme.cut, advise(measured).cut)
    return dict(zip(CHOICES, cuts, strict=True))


def measured(name: str, draws: int, data: Path, work: Path) -> Iterator[dict[str, Any]]:
    """A row for each size and rule: mean test accuracy, half-width of its interval, and the accuracy of each draw."""
    photos = name != "digits"
    backbone = load_backbone("squeezenet1_1", weights=str(data / WEIGHTS["squeezenet1_1"])) if photos else load_backbone("glyph")
    root = split(data / "images" / name if photos else digits(work / "digits"), work / "cells" / Path(name).name, POOL, 0)
    pool, labels = vectors(backbone, root / "train", POOL, work / "features")
    tested, truth = vectors(backbone, root / "test", MAX_TEST_IMAGES, work / "features")
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
        print(f"{name}, {size} images per class: {draws} draws", file=sys.stderr, flush=True)
        for choice, own in accuracies.items():
            mean, half = interval(list(own.values()))
            yield {"data": name, "per_class": size, "choice": choice, "accuracy": mean, "half": half, "accuracies": own}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A row per data set and size, a column per rule: the mean over the draws, and for rules other than the top the mean difference to the
    top with its interval and the difference of the worst draw.
    """
    lines = [f"| data, images per class | {' | '.join(CHOICES)} |", "|---" * (len(CHOICES) + 1) + "|"]
    for group in dict.fromkeys((row["data"], row["per_class"]) for row in rows):
        own = {row["choice"]: row for row in rows if (row["data"], row["per_class"]) == group}
        top = own["top"]
        cells = [cell(top, None)]
        for row in (own[choice] for choice in CHOICES[1:]):
            worst = min(row["accuracies"][draw] - top["accuracies"][draw] for draw in top["accuracies"])
            cells.append(
                f"{row['accuracy']:.3f} ({difference(row, top)}, worst {worst:+.3f})" if row["accuracies"] != top["accuracies"] else "same"
            )
        lines.append(f"| {Path(group[0]).name}, {group[1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run, write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=existing, default=os.environ.get("FTLIT_TEST_DATA"), help="default: FTLIT_TEST_DATA")
    parser.add_argument("--names", help=f"digits, folders of DATA/images, or paths of your own folders; default: {','.join(NAMES)}")
    parser.add_argument("--draws", type=count, default=20)
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    names = sources(parser, given.names.split(",") if given.names else NAMES, given.data)
    with interruptible(), tempfile.TemporaryDirectory() as work:
        rows = [row for name in names for row in measured(name, given.draws, given.data, Path(work))]
    if given.out:
        written(given.out, machine(), {"draws": given.draws}, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
