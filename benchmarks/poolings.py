"""Poolings of tokens, and of the positions of maps: test accuracy of heads on frozen features of few examples.

python benchmarks/poolings.py --data DATA [--names trec,sst2] [--sizes 16,80] [--seeds 3] [--out benchmarks/results/poolings.json]

DATA is as in heads.py. Texts: MiniLM at encoder.5; photos: mobilevit_xxs, whose last features are a map without a class token. Linear
probes as `head=linear_probe head.cuts=null data.views=0` fits them; those of `TRAINED` take `STEPS` steps of AdamW on the same features.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _ledger import interval
from _measure import machine, written
from _options import count, existing, interruptible
from heads import BATCH, TEXTS, Example, backbone_of, draw, examples
from PIL import Image
from torch import Tensor, nn

from ftlit import Backbone
from ftlit.data.transforms import eval_transform
from ftlit.inference.network_inputs import tensor_of
from ftlit.models.heads import AttentionHead, LinearHead
from ftlit.models.pooling import TOKEN_POOLINGS, pool, token_pool_of
from ftlit.probes.linear_probe import fit_probe

NAMES = (*TEXTS, "hymenoptera", "cats_dogs", "sign_digits")
TEXT_CUT, PHOTO_NETWORK = "encoder.5", "mobilevit_xxs"
STEPS, RATE = 1000, 1e-3
TRAINED = ("linear, trained", "attention, trained")
HEADS = (*TOKEN_POOLINGS, *TRAINED)
BASE = {"class_token": "mean", "class_token_mean": "mean", "attention, trained": "linear, trained"}  # head -> what it is compared with


def features_of(backbone: Backbone, some: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Features at the last cut as they come out, and labels."""
    transform = partial(tensor_of, spec=backbone.input_spec) if backbone.cuts[-1] == TEXT_CUT else _photo(backbone)
    found = []
    with torch.inference_mode():
        for begin in range(0, len(some), BATCH):
            found.append(backbone(torch.stack([transform(content) for content, _ in some[begin : begin + BATCH]])))
    return torch.cat(found).clone(), torch.tensor([label for _, label in some])


def _photo(backbone: Backbone) -> Any:
    transform = eval_transform(backbone.input_spec)  # type: ignore[arg-type]
    return lambda file: transform(Image.open(file).convert("RGB"))


def trained(head: nn.Module, features: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """The head after `STEPS` steps of AdamW, with a cosine schedule."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(len(labels), (BATCH,))
        nn.functional.cross_entropy(head(features[chosen]), labels[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return head


def accuracies(backbone: Backbone, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], seed: int) -> dict[str, float]:
    """Test accuracy of each head that the features allow."""
    classes, found = int(test[1].max()) + 1, {}
    maps = train[0].ndim == 4
    for pooling in ("mean",) if maps else TOKEN_POOLINGS:
        vectors = [pool(features, token_pool_of(backbone.token_pool, pooling)) for features, _ in (train, test)]
        found[pooling] = _accuracy(fit_probe(vectors[0], train[1]).as_head(), vectors[1], test[1])
    mean = [pool(features, backbone.token_pool) for features, _ in (train, test)]
    width = mean[0].shape[1]
    torch.manual_seed(seed)
    found["linear, trained"] = _accuracy(trained(LinearHead(width, classes), mean[0], train[1], seed), mean[1], test[1])
    torch.manual_seed(seed)
    found["attention, trained"] = _accuracy(trained(AttentionHead(width, classes), train[0], train[1], seed), test[0], test[1])
    return found


@torch.no_grad()
def _accuracy(head: nn.Module, features: Tensor, labels: Tensor) -> float:
    return float((head(features).argmax(dim=1) == labels).double().mean())


def measured(data: Path, name: str, sizes: Sequence[int], seeds: int) -> Iterator[dict[str, Any]]:
    """A row for each size and head: the accuracy of each seed."""
    backbone = backbone_of(data, name, PHOTO_NETWORK).eval()
    backbone = backbone.upto(TEXT_CUT) if name in TEXTS else backbone
    known, test = examples(data, name, Path())
    held = features_of(backbone, test)
    for size in sizes:
        runs = [accuracies(backbone, features_of(backbone, draw(known, size, seed)), held, seed) for seed in range(seeds)]
        for head in runs[0]:
            yield {"data": name, "per_class": size, "head": head, "accuracies": {str(seed): run[head] for seed, run in enumerate(runs)}}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean accuracy of each head and cell, with the 95 % interval over the seeds of the difference to its `BASE`."""
    of = {(row["data"], row["per_class"], row["head"]): row["accuracies"] for row in rows}
    lines = [f"| data, per class | {' | '.join(HEADS)} |", "|---" * (len(HEADS) + 1) + "|"]
    for name, size in dict.fromkeys((row["data"], row["per_class"]) for row in rows):
        lines.append(f"| {name}, {size} | {' | '.join(_cell(of, name, size, head) for head in HEADS)} |")
    return "\n".join(lines)


def _cell(of: dict[tuple[str, int, str], dict[str, float]], name: str, size: int, head: str) -> str:
    own = of.get((name, size, head))
    if own is None:
        return ""
    mean = f"{sum(own.values()) / len(own):.3f}"
    if head not in BASE:
        return mean
    gain, half = interval([own[seed] - of[name, size, BASE[head]][seed] for seed in own])
    return f"{mean} ({gain:+.3f}" + (f" ± {half:.3f})" if half is not None else ")")


def main() -> None:
    """Run, write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=existing, default=os.environ.get("FTLIT_TEST_DATA"), help="default: FTLIT_TEST_DATA")
    parser.add_argument("--names", default=",".join(NAMES))
    parser.add_argument("--sizes", default="16,80")
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    rows = []
    with interruptible():
        for name in given.names.split(","):
            rows += measured(given.data, name, [count(text) for text in given.sizes.split(",")], given.seeds)
            print(f"{name}: done", file=sys.stderr, flush=True)
    if given.out:
        written(given.out, machine(("timm", "transformers")), {"seeds": given.seeds, "sizes": given.sizes}, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
