"""Find planted wrong labels among training examples: the precision of three orders, and what `suspects.csv` lists.

python benchmarks/suspects.py --data DATA [--names digits,trec] [--seeds 3] [--out benchmarks/results/suspects.json]

DATA is as in heads.py. In each seed 5 % of the labels are replaced by another class. The head is that of a run with few images: four
layers (`blend`), and on photos four augmented views. Photos have 96 pixels for squeezenet1_1, 224 for efficientnet_lite0.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import heads
import torch
from _measure import machine, written
from _options import count, existing, interruptible
from torch import Tensor

from ftlit import Backbone, load_backbone
from ftlit.probes.fitted_head.head_probe import HeldOutLogits, fit_head
from ftlit.probes.fitted_head.suspects import suspects_of
from ftlit.probes.layer_probes import LayerProbes
from ftlit.probes.linear_probe import L2_PENALTIES

SHARE, FOUR_CUTS = 0.05, -4
L2 = L2_PENALTIES[::3]  # a third of those of a run: the same choice in a third of the time
SMALL, WEIGHTS = "squeezenet1_1, 96", "squeezenet1_1_imagenet_torchvision.pth"
TEXTS, PHOTOS = "all-MiniLM-L6-v2", "efficientnet_lite0, 224"
CELLS = [  # data, network, at most so many examples of each class
    ("digits", "glyph", 100),
    ("trec", TEXTS, 150),
    ("trec", TEXTS, 300),
    ("hymenoptera", SMALL, 200),
    ("hymenoptera", PHOTOS, 200),
    ("cats_dogs", SMALL, 200),
    ("cats_dogs", PHOTOS, 200),
    ("sign_digits", SMALL, 50),
    ("malaria", SMALL, 250),
]
SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # probabilities (N, K) and labels (N,) -> (N,), the lowest first
    "self-confidence": lambda p, y: own(p, y),
    "margin": lambda p, y: own(p, y) - others(p, y).amax(dim=1),
    "confident learning": lambda p, y: own(p, y) + 2.0 * ~above_threshold(p, y),
}


def own(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Probability of each label."""
    return probabilities.gather(1, labels[:, None])[:, 0]


def others(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Probabilities of the other classes; -1 for the label's."""
    return probabilities.scatter(1, labels[:, None], -1.0)


def above_threshold(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Whether the most probable class among those at or above their thresholds is another one; a threshold is the mean probability of a
    class on its own examples (Northcutt et al. 2021).
    """
    limits = torch.stack([probabilities[labels == label, label].mean() for label in range(probabilities.shape[1])])
    reached = torch.where(probabilities >= limits, probabilities, -1.0).max(dim=1)
    return (reached.values >= 0) & (reached.indices != labels)


def planted(labels: Tensor, classes: int, seed: int) -> Tensor:
    """The labels, a share of them replaced by another class."""
    draw = torch.Generator().manual_seed(seed)
    number = round(SHARE * len(labels))
    places = torch.randperm(len(labels), generator=draw)[:number]
    given = labels.clone()
    given[places] = (labels[places] + torch.randint(1, classes, (number,), generator=draw)) % classes
    return given


def results(held_out: HeldOutLogits, true: Tensor) -> dict[str, Any]:
    """Precision at the planted number of each score, and the listed ones."""
    probabilities, wrong = held_out.logits.softmax(dim=1), true[held_out.places] != held_out.labels
    number = int(wrong.sum())
    found = {name: score(probabilities, held_out.labels).argsort()[:number] for name, score in SCORES.items()}
    listed = suspects_of(held_out)
    hits = sum(int(true[suspect.place]) != suspect.label for suspect in listed)
    right = sum(int(true[suspect.place]) == suspect.suggested != suspect.label for suspect in listed)
    precision = {name: float(wrong[places].double().mean()) for name, places in found.items()}
    return {"precision": precision, "planted": number, "listed": len(listed), "hits": hits, "right_class": right}


def backbone_of(data: Path, name: str, network: str) -> Backbone:
    """The network of a cell."""
    if network != SMALL:
        return heads.backbone_of(data, name, network.partition(",")[0])
    return load_backbone("squeezenet1_1", weights=data / "weights" / WEIGHTS, input_spec={"size": 96})


def measured(data: Path, name: str, network: str, per_class: int, seeds: int, work: Path) -> Iterator[dict[str, Any]]:
    """A row for each seed."""
    backbone = backbone_of(data, name, network)
    some = heads.draw(heads.examples(data, name, work)[0], per_class, 0)
    number = heads.VIEWS if name in heads.PHOTOS else 0
    views = [heads.features_of(backbone, some, work / "store", view) for view in range(1 + number)]
    true = views[0].targets
    assert true is not None
    classes = int(true.max()) + 1
    for seed in range(seeds):
        given = [replace(view, targets=planted(true, classes, seed)) for view in views]
        probe = fit_head(LayerProbes(l2=L2), given[0], given[1:], views[0].cuts[FOUR_CUTS:], "blend")
        assert probe.held_out_logits is not None
        found = results(probe.held_out_logits, true)
        yield {"data": name, "network": network, "examples": len(true), "seed": seed, "accuracy": probe.score, **found}


def _cell(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["data"], row["network"], row["examples"]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The means over the seeds of each cell."""
    lines = [f"| data, network | examples | {' | '.join(SCORES)} | listed | of them planted |", "|---" * (len(SCORES) + 4) + "|"]
    for cell in dict.fromkeys(_cell(row) for row in rows):
        own_rows = [row for row in rows if _cell(row) == cell]
        means = [sum(row["precision"][score] for row in own_rows) / len(own_rows) for score in SCORES]
        listed, hits = (sum(row[key] for row in own_rows) for key in ("listed", "hits"))
        name, network, examples = cell
        shown = [
            f"{name}, {network}",
            f"{examples:,}, {own_rows[0]['planted']} wrong",
            *(f"{mean:.3f}" for mean in means),
            f"{listed / len(own_rows):.1f}",
        ]
        lines.append(f"| {' | '.join(shown)} | {hits / max(listed, 1):.0%} |")
    return "\n".join(lines)


def main() -> None:
    """Run, write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=existing, default=os.environ.get("FTLIT_TEST_DATA"), help="default: FTLIT_TEST_DATA")
    parser.add_argument("--names", default=",".join(dict.fromkeys(name for name, _, _ in CELLS)))
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument("--work", type=Path, help="folder of the features; default: a temporary one")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with interruptible(), tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name, network, per_class in CELLS:
            if name in given.names.split(","):
                rows += measured(given.data, name, network, per_class, given.seeds, work)
                print(f"{name}, {network}, {per_class} per class: done", file=sys.stderr, flush=True)
                if given.out:
                    written(given.out, machine(("timm", "transformers")), {"seeds": given.seeds}, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
