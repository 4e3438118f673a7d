"""Training in one process or in two for test_two_processes: `DEVICES=2 python ddp_program.py FOLDER CASE...`. Each process saves notes."""

import os
import shutil
import sys
from functools import cache, partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from PIL import Image
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, DistributedSampler

from ftlit import (
    Backbone,
    EmaWeights,
    FeatureData,
    FineTuner,
    FitProbeHead,
    InputSpec,
    Lora,
    Schedule,
    Stage,
    StagedFinetuning,
    Until,
    add_lora,
    batchnorm_to_affine,
    build_optimizer,
)
from ftlit.data.dataset import Collection, Examples
from ftlit.errors import UserError
from ftlit.features.shard import read_shard
from ftlit.finetuning.losses import cross_entropy
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.delayed_values import DelayedValues

DEVICES = int(os.environ.get("DEVICES", "1"))
HEAD, TOP = ["head"], ["head", "backbone.top"]
EPOCHS = Schedule([Stage(HEAD), Stage(TOP, epoch=1), Stage(["*"], epoch=2)])
SCHEDULES = {
    "step": Schedule([Stage(HEAD), Stage(TOP, step=4), Stage(["*"], step=8)]),
    "metric": Schedule(
        [
            Stage(HEAD),
            Stage(TOP, epoch=2, until=Until("score", threshold=1.0)),
            Stage(["*"], epoch=3, until=Until("score", threshold=2.0)),
        ]
    ),
    "layer parts": Schedule([Stage(HEAD), Stage(["head", {"backbone": "bias"}], epoch=1), Stage(["head", {"backbone": "lora"}], epoch=2)]),
    "frozen statistics": Schedule([Stage(stage.train, epoch=stage.epoch, batchnorm="frozen_stats") for stage in EPOCHS.stages]),
}
SETTINGS = {"accumulation and clipping": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}}
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Net(pl.LightningModule):
    """A LightningModule without code for stages."""

    def __init__(self, case: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        norm = {"frozen statistics": nn.BatchNorm1d(8), "affine": nn.BatchNorm1d(8)}.get(case, nn.Identity())
        self.backbone = nn.ModuleDict(
            {"low": nn.Sequential(nn.Linear(4, 8), norm, nn.Tanh()), "top": nn.Sequential(nn.Linear(8, 8), nn.Tanh())}
        )
        self.head = nn.Linear(8, 3)
        if case == "affine":
            batchnorm_to_affine(self)
        if case == "layer parts":
            add_lora(self.backbone, Lora(rank=2))
        self.double()
        self.uses_ftlit = case != "BackboneFinetuning"

    def training_step(self, batch, batch_idx):
        score = float(self.current_epoch + 1) - 10 * self.global_rank  # differs between processes: the first one decides
        self.log("score", score, on_step=False, on_epoch=True)
        return nn.functional.cross_entropy(self.head(self.backbone.top(self.backbone.low(batch[0]))), batch[1])

    def configure_optimizers(self):
        factory = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        return build_optimizer(self, factory) if self.uses_ftlit else factory([p for p in self.parameters() if p.requires_grad])


class Sharded(Net):
    """A module in which each layer is a unit of FSDP2, so that it is frozen as a whole."""

    def configure_model(self):
        mesh = self.device_mesh["data_parallel"] if DEVICES > 1 else None
        for unit in (self.backbone.low, self.backbone.top, self.head, self) if mesh else ():
            fully_shard(unit, mesh=mesh)


class Notes(pl.Callback):
    """Record at the end of each epoch the weights, the stage, the trainable parameters, and the bytes of gradients that a step sends."""

    def __init__(self) -> None:
        self.notes = {"weights": [], "stages": [], "trains": [], "bytes": []}
        self.wrapped, self.sent = None, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if isinstance(trainer.strategy, DDPStrategy) and trainer.strategy.model is not self.wrapped:
            self.wrapped = trainer.strategy.model
            self.wrapped.register_comm_hook(None, self.count)
        self.sent = 0

    def count(self, group, bucket):
        self.sent += bucket.buffer().numel() * bucket.buffer().element_size()
        return allreduce_hook(group, bucket)

    def on_train_epoch_end(self, trainer, pl_module):
        self.notes["weights"].append({name: whole(p).detach().clone() for name, p in pl_module.named_parameters()})
        self.notes["stages"].append(getattr(trainer.callbacks[0], "index", -1))
        self.notes["trains"].append([name for name, p in pl_module.named_parameters() if p.requires_grad])
        self.notes["bytes"].append(self.sent)


def whole(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def trainer(*callbacks, strategy="ddp", **settings) -> pl.Trainer:
    strategy = strategy if DEVICES > 1 else "auto"
    return pl.Trainer(accelerator="cpu", devices=DEVICES, strategy=strategy, callbacks=list(callbacks), **QUIET | settings)


def stages(case: str) -> dict:
    staging = BackboneFinetuning(1, verbose=False) if case == "BackboneFinetuning" else StagedFinetuning(SCHEDULES.get(case, EPOCHS))
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(4, generator=generator).double(), i % 3) for i in range(32)]
    notes = Notes()
    strategy = ModelParallelStrategy(data_parallel_size=DEVICES, tensor_parallel_size=1) if case == "fsdp2" else "ddp"
    fitting = trainer(staging, notes, strategy=strategy, max_epochs=4, use_distributed_sampler=False, **SETTINGS.get(case, {}))
    sampler = DistributedSampler(data, num_replicas=DEVICES, rank=fitting.global_rank, shuffle=False)
    module = Sharded(case) if case == "fsdp2" else Net(case)
    fitting.fit(module, DataLoader(data, batch_size=8 // DEVICES, sampler=sampler))
    return notes.notes


def metrics(case: str) -> dict:
    """Validation and test of a FineTuner on images that two processes cannot share evenly."""
    splits = {s: Examples(range(n), [(i % 3,) for i in range(n)], grey) for s, n in (("train", 8), ("val", 37), ("test", 33))}
    data = ImageData(Collection(splits, list("abc")), InputSpec(size=8), batch_size=16 // DEVICES, num_workers=0, augment="none")
    torch.manual_seed(0)
    backbone = Backbone({"low": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())}, InputSpec(size=8))
    model = FineTuner(backbone, nn.Linear(4, 3), num_classes=3, optimizer=partial(torch.optim.SGD, lr=0.0))
    fitting = trainer(max_epochs=1, num_sanity_val_steps=0)
    found = {**fitting.validate(model, data, verbose=False)[0], **fitting.test(model, data, verbose=False)[0]}
    backbone.eval()  # no updates of its batchnorm statistics
    fitting.fit(model, data)  # validation within training, where DDP synchronises forward passes
    return {
        "metrics": found | {f"fit {name}": float(value) for name, value in fitting.callback_metrics.items() if name.startswith("val/a")}
    }


def features(case: str) -> dict:
    """Train stages from features that both processes compute together; the notes include the stored features."""
    splits = {s: Examples(range(n), [(i % 3,) for i in range(n)], grey) for s, n in (("train", 160), ("val", 37), ("test", 33))}
    images = ImageData(Collection(splits, list("abc")), InputSpec(size=8), batch_size=16 // DEVICES, num_workers=0, augment="none")
    torch.manual_seed(0)
    low, top = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh()), nn.Sequential(nn.Conv2d(4, 4, 3), nn.Tanh())
    model = FineTuner(
        Backbone({"low": low, "top": top}, InputSpec(size=8)), nn.Linear(4, 3), num_classes=3, optimizer=partial(torch.optim.SGD, lr=0.1)
    )
    data, notes = FeatureData(images, Path(sys.argv[1], "store"), pooled=True), Notes()
    probe_head = [FitProbeHead()] if case == "probe head" else []
    average = [EmaWeights(decay=0.8)] if case == "average" else []
    fitting = trainer(StagedFinetuning(EPOCHS), *probe_head, notes, *average, max_epochs=4, precision="64-true")
    fitting.fit(model, data)
    if average:
        notes.on_train_epoch_end(fitting, model)  # the average, in place of the weights of training
    tables = {path.parent.name: [] for path in sorted(Path(sys.argv[1], "store").glob("*/*.safetensors"))}
    for path in Path(sys.argv[1], "store").glob("*/*.safetensors"):
        shard = read_shard(path)
        tables[path.parent.name] += [(name.decode(), row.clone()) for name, row in zip(shard.images, shard.features, strict=True)]
    stored = {key: torch.stack([row for _, row in sorted(rows, key=lambda pair: pair[0])]) for key, rows in tables.items()}
    return notes.notes | {"stored": stored}


def uneven(case: str) -> dict:
    """Train on numbers of images that two processes cannot share evenly, with class weights, from images and from features."""
    weights = []
    for count, stored in ((33, False), (34, False), (35, False), (37, False), (37, True)):
        sizes = {"train": count, "val": 8, "test": 8}
        splits = {s: Examples(range(n), [(int(i % 4 == 0),) for i in range(n)], grey) for s, n in sizes.items()}
        images = ImageData(Collection(splits, list("ab")), InputSpec(size=8), batch_size=8 // DEVICES, num_workers=0, augment="none")
        torch.manual_seed(0)
        backbone = Backbone({"low": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh())}, InputSpec(size=8))
        loss = cross_entropy(list(images.counts["train"].values()), class_weights="balanced", label_smoothing=0.1)
        model = FineTuner(backbone, nn.Linear(4, 2), num_classes=2, optimizer=partial(torch.optim.SGD, lr=0.1), loss=loss)
        schedule = Schedule([Stage(HEAD if stored else ["*"])])
        data = FeatureData(images, Path(sys.argv[1], "uneven"), pooled=True) if stored else images
        notes = Notes()
        fitting = trainer(StagedFinetuning(schedule), notes, max_epochs=2, num_sanity_val_steps=0, precision="64-true")
        fitting.fit(model, data)
        weights += notes.notes["weights"]
        weights += [{name: value.double() for name, value in fitting.callback_metrics.items() if name.startswith("train")}]
    return {"weights": weights}


def plain_loaders(case: str) -> dict:
    """Train with the DistributedSampler of a user, and evaluate with loaders into which Lightning puts one: both repeat images."""
    found = {}
    for count in (33, 35, 36):
        generator = torch.Generator().manual_seed(1)
        images = [(torch.randn(3, 8, 8, generator=generator).double(), i % 3) for i in range(count)]
        torch.manual_seed(0)
        backbone = Backbone({"low": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh())}, InputSpec(size=8))
        model = FineTuner(backbone, nn.Linear(4, 3), num_classes=3, optimizer=partial(torch.optim.SGD, lr=0.1)).double()
        fitting = trainer(max_epochs=2, num_sanity_val_steps=0)
        sampler = DistributedSampler(images, num_replicas=DEVICES, rank=fitting.global_rank, shuffle=False)
        fitting.fit(model, DataLoader(images, batch_size=8 // DEVICES, sampler=sampler), DataLoader(images, batch_size=4))
        logged = dict(fitting.callback_metrics)
        logged |= fitting.test(model, DataLoader(images[:5], batch_size=2), verbose=False)[0]
        logged |= fitting.validate(model, DataLoader(images[1:], batch_size=4), verbose=False)[0]
        found |= {f"{count} {name}": torch.as_tensor(value) for name, value in logged.items()}
        found |= {f"{count} {name}": value.detach() for name, value in model.named_parameters()}
    return found


def delayed_values(case: str) -> dict:
    """The sums that each process reads in three steps, and after them."""
    values, taken = DelayedValues(), []
    callback = pl.Callback()
    callback.on_train_batch_start = lambda *_: taken.append(values.take())
    callback.on_before_backward = lambda own, *_: values.put(own, torch.tensor([10.0**own.global_rank * (own.global_step + 1), 1.0]))
    trainer(callback, max_epochs=1).fit(Net(case), DataLoader([(torch.zeros(4).double(), 0)] * 3 * DEVICES))
    return {"taken": [*taken, values.take(), values.take()]}


def no_room(case: str) -> dict:
    """The disk of the second process has no room for features; the first process saves its error."""
    if DEVICES > 1 and os.environ.get("LOCAL_RANK") == "1":
        shutil.disk_usage = lambda path: type("Usage", (), {"free": 100})()
    try:
        features(case)
    except UserError as error:
        return {"error": str(error)}
    return {}


@cache
def grey(i: int) -> Image.Image:
    return Image.linear_gradient("L").rotate(i * 11).resize((8, 8)).convert("RGB")


PROGRAMS = {"metrics": metrics, "features": features, "probe head": features, "average": features, "uneven": uneven, "no room": no_room}
PROGRAMS |= {"plain loaders": plain_loaders, "delayed values": delayed_values}

if __name__ == "__main__":
    for case in sys.argv[2:]:
        noted = PROGRAMS.get(case, stages)(case)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        torch.save(noted, Path(sys.argv[1], f"{case}.{rank}"))
