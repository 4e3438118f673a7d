"""What stored codes cost and save, beside bare loops and Lightning's BackboneFinetuning: one table in markdown.

python tests/bench/codes.py --data FOLDER [--only pass,A,B,C,memory] [--rounds 5] [--json PATH]

FOLDER holds images/hymenoptera and weights/. The sides of a row take turns in one process; numbers are medians. Data sets are listed and
networks built before the clock starts. Stores lie in a temporary folder (TMPDIR): `memory` needs 16 GB there.
"""

import argparse
import contextlib
import itertools
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from _measure import Row, compared, in_turn, machine, table, timed, written
from _memory import memory
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim import AdamW
from torch.utils.data import DataLoader, TensorDataset

from ftlit import Backbone, FineTuner, ImageData, Schedule, Stage, StagedFinetuning, load_backbone
from ftlit.backbone import CodesAt
from ftlit.codes import evaluating, extract_codes
from ftlit.dataset import SPLITS, Collection, Examples, LabelledImages
from ftlit.head import LinearHead, MLPHead
from ftlit.lit.codes import CodesData
from ftlit.lit.datamodules import folder_data
from ftlit.order import EvalOrder
from ftlit.schedule import head_only

BATCH, CLASSES, RATE = 32, 2, 1e-3
NETWORKS = {"squeezenet1_1": "squeezenet1_1_imagenet_torchvision.pth", "resnet18": None}  # the second starts at random
PEER_AIMS = {"squeezenet1_1": 25, "resnet18": 50}
FLAGS: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("FTLIT_TEST_DATA"), help="default: FTLIT_TEST_DATA")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, divided by commas")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="of pass and A")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, help="processes that load images, on all sides; default: that of ImageData")
    parser.add_argument("--epochs", type=int, default=30, help="of A")
    parser.add_argument("--peer-epochs", type=int, default=3, help="that the peer of A really runs, once")
    parser.add_argument("--tail-epochs", type=int, default=2, help="that B really runs, of 20")
    parser.add_argument("--sweep-epochs", type=int, default=10, help="of a job of C")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of memory")
    parser.add_argument("--batches", type=int, default=400, help="that memory times, for each size of batch")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sections = given.only.split(",")
    if unknown := set(sections) - SECTIONS.keys():
        parser.error(f"no section {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    if given.data is None and set(sections) != {"memory"}:
        parser.error("give --data, or set FTLIT_TEST_DATA")
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


# What is measured upon.


def backbone_of(given: argparse.Namespace, name: str) -> Backbone:
    torch.manual_seed(0)
    file = NETWORKS[name]
    return load_backbone(name, weights=given.data / "weights" / file if file else None)


def split_photos(given: argparse.Namespace, backbone: Backbone) -> ImageData:
    """Train 195, val 49, test 153: what a person gets."""
    root = given.data / "images" / "hymenoptera"
    return folder_data(backbone.input_spec, root=root, augment="none", batch_size=BATCH, num_workers=given.workers)


def photos(given: argparse.Namespace, backbone: Backbone) -> ImageData:
    """All 244 training photos in train. Val is one photo, as there has to be one: what it takes would count for our side alone."""
    data = split_photos(given, backbone)
    train, val, test = (data.collection.splits[split] for split in SPLITS)
    whole = Examples([*train.sources, *val.sources], [*train.labels, *val.labels], train.load, [*train.contents, *val.contents])
    collection = Collection({"train": whole, "val": test.subset([0]), "test": test}, data.class_names)
    return ImageData(collection, backbone.input_spec, augment="none", batch_size=BATCH, num_workers=given.workers)


def plain_images(data: ImageData, *, shuffle: bool) -> DataLoader[Any]:
    """The training photos as a person without ftlit would load them, in the evaluation view."""
    images, workers = LabelledImages(data.collection, "train", data.transforms["val"]), data.num_workers
    return DataLoader(images, BATCH, shuffle=shuffle, num_workers=workers, persistent_workers=workers > 0)


def bare_pass(backbone: Backbone, loader: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """The least that codes of images can cost."""
    found = []
    with evaluating(backbone), torch.inference_mode():
        for images, targets in loader:
            found.append((backbone.pool(backbone(images)), targets))
    codes, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
    return codes.clone(), targets


def from_memory(codes: Tensor, targets: Tensor, cut: str | None = None, *, shuffle: bool = True) -> DataLoader[Any]:
    """Batches of tensors; of `CodesAt` where a cut is given."""

    def at_cut(samples: list[tuple[Tensor, Tensor]]) -> Any:
        values, labels = torch.utils.data.default_collate(samples)
        return CodesAt(values, cut), labels

    return DataLoader(TensorDataset(codes, targets), BATCH, shuffle=shuffle, collate_fn=at_cut if cut else None)


class Plain(LightningModule):
    """What a person without ftlit would write: a head, and a backbone below it or none."""

    def __init__(self, features: int, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(features, CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, targets = batch
        codes = x if self.backbone is None else self.backbone.pool(self.backbone(x))
        return nn.functional.cross_entropy(self.head(codes), targets)

    def configure_optimizers(self) -> AdamW:
        return AdamW((p for p in self.parameters() if p.requires_grad), RATE)


class Epochs(Callback):
    """How long all epochs took, without what comes before and after."""

    def on_train_start(self, *_: Any) -> None:
        self.begin = perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = perf_counter() - self.begin


def tuner(backbone: Backbone, head: nn.Module, rate: float = RATE) -> FineTuner:
    return FineTuner(backbone, head, num_classes=CLASSES, optimizer=partial(AdamW, lr=rate))


def fit(module: LightningModule, data: Any, epochs: int, *callbacks: Callback, val: bool = False) -> Trainer:
    trainer = Trainer(max_epochs=epochs, callbacks=list(callbacks), **FLAGS, **({} if val else {"limit_val_batches": 0}))
    trainer.fit(module, data)
    return trainer


def scaled(work: Callable[[Epochs], Any], done: int, asked: int) -> float:
    """Seconds of `asked` epochs, from `done` that were run."""
    epochs = Epochs()
    return timed(lambda: work(epochs)) + epochs.seconds / done * (asked - done)


def scaling(done: int, asked: int, what: str) -> str:
    return "" if done == asked else f"{what}: {done} epochs were run; {asked} are these and {asked - done} times their mean."


def fresh(folder: Path) -> Path:
    """A new folder; the one before of the same name is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


# Sections: (options, temporary folder) -> rows.


def one_pass(given: argparse.Namespace, folder: Path) -> list[Row]:
    """`extract_codes` against the least that it can cost, with photos to decode and with tensors in memory."""
    rows = []
    for name in given.networks.split(","):
        backbone = backbone_of(given, name)
        data = photos(given, backbone)
        files = data.loader("train", EvalOrder(data.collection.splits["train"], BATCH))
        decoded = from_memory(*(torch.cat(parts) for parts in zip(*files, strict=True)), shuffle=False)
        for source, loader in {"JPEG files": files, "tensors": decoded}.items():
            bare_pass(backbone, loader)
            sides = {
                "extract_codes": lambda b=backbone, x=loader: timed(lambda: extract_codes(b, x, cache=fresh(folder / "pass"))),
                "bare loop": lambda b=backbone, x=loader: timed(lambda: bare_pass(b, x)),
            }
            measure = f"pass: {name}, {source}"
            rows.append(compared(measure, in_turn(sides, given.rounds), "extract_codes", "bare loop", "<= 1.05"))
    return rows


def warm_up(given: argparse.Namespace, folder: Path) -> list[Row]:
    """A: epochs of a head alone. All sides begin with a backbone and a data set and end with a trained head."""
    rows = []
    for name in given.networks.split(","):
        backbone = backbone_of(given, name)
        data, features, store = photos(given, backbone), backbone.num_features, folder / "A"
        images = plain_images(data, shuffle=False)

        def limit(backbone: Backbone = backbone, images: Any = images, features: int = features, epochs: int = given.epochs) -> None:
            fit(Plain(features), from_memory(*bare_pass(backbone, images)), epochs)

        def ours(
            backbone: Backbone = backbone, data: ImageData = data, features: int = features, epochs: int = given.epochs, store: Path = store
        ) -> None:
            staged = StagedFinetuning(head_only(backbone.learned))
            fit(tuner(backbone, LinearHead(features, CLASSES)), CodesData(data, store, pooled=True), epochs, staged)

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
        assert counted == [0], f"{counted[0]} passes through {backbone.cuts[0]} on a warm store"

        peer = Plain(features, deepcopy(backbone))
        never, loader = BackboneFinetuning(unfreeze_backbone_at_epoch=10**6), plain_images(data, shuffle=True)
        run = min(given.peer_epochs, given.epochs)
        samples["peer"] = [scaled(lambda e, p=peer, x=loader, n=never, k=run: fit(p, x, k, n, e), run, given.epochs)]
        what, note = f"A: {name}, {given.epochs} epochs of the head", scaling(run, given.epochs, "A, BackboneFinetuning (measured once)")
        rows.append(compared(f"{what}, cold store / bare pass + head on tensors", samples, "cold", "limit", "<= 1.10"))
        rows.append(compared(f"{what}, warm store / the same", samples, "warm", "limit", ""))
        aim = f">= {PEER_AIMS[name]}"
        rows.append(compared(f"{what}, BackboneFinetuning / cold store", samples, "cold", "peer", aim, turned=True, note=note))
    return rows


@contextlib.contextmanager
def passes_through(backbone: Backbone) -> Iterator[list[int]]:
    """Counts calls of the lowest layer but those on `meta`. By a hook on all modules: one of its own would count in the fingerprint."""
    lowest, counted = backbone.get_submodule(backbone.cuts[0]), [0]

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        counted[0] += module is lowest and not output.is_meta

    handle = register_module_forward_hook(count)
    try:
        yield counted
    finally:
        handle.remove()


def tail(given: argparse.Namespace, folder: Path) -> list[Row]:
    """B: epochs of layer4 and the head from codes at layer3, from a warm store against tensors in memory."""
    start = backbone_of(given, "resnet18")
    data, schedule, epochs = photos(given, start), Schedule([Stage(["head", "backbone.layer4"])]), 20
    head = LinearHead(start.num_features, CLASSES)
    order = EvalOrder(data.collection.splits["train"], BATCH)
    codes = extract_codes(start, data.loader("train", order), "layer3", cache=folder / "B-maps", pooled=False)
    maps = codes["layer3"].read(range(len(codes))), codes.targets

    def work(batches: Any, count: int, *callbacks: Callback) -> None:
        fit(tuner(deepcopy(start), deepcopy(head)), batches, count, StagedFinetuning(schedule), *callbacks)

    def stored() -> CodesData:
        return CodesData(data, folder / "B", pooled=True)

    work(stored(), 1)
    run = given.tail_epochs
    samples = in_turn(
        {
            "store": lambda: scaled(lambda e: work(stored(), run, e), run, epochs),
            "tensors": lambda: scaled(lambda e: work(from_memory(*maps, "layer3"), run, e), run, epochs),
        },
        given.rounds,
    )
    measure = f"B: resnet18, {epochs} epochs of layer4 and head from layer3, warm store / tensors in memory"
    return [compared(measure, samples, "store", "tensors", "<= 1.15", note=scaling(run, epochs, "B"))]


def sweep(given: argparse.Namespace, folder: Path) -> list[Row]:
    """C: 16 jobs (8 rates x linear, mlp), each fit + validate + test, from a cold store, in one process.

    The other side is 1.5 x the first job + 16 x the head's own time: the mean over all jobs of the same job where no layer of the backbone
    runs. That is told in two ways: on the store that the sweep has left (which holds what our warm path costs), and on loaders over
    tensors of the same codes (which holds nothing of ours but FineTuner and StagedFinetuning).
    """
    start = backbone_of(given, "squeezenet1_1")
    data, top, count = split_photos(given, start), start.cuts[-1], given.sweep_epochs
    heads = {"linear": LinearHead, "mlp": MLPHead}
    jobs = list(itertools.product([1e-2 / 2**i for i in range(8)], heads.values()))
    in_memory = {}
    for split in SPLITS:
        loader = data.loader(split, EvalOrder(data.collection.splits[split], BATCH))
        in_memory[split] = from_memory(*bare_pass(start, loader), top, shuffle=split == "train")

    def job(rate: float, head: type[nn.Module], stored: Path | None) -> None:
        torch.manual_seed(0)
        model = tuner(deepcopy(start), head(start.num_features, CLASSES), rate)
        source = CodesData(data, stored, pooled=True) if stored else None
        trainer = Trainer(max_epochs=count, callbacks=[StagedFinetuning(head_only(start.learned))], **FLAGS)
        trainer.fit(model, *([source] if source else [in_memory["train"], in_memory["val"]]))
        trainer.validate(model, source or in_memory["val"], verbose=False)
        trainer.test(model, source or in_memory["test"], verbose=False)

    def all_jobs(stored: Path | None) -> list[float]:
        return [timed(lambda one=one: job(*one, stored)) for one in jobs]

    job(*jobs[0], fresh(folder / "C"))
    samples: dict[str, list[float]] = {"sweep": [], "bound, store": [], "bound, tensors": []}
    for turn in range(given.rounds):
        cold, warm, tensors = all_jobs(fresh(folder / "C")), all_jobs(folder / "C"), all_jobs(None)
        samples["sweep"].append(sum(cold))
        samples["bound, store"].append(1.5 * cold[0] + sum(warm))
        samples["bound, tensors"].append(1.5 * cold[0] + sum(tensors))
        print(f"round {turn + 1}: first {cold[0]:.3g}, all {sum(cold):.4g}, warm {sum(warm):.4g}, tensors {sum(tensors):.4g}", flush=True)
    measure = f"C: {len(jobs)} jobs of {count} epochs / 1.5 x the first + {len(jobs)} x the head's own time"
    return [
        compared(f"{measure} on a warm store", samples, "sweep", "bound, store", "<= 1"),
        compared(f"{measure} on tensors in memory", samples, "sweep", "bound, tensors", ""),
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
