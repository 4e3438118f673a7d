"""Inputs unlike those of training: how well several distances tell other images from new images of the training classes.

python benchmarks/novelty.py --data DATA [--seeds 3] [--work FOLDER] [--out benchmarks/results/novelty.json]

DATA is as in heads.py. Features are those of the last cut, of a few training images; "known" are the test images of the same data set.
Letters are rendered at 8x8 pixels, the size of the digits. A row has, for each seed, the area under the ROC curve, and the share of known
and of other images above the 99 % quantile of held-out training images. `--work` keeps features.
"""

import argparse
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
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
)
SIZES = (8, 20)  # per class
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


def threshold(distance: Distance, train: Tensor) -> float:
    """The 99 % quantile of the distances of training images, each from others (5 folds)."""
    fold = torch.arange(len(train)) % novelty.FOLDS
    held = torch.cat([distance(train[fold != i], train[fold == i]) for i in range(novelty.FOLDS)]).sort().values
    return float(held[min(int(len(held) * novelty.QUANTILE) + 1, len(held)) - 1])


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
                    low, high, limit = distance(train, tested), distance(train, unlike), threshold(distance, train)
                    found["auroc"].append(float(roc_auc_score(truth, torch.cat([low, high]).tolist())))
                    for key, values in (("known_flagged", low), ("others_flagged", high)):
                        found[key].append(float((values > limit).double().mean()))
                yield {"data": name, "network": network, "others": others, "per_class": size, "distance": title, **found}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """AUROC and the flagged shares by pair and size."""
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
