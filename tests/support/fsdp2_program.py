"""Training of a FineTuner in one process, or in several that shard it, for tests/lit/sharding: `DEVICES=2 python fsdp2_program.py FOLDER
CASE...`. Each process saves notes.
"""

import os
import shutil
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from ddp_program import grey
from torch import nn
from torch.distributed.tensor import DTensor

from ftlit import (
    Backbone,
    FeatureData,
    FineTuner,
    FitProbeHead,
    Fsdp2Strategy,
    InputSpec,
    LastCheckpoint,
    Lora,
    Rates,
    Schedule,
    SeedEachStep,
    Stage,
    StagedFinetuning,
    Until,
    add_lora,
    load_timm,
)
from ftlit.data.dataset import Collection, Examples
from ftlit.errors import UserError
from ftlit.files import WriteError
from ftlit.finetuning.lr_schedule import cosine
from ftlit.lit.callbacks.best_checkpoint import BestCheckpoint
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.features import extraction_pass
from ftlit.lit.sharding import fsdp2, shards
from ftlit.lit.sharding.memory import measured_memory, process_memory

DEVICES = int(os.environ.get("DEVICES", "1"))
FOLDER = Path(sys.argv[1])
HEAD, TOP = ["head"], ["head", "backbone.top"]
EPOCHS = Schedule([Stage(HEAD), Stage(TOP, epoch=1), Stage(["*"], epoch=2)])
SCHEDULES = {
    "step": Schedule([Stage(HEAD), Stage(TOP, step=3), Stage(["*"], step=9)]),
    "metric": Schedule(
        [
            Stage(HEAD),
            Stage(TOP, epoch=2, until=Until("score", threshold=1.0)),
            Stage(["*"], epoch=4, until=Until("score", threshold=2.0), from_best=True),
        ]
    ),
    "lora": Schedule([Stage(HEAD), Stage(["head", {"backbone": "lora"}], epoch=1)]),
    "shared position bias": Schedule([Stage(HEAD), Stage(["head", "backbone.blocks.1"], epoch=1), Stage(["*"], epoch=2)]),
    "batch norm": Schedule([Stage(HEAD), Stage(["*"], epoch=1, batchnorm="live")]),
    "batch norm, ddp": Schedule([Stage(HEAD), Stage(["*"], epoch=1, batchnorm="live")]),
    "resume": Schedule([Stage(HEAD), Stage(TOP, epoch=1), Stage(["*"], step=10), Stage(HEAD, epoch=3)]),  # frozen again
}
SETTINGS = {"accumulation and clipping": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}}
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
SAVED = (6, 14)  # steps before which "resume" saves: in the second stage, and in the last one


class Tuner(FineTuner):
    """A FineTuner whose first process alone logs a metric that rises."""

    def training_step(self, batch, batch_idx):
        self.log("score", float(self.current_epoch + 1) - 10 * self.global_rank, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


class Copies(pl.Callback):
    """Keep the checkpoints before some steps. Put it after `LastCheckpoint`."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step in SAVED and trainer.is_global_zero:
            shutil.copytree(FOLDER / "last.ckpt", FOLDER / f"step-{trainer.global_step}.ckpt")


class Stages(pl.Callback):
    """Note the stage of each step, and weights after each epoch."""

    def __init__(self):
        self.stages, self.weights = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.stages.append(next(c.index for c in trainer.callbacks if isinstance(c, StagedFinetuning)))

    def on_train_epoch_end(self, trainer, pl_module):
        self.weights.append(whole(pl_module.state_dict()))


def whole(state):
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for name, t in state.items()}


def beit() -> Backbone:
    """Two blocks that read parameters of the layer below them."""
    settings = {"depth": 2, "embed_dim": 12, "num_heads": 3, "patch_size": 4, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
    return load_timm("beit_base_patch16_224", weights=None, input_spec={"size": 8}, **settings)


def network(case: str, seed: int = 0, **options) -> FineTuner:
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(5) if case.startswith("batch norm") else nn.Identity()
    layers = {"low": nn.Sequential(nn.Conv2d(3, 5, 3), norm, nn.Tanh()), "top": nn.Sequential(nn.Conv2d(5, 4, 3), nn.Tanh())}
    backbone = Backbone(layers, InputSpec(size=8), record={"name": "none"})
    if case == "lora":
        add_lora(backbone, Lora(rank=2))
    if case == "shared position bias":
        backbone = beit()
    given = {"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9), **options}
    return Tuner(backbone, nn.Linear(backbone.num_features, 3), num_classes=3, **given)


def images(count: int = 32) -> ImageData:
    splits = {s: Examples(range(n), [(i % 3,) for i in range(n)], grey) for s, n in (("train", count), ("val", 12), ("test", 12))}
    return ImageData(Collection(splits, list("abc")), InputSpec(size=8), batch_size=8 // DEVICES, num_workers=0, augment="none")


def trainer(case: str, *callbacks, **settings) -> pl.Trainer:
    strategy = "auto" if DEVICES == 1 else "ddp" if case.endswith("ddp") else Fsdp2Strategy()
    staging = StagedFinetuning(SCHEDULES.get(case, EPOCHS))
    fixed = {"accelerator": "cpu", "devices": DEVICES, "enable_checkpointing": False, **QUIET, **SETTINGS.get(case, {})}
    return pl.Trainer(strategy=strategy, callbacks=[staging, *callbacks], **{**fixed, "max_epochs": 5, **settings})


def stages(case: str) -> dict:
    """Train in float64, 20 steps of SGD."""
    model, notes = network(case).double(), Stages()
    model.on_after_batch_transfer = lambda batch, index: (batch[0].double(), batch[1])
    running = trainer(case, notes)
    running.fit(model, images())
    logged = {name: float(value) for name, value in running.callback_metrics.items()}
    return {"stages": notes.stages, "weights": notes.weights, "logged": logged}


def features(case: str) -> dict:
    """Fit the head as a probe and train the first stages from stored features; images that are extracted before training count."""
    model, notes, ran = network(case), Stages(), []
    fill = extraction_pass.fill
    extraction_pass.fill = lambda *given, **more: ran.append(fill(*given, **more))  # a hook would be part of what identifies the features
    notes.on_train_start = lambda *_: setattr(extraction_pass, "fill", fill)
    data = FeatureData(images(), FOLDER / f"store-{DEVICES}", pooled=True)
    running = trainer(case, FitProbeHead(), notes)
    running.fit(model, data)
    reads = [bool(own.specs) for own in data.plan(model, EPOCHS, running)]
    return {"stages": notes.stages, "weights": notes.weights, "reads": reads, "extracted": sum(ran)}


def resume(case: str) -> dict:
    """Train, then resume from each of several steps, with another start: weights and optimizer state at the end."""

    def run(seed: int, *callbacks, **resumed) -> dict:
        model = network(case, seed, optimizer=partial(torch.optim.AdamW, lr=0.01, fused=True), lr_scheduler=partial(Rates, curve=cosine))
        running = trainer(case, *callbacks, SeedEachStep(0), max_epochs=4)
        running.fit(model, images(), **resumed)
        state = {f"{i} {key}": value for i, own in running.optimizers[0].state_dict()["state"].items() for key, value in own.items()}
        return whole({**model.state_dict(), **state})

    found = {"all": run(0, LastCheckpoint(FOLDER / "last.ckpt", every_n_steps=1), Copies())}
    return found | {str(step): run(1 + step, ckpt_path=FOLDER / f"step-{step}.ckpt") for step in SAVED}


def best(case: str, folder: Path = FOLDER) -> dict:
    """Weights at the end, and metrics of the best checkpoint, a plain file, and of the last, a folder."""
    best, last = folder / "best.ckpt", folder / "end.ckpt"
    model = network(case)
    callbacks = LastCheckpoint(last), BestCheckpoint(folder, monitor="val/loss")
    running = trainer(case, *callbacks, enable_checkpointing=True)
    running.fit(model, images())
    weights = whole(model.state_dict())
    metrics = {path.name: running.validate(model, images(), ckpt_path=path, verbose=False)[0] for path in (best, last)}
    return {"weights": weights, "metrics": metrics, "after": whole(model.state_dict()), "is file": best.is_file()}


def failures(case: str) -> dict:
    """The errors in both processes where the second one cannot read, or write, its shards. After "best"."""
    running, model, damaged = trainer(case, max_epochs=3), network(case), FOLDER / "damaged.ckpt"
    running.fit(model, images())
    strategy, save, found = running.strategy, shards.save_checkpoint, {}

    def full(content, path):
        raise WriteError(f"cannot write {path.name}: the disk is full")

    if running.is_global_zero:
        shutil.copytree(FOLDER / "end.ckpt", damaged)
        (damaged / "shard-00001-of-00002.ckpt").write_bytes(b"")
    else:
        shards.save_checkpoint = full
    strategy.barrier()
    content = {"state_dict": model.state_dict(), "optimizer_states": []}
    tried = {"read": lambda: strategy.load_checkpoint(damaged), "write": lambda: strategy.save_checkpoint(content, FOLDER / "full.ckpt")}
    for name, act in tried.items():
        try:
            act()
        except UserError as error:
            found[name] = f"{type(error).__name__}: {error}"
    shards.save_checkpoint = save
    return found


class Peek(pl.Callback):
    """Note the memory of this process after the first optimizer step, before the gradients go."""

    def __init__(self):
        self.found = None

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if trainer.global_step == 1:
            self.found = measured_memory(pl_module, trainer.optimizers[0])


def little_memory(case: str) -> dict:
    """`best` in a folder of its own, where the weights do not fit into the free memory of the first process."""
    fsdp2.available_memory = lambda: 0.0
    return best(case, FOLDER / "little")


def reread(case: str) -> dict:
    """Metrics of the last checkpoint of "best", which another number of processes wrote."""
    fixed = {"accelerator": "cpu", "devices": DEVICES, "enable_checkpointing": False, **QUIET}
    validating = pl.Trainer(strategy=Fsdp2Strategy(), **fixed)
    return validating.validate(network(case), images(), ckpt_path=FOLDER / "end.ckpt", verbose=False)[0]


def memory(case: str) -> dict:
    """Bytes that this process holds after a step of AdamW on all parameters, and their prediction."""
    factory, peek = partial(torch.optim.AdamW, lr=0.01), Peek()
    model = network(case, optimizer=factory)
    names = dict(model.named_parameters())
    predicted = process_memory(names, [set(names)], factory, DEVICES, ["backbone.low", "backbone.top", "head"])
    whole_module = Schedule([Stage(["*"])])
    fixed = {"accelerator": "cpu", "devices": DEVICES, "enable_checkpointing": False, "max_steps": 2, **QUIET}
    pl.Trainer(strategy=Fsdp2Strategy(), callbacks=[StagedFinetuning(whole_module), peek], **fixed).fit(model, images())
    return {"found": _sizes(peek.found), "predicted": _sizes(predicted)}


def _sizes(memory) -> list[int]:
    return [memory.parameters, memory.gradients, memory.optimizer]


PROGRAMS = {
    "features": features,
    "resume": resume,
    "best": best,
    "memory": memory,
    "little memory": little_memory,
    "reread": reread,
    "failures": failures,
}

if __name__ == "__main__":
    for case in sys.argv[2:]:
        noted = PROGRAMS.get(case, stages)(case)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        torch.save(noted, FOLDER / f"{case}.{rank}")
