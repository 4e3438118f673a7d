"""Inputs unlike those of training: how well several distances tell other images from new images of the training classes.

python benchmarks/novelty.py --data DATA [--seeds 3] [--work FOLDER] [--out benchmarks/results/novelty.json]

DATA is as in heads.py. Features are those of the last cut, of a few training images; "known" are the test images of the same data set.
Letters are rendered at 8x8 pixels, the size of the digits. A row has, for each seed, the area under the ROC curve, and the share of known
and of other images above the threshold. The second table compares thresholds by the number of training images, drawn at random, for the
distance of ftlit, on `DRAWS` times as many seeds. `--work` keeps features.
"""

import argparse
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import torch
from _ledger import interval
from _measure import machine, written
from _options import count, existing, interruptible
from calibration import SMALL, network_of
from heads import MAX_TEST, Example, draw, examples, features_of
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import normalize

from ftlit.inference import novelty
from ftlit.inference.novelty import feature_subspace

PAIRS = (  # data set, network, others
    ("digits", "glyph", "letters"),
    ("hymenoptera", SMALL, "malaria"),
    ("malaria", SMALL, "hymenoptera"),
    ("cats_dogs", SMALL, "hymenoptera"),
    ("cats_dogs", SMALL, "sign_digits"),
    ("sign_digits", SMALL, "hymenoptera"),
)
SIZES = (8, 20)  # per class
THRESHOLDS: dict[str, Callable[[Tensor], float]] = {
    "99 % quantile": lambda held: float(held.sort().values[min(ceil((len(held) + 1) * 0.99), len(held)) - 1]),  # or the largest
    "tail": novelty._threshold,
}
TOTALS = (20, 40, 100, 400)  # training images
DRAWS = 8  # for each seed
LETTERS = "ABDEFGHJKMNPQRTUVWXYabdefhkmnpqrtwy"  # which look like no digit
Distance = Callable[[Tensor, Tensor], Tensor]  # of features (M, C) from training features (N, C) -> (M,)


def letters(folder: Path, number: int = 400) -> list[Example]:
    """Letters in DejaVu fonts, slightly rotated, as images of 8x8 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen, found = random.Random(0), []
    for i in range(number):
        font = ImageFont.truetype(findfont(chosen.choice(["DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono"])), 26)
        image = Image.new("L", (32, 32))
        ImageDraw.Draw(image).text((16, 16), LETTERS[i % len(LETTERS)], fill=255, font=font, anchor="mm")
        image.rotate(chosen.uniform(-12, 12)).resize((8, 8), Image.Resampling.BOX).save(path := folder / f"{i}.png")
        found.append((path, 0))
    return found


def of_subspace(directions: int) -> Distance:
    """The distance of ftlit, with a number of directions."""

    def distance(train: Tensor, other: Tensor) -> Tensor:
        with patch.object(novelty, "DIRECTIONS", directions):
            subspace = feature_subspace(train)
        assert subspace is not None
        return subspace.distances(other)

    return distance


def nearest(train: Tensor, other: Tensor) -> Tensor:
    """Mean cosine distance to the three nearest training images."""
    return 1 - (normalize(other, dim=1) @ normalize(train, dim=1).T).topk(3, dim=1).values.mean(dim=1)


def mahalanobis(train: Tensor, other: Tensor) -> Tensor:
    """Of standardised features, with the mean variance beyond 32 directions (probabilistic PCA)."""
    deviation, mean = torch.std_mean(train, dim=0)
    kept = deviation > 0.1 * deviation.median()
    train, other = (((values - mean) / deviation)[:, kept] for values in (train, other))
    number = min(32, len(train) // 2)
    _, values, directions = torch.linalg.svd(train, full_matrices=False)
    variances = values[:number].square() / (len(train) - 1)
    rest = (train.shape[1] - variances.sum()) / max(train.shape[1] - number, 1)
    inside = (other @ directions[:number].T).square()
    return (inside / variances).sum(dim=1) + (other.square().sum(dim=1) - inside.sum(dim=1)) / rest


DISTANCES: dict[str, Distance] = {
    **{f"subspace, {number} directions": of_subspace(number) for number in (4, 16, 64)},
    "3 nearest, cosine": nearest,
    "Mahalanobis": mahalanobis,
}


def held_out(distance: Distance, train: Tensor) -> Tensor:
    """The distances of training images, each from others (5 folds)."""
    fold = torch.arange(len(train)) % novelty.FOLDS
    return torch.cat([distance(train[fold != i], train[fold == i]) for i in range(novelty.FOLDS)])


def measured(data: Path, seeds: int, work: Path) -> Iterator[dict[str, Any]]:
    """A row for each pair, size and distance."""
    for name, network, others in PAIRS:
        backbone = network_of(data, name, network)
        known, test = examples(data, name, work)
        unknown = letters(work / "letters") if others == "letters" else examples(data, others, work)[1]

        def vectors(some: Sequence[Example], backbone: Any = backbone) -> Tensor:
            features = features_of(backbone, some, work / "store")
            return features[features.cuts[-1]].read(range(len(some))).float()

        tested, unlike = vectors(test), vectors(unknown[:MAX_TEST])
        truth = [0] * len(tested) + [1] * len(unlike)
        for size in SIZES:
            drawn = [vectors(draw(known, size, seed)) for seed in range(seeds)]
            for title, distance in DISTANCES.items():
                found: dict[str, list[float]] = {"auroc": [], "known_flagged": [], "others_flagged": []}
                for train in drawn:
                    low, high, limit = distance(train, tested), distance(train, unlike), novelty._threshold(held_out(distance, train))
                    found["auroc"].append(float(roc_auc_score(truth, torch.cat([low, high]).tolist())))
                    for key, values in (("known_flagged", low), ("others_flagged", high)):
                        found[key].append(float((values > limit).double().mean()))
                yield {"data": name, "network": network, "others": others, "per_class": size, "distance": title, **found}
        yield from by_number(vectors(known), tested, unlike, {"data": name, "network": network, "others": others}, seeds * DRAWS)


def by_number(known: Tensor, tested: Tensor, unlike: Tensor, cell: dict[str, Any], draws: int) -> Iterator[dict[str, Any]]:
    """A row for each number of training images and threshold."""
    distance = of_subspace(novelty.DIRECTIONS)
    truth = [0] * len(tested) + [1] * len(unlike)
    for total in dict.fromkeys(min(total, len(known)) for total in TOTALS):
        rows = {title: {**cell, "images": total, "threshold": title, "known_flagged": [], "others_flagged": []} for title in THRESHOLDS}
        auroc = []
        for seed in range(draws):
            train = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:total]]
            low, high, held = distance(train, tested), distance(train, unlike), held_out(distance, train)
            auroc.append(float(roc_auc_score(truth, torch.cat([low, high]).tolist())))
            for title, limit_of in THRESHOLDS.items():
                for key, values in (("known_flagged", low), ("others_flagged", high)):
                    rows[title][key].append(float((values > limit_of(held)).double().mean()))
        yield from ({**row, "auroc": auroc} for row in rows.values())


def table(rows: Sequence[dict[str, Any]]) -> str:
    """AUROC and the flagged shares by pair and size, then by the number of images and threshold."""
    return f"{_by_distance([row for row in rows if 'distance' in row])}\n\n{_by_threshold([row for row in rows if 'threshold' in row])}"


def _by_threshold(rows: Sequence[dict[str, Any]]) -> str:
    """For each pair and number of images: known images flagged, the most in a draw, and others flagged, with each threshold."""
    lines = [f"| known, others, training images | AUROC | {' | '.join(THRESHOLDS)} |", "|---" * (len(THRESHOLDS) + 2) + "|"]
    for group in dict.fromkeys((row["data"], row["others"], row["images"]) for row in rows):
        own = {row["threshold"]: row for row in rows if (row["data"], row["others"], row["images"]) == group}
        shares = [
            f"{mean(row['known_flagged']):.3f}, at most {max(row['known_flagged']):.2f}; {mean(row['others_flagged']):.2f}"
            for row in own.values()
        ]
        lines.append(f"| {', '.join(map(str, group))} | {mean(own['tail']['auroc']):.3f} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _by_distance(rows: Sequence[dict[str, Any]]) -> str:
    titles = list(dict.fromkeys(row["distance"] for row in rows))
    lines = [f"| known, others, per class | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    groups = list(dict.fromkeys((row["data"], row["others"], row["per_class"]) for row in rows))
    for group in groups:
        own = {row["distance"]: row for row in rows if (row["data"], row["others"], row["per_class"]) == group}
        lines.append(f"| {', '.join(map(str, group))} | {' | '.join(_cell([own[title]]) for title in titles)} |")
    lines.append(f"| mean | {' | '.join(_cell([row for row in rows if row['distance'] == title]) for title in titles)} |")
    return "\n".join(lines)


def _cell(rows: Sequence[dict[str, Any]]) -> str:
    auroc, low, high = (interval([x for row in rows for x in row[key]])[0] for key in ("auroc", "known_flagged", "others_flagged"))
    return f"{auroc:.3f} ({low:.2f}, {high:.2f})"


def main() -> None:
    """Run, write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=existing, default=os.environ.get("FTLIT_TEST_DATA"), help="default: FTLIT_TEST_DATA")
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument("--work", type=Path, help="folder of the features; default: a temporary one")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    with interruptible(), tempfile.TemporaryDirectory() as own:
        work = given.work or Path(own)
        work.mkdir(parents=True, exist_ok=True)
        rows = list(measured(given.data, given.seeds, work))
    if given.out:
        written(given.out, machine(), {"seeds": given.seeds}, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
