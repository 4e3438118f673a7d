"""Runs that train from stored features and from images: data, a model of four layers, schedules, and a callback that counts passes."""

from functools import cache, partial

import lightning.pytorch as pl
import torch
from PIL import Image
from torch import nn

from ftlit import Backbone, FineTuner, InputSpec, Rates, Schedule, Stage, StagedFinetuning, Until
from ftlit.data.dataset import Collection, Examples
from ftlit.finetuning.lr_schedule import cosine
from ftlit.lit.callbacks.seed_each_step import SeedEachStep
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.models.heads import ConvHead, MLPHead

EPOCHS = 4
HEAD, TOP, ALL = ["head"], ["head", "backbone.top"], ["*"]
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
SCHEDULES = {
    "head only": [Stage(HEAD)],
    "last layer": [Stage(HEAD), Stage(TOP, epoch=1)],
    "head, then all": [Stage(HEAD), Stage(ALL, epoch=2)],
    "all": [Stage(ALL)],
    "top down": [Stage(HEAD), Stage(TOP, epoch=1), Stage([*TOP, "backbone.middle"], epoch=2), Stage(ALL, epoch=3)],
    "a step within an epoch": [Stage(HEAD), Stage(TOP, step=2), Stage([*TOP, "backbone.middle"], step=6), Stage(ALL, step=13)],
    "a metric": [Stage(HEAD), Stage(TOP, epoch=3, until=Until("val/loss", "min", patience=1))],
    "frozen again within an epoch": [Stage(ALL), Stage(HEAD, step=2), Stage(TOP, step=6), Stage(HEAD, epoch=3)],
    "frozen again": [Stage([*HEAD, "backbone.low"]), Stage(HEAD, epoch=1), Stage(TOP, epoch=2), Stage(HEAD, epoch=3)],
}


@cache
def gradient_image(i: int) -> Image.Image:
    return Image.linear_gradient("L").rotate(i * 7).resize((12, 12)).convert("RGB")


def data(train: int = 15, **options) -> ImageData:
    sizes = {"train": range(train), "val": range(50, 57), "test": range(60, 65)}
    splits = {split: Examples(places, [(i % 3,) for i in places], gradient_image) for split, places in sizes.items()}
    settings = {"batch_size": 4, "num_workers": 0, "augment": "none", **options}
    return ImageData(Collection(splits, list("abc")), InputSpec(size=12), **settings)


def layer(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3), nn.BatchNorm2d(out), nn.Tanh(), nn.Dropout(0.2))


def model(*, takes_map: bool = False) -> FineTuner:
    torch.manual_seed(0)
    layers = {"low": layer(3, 4), "middle": layer(4, 5), "pooling": nn.AvgPool2d(2), "top": layer(5, 6)}
    head = ConvHead(6, 3) if takes_map else MLPHead(6, 3, hidden=[8], dropout=0.3)
    return FineTuner(
        Backbone(layers, InputSpec(size=12)),
        head,
        num_classes=3,
        optimizer=partial(torch.optim.AdamW, lr=0.02),
        lr_scheduler=partial(Rates, curve=cosine),
    )


class Passes(pl.Callback):
    """Record the number of images on which each layer ran, and the input of each epoch: a cut, or images."""

    def __init__(self) -> None:
        self.images: dict[str, int] = {}
        self.epochs: list[str] = []
        self.totals: list[int] = []

    def setup(self, trainer, pl_module, stage):
        for name, part in pl_module.backbone.items() if stage == "fit" else ():
            part.register_forward_pre_hook(partial(self._count, name))

    def _count(self, name, module, args):
        if args[0].device.type != "meta":
            self.images[name] = self.images.get(name, 0) + len(args[0])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.epochs.append("images" if isinstance(batch[0], torch.Tensor) else batch[0].cut)
            self.totals.append(trainer.num_training_batches)


def fit(source, stages, *, module=None, **settings):
    """Train; return the module, the trainer and the recorded passes."""
    module, passes = module or model(), Passes()
    callbacks = [StagedFinetuning(Schedule(stages)), SeedEachStep(3), passes]
    trainer = pl.Trainer(accelerator="cpu", callbacks=callbacks, **{"max_epochs": EPOCHS} | QUIET | settings)
    trainer.fit(module, source)
    return module, trainer, passes


def distance(a: nn.Module, b: nn.Module) -> float:
    """Return the largest difference of a parameter or buffer, relative to the largest value in it."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1e-12)) for x, y in pairs if x.is_floating_point())


class Stop(pl.Callback):
    """Raise an error before a step, in place of a kill."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise InterruptedError
