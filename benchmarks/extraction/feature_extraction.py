"""Cost and gain of cached features compared with plain loops and Lightning's BackboneFinetuning, as a markdown table.

python benchmarks/extraction/feature_extraction.py --data FOLDER [--only pass,A,B,C,memory] [--rounds 5] [--json PATH]

FOLDER holds images/hymenoptera and weights/. The sides of a row alternate in one process; the numbers are medians. Data sets are listed and
networks are built before the measurement starts. Features are stored in a temporary folder (TMPDIR): `memory` needs 16 GB there.
"""

import argparse
import contextlib
import itertools
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from _measure import Row, compared, in_turn, machine, table, timed, written
from extraction.memory import memory
from extraction.parts import (
    BATCH,
    CLASSES,
    FLAGS,
    NETWORKS,
    PEER_TARGETS,
    Plain,
    backbone_of,
    fit,
    fresh,
    from_memory,
    photos,
    plain_images,
    plain_pass,
    scaled,
    scaling,
    split_photos,
    tuner,
)
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ftlit import Backbone, FeatureData, ImageData, Schedule, Stage, StagedFinetuning
from ftlit.data.dataset import SPLITS
from ftlit.data.samplers import EvalOrder
from ftlit.features.extract import extract_features
from ftlit.finetuning.presets import head_only
from ftlit.models.heads import LinearHead, MLPHead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("FTLIT_TEST_DATA"), help="default: FTLIT_TEST_DATA")
    parser.add_argument("--only", default=",".join(SECTIONS), help="comma-separated sections")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="networks of pass and A")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, help="loader processes of all sides; default: that of ImageData")
    parser.add_argument("--epochs", type=int, default=30, help="epochs of A")
    parser.add_argument("--peer-epochs", type=int, default=3, help="epochs of BackboneFinetuning in A that are really run, once")
    parser.add_argument("--tail-epochs", type=int, default=2, help="epochs of B that are really run, of 20")
    parser.add_argument("--sweep-epochs", type=int, default=10, help="epochs of a job of C")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of memory")
    parser.add_argument("--batches", type=int, default=400, help="measured batches of memory, for each batch size")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sections = given.only.split(",")
    if unknown := set(sections) - SECTIONS.keys():
        parser.error(f"no section {', '.join(sorted(unknown))}: give some of {', '.join(SECTIONS)}")
    if given.data is None and set(sections) != {"memory"}:
        parser.error("--data FOLDER, or FTLIT_TEST_DATA, is required")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    found, rows = machine(), []
    with tempfile.TemporaryDirectory(prefix="ftlit-bench-") as folder, contextlib.redirect_stdout(sys.stderr):
        for section in sections:
            rows += SECTIONS[section](given, Path(folder))
    print(table(rows))
    print("\nMeasured with", ", ".join(f"{name} {value}" for name, value in found.items()), f"; {given.rounds} rounds.")
    if given.json:
        written(given.json, found, vars(given), rows)


# Sections: (options, temporary folder) -> rows.


def one_pass(given: argparse.Namespace, folder: Path) -> list[Row]:
    """Compare `extract_features` with a plain loop, on JPEG files and on tensors in memory."""
    rows = []
    for name in given.networks.split(","):
        backbone = backbone_of(given, name).to(memory_format=torch.channels_last)  # on both sides
        data = photos(given, backbone)
        files = data.loader("train", EvalOrder(data.collection.splits["train"], BATCH))
        decoded = from_memory(*(torch.cat(parts) for parts in zip(*files, strict=True)), shuffle=False)
        for source, loader in {"JPEG files": files, "tensors": decoded}.items():
            plain_pass(backbone, loader)
            sides = {
                "extract_features": lambda b=backbone, x=loader: timed(lambda: extract_features(b, x, cache=fresh(folder / "pass"))),
                "plain loop": lambda b=backbone, x=loader: timed(lambda: plain_pass(b, x)),
            }
            measure = f"pass: {name}, {source}"
            rows.append(compared(measure, in_turn(sides, given.rounds), "extract_features", "plain loop", "<= 1.05"))
    return rows


def warm_up(given: argparse.Namespace, folder: Path) -> list[Row]:
    """A: epochs that train only the head. All sides start with a backbone and a data set and end with a trained head."""
    rows = []
    for name in given.networks.split(","):
        backbone = backbone_of(given, name)
        peer = Plain(backbone.num_features, deepcopy(backbone))  # in its usual form: default memory format
        backbone.to(memory_format=torch.channels_last)  # as FineTuner does; the same for the lower limit
        data, features, store = photos(given, backbone), backbone.num_features, folder / "A"
        images = plain_images(data, shuffle=False)

        def limit(backbone: Backbone = backbone, images: Any = images, features: int = features, epochs: int = given.epochs) -> None:
            fit(Plain(features), from_memory(*plain_pass(backbone, images)), epochs)

        def ours(
            backbone: Backbone = backbone, data: ImageData = data, features: int = features, epochs: int = given.epochs, store: Path = store
        ) -> None:
            staged = StagedFinetuning(head_only(backbone.layers_with_parameters))
            fit(tuner(backbone, LinearHead(features, CLASSES)), FeatureData(data, store, pooled=True), epochs, staged)

        limit(epochs=1)
        ours(epochs=1, store=fresh(folder / "once"))
        sides = {
            "limit": lambda work=limit: timed(work),
            "cold": lambda work=ours, store=store: timed(lambda: (fresh(store), work())),
            "warm": lambda work=ours: timed(work),
        }
        samples = in_turn(sides, given.rounds)
        with passes_through(backbone) as counted:
            ours(epochs=1)
        assert counted == [0], f"{counted[0]} passes through {backbone.cuts[0]} with a filled cache"

        never, loader = BackboneFinetuning(unfreeze_backbone_at_epoch=10**6), plain_images(data, shuffle=True)
        run = min(given.peer_epochs, given.epochs)
        samples["peer"] = [scaled(lambda e, p=peer, x=loader, n=never, k=run: fit(p, x, k, n, e), run, given.epochs)]
        what, note = f"A: {name}, {given.epochs} epochs of the head", scaling(run, given.epochs, "A, BackboneFinetuning (measured once)")
        rows.append(compared(f"{what}, empty cache / plain pass + head on tensors", samples, "cold", "limit", "<= 1.10"))
        rows.append(compared(f"{what}, filled cache / the same", samples, "warm", "limit", ""))
        target = f">= {PEER_TARGETS[name]}"
        rows.append(compared(f"{what}, BackboneFinetuning / empty cache", samples, "cold", "peer", target, inverse=True, note=note))
    return rows


@contextlib.contextmanager
def passes_through(backbone: Backbone) -> Iterator[list[int]]:
    """Count calls of the lowest layer, except on `meta`. A global hook is used because a hook on the layer would change its fingerprint."""
    lowest, counted = backbone.get_submodule(backbone.cuts[0]), [0]

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        counted[0] += module is lowest and not output.is_meta

    handle = register_module_forward_hook(count)
    try:
        yield counted
    finally:
        handle.remove()


def tail(given: argparse.Namespace, folder: Path) -> list[Row]:
    """B: epochs of layer4 and the head on features at layer3, from a filled cache compared with tensors in memory."""
    start = backbone_of(given, "resnet18")
    data, schedule, epochs = photos(given, start), Schedule([Stage(["head", "backbone.layer4"])]), 20
    head = LinearHead(start.num_features, CLASSES)
    order = EvalOrder(data.collection.splits["train"], BATCH)
    features = extract_features(start, data.loader("train", order), "layer3", cache=folder / "B-maps", pooled=False)
    maps = features["layer3"].read(range(len(features))), features.targets

    def work(batches: Any, count: int, *callbacks: Callback) -> None:
        fit(tuner(deepcopy(start), deepcopy(head)), batches, count, StagedFinetuning(schedule), *callbacks)

    def stored() -> FeatureData:
        return FeatureData(data, folder / "B", pooled=True)

    work(stored(), 1)
    run = given.tail_epochs
    samples = in_turn(
        {
            "store": lambda: scaled(lambda e: work(stored(), run, e), run, epochs),
            "tensors": lambda: scaled(lambda e: work(from_memory(*maps, "layer3"), run, e), run, epochs),
        },
        given.rounds,
    )
    measure = f"B: resnet18, {epochs} epochs of layer4 and head from layer3, filled cache / tensors in memory"
    return [compared(measure, samples, "store", "tensors", "<= 1.15", note=scaling(run, epochs, "B"))]


def sweep(given: argparse.Namespace, folder: Path) -> list[Row]:
    """C: 16 jobs (8 learning rates x linear, mlp), each fit + validate + test, starting with an empty cache, in one process.

    It is compared with 1.5 x the first job + 16 x the time of the head: the mean over all jobs of the same job without a pass through the
    backbone. That time is measured in two ways: with the cache that the sweep has filled (includes the cost of reading it), and with
    loaders over tensors of the same features (includes nothing of ftlit but FineTuner and StagedFinetuning).
    """
    start = backbone_of(given, "squeezenet1_1")
    data, top, count = split_photos(given, start), start.cuts[-1], given.sweep_epochs
    heads = {"linear": LinearHead, "mlp": MLPHead}
    jobs = list(itertools.product([1e-2 / 2**i for i in range(8)], heads.values()))
    in_memory = {}
    for split in SPLITS:
        loader = data.loader(split, EvalOrder(data.collection.splits[split], BATCH))
        in_memory[split] = from_memory(*plain_pass(start, loader), top, shuffle=split == "train")

    def job(rate: float, head: type[nn.Module], stored: Path | None) -> None:
        torch.manual_seed(0)
        model = tuner(deepcopy(start), head(start.num_features, CLASSES), rate)
        source = FeatureData(data, stored, pooled=True) if stored else None
        trainer = Trainer(max_epochs=count, callbacks=[StagedFinetuning(head_only(start.layers_with_parameters))], **FLAGS)
        trainer.fit(model, *([source] if source else [in_memory["train"], in_memory["val"]]))
        trainer.validate(model, source or in_memory["val"], verbose=False)
        trainer.test(model, source or in_memory["test"], verbose=False)

    def all_jobs(stored: Path | None) -> list[float]:
        return [timed(lambda one=one: job(*one, stored)) for one in jobs]

    job(*jobs[0], fresh(folder / "C"))
    samples: dict[str, list[float]] = {"sweep": [], "bound, store": [], "bound, tensors": []}
    for number in range(given.rounds):
        cold, warm, tensors = all_jobs(fresh(folder / "C")), all_jobs(folder / "C"), all_jobs(None)
        samples["sweep"].append(sum(cold))
        samples["bound, store"].append(1.5 * cold[0] + sum(warm))
        samples["bound, tensors"].append(1.5 * cold[0] + sum(tensors))
        print(f"round {number + 1}: first {cold[0]:.3g}, all {sum(cold):.4g}, warm {sum(warm):.4g}, tensors {sum(tensors):.4g}", flush=True)
    measure = f"C: {len(jobs)} jobs of {count} epochs / 1.5 x the first + {len(jobs)} x the time of the head"
    return [
        compared(f"{measure}, filled cache", samples, "sweep", "bound, store", "<= 1"),
        compared(f"{measure}, tensors in memory", samples, "sweep", "bound, tensors", ""),
    ]


SECTIONS: dict[str, Callable[[argparse.Namespace, Path], list[Row]]] = {
    "pass": one_pass,
    "A": warm_up,
    "B": tail,
    "C": sweep,
    "memory": memory,
}

if __name__ == "__main__":
    main()
