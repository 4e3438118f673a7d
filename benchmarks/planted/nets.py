"""Tiny networks and runs on the CPU. Only the sign of a difference is meaningful, not its size."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, DistributedSampler

from .peers import EPOCHS

IMAGES, BATCH = 32, 8
STEPS = IMAGES // BATCH
WORLD = "PLANTED_WORLD"  # environment variable: number of processes that train together


class Net(LightningModule):
    """A backbone and a head. With `stalled` the logged metric is constant."""

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        optimizer: Callable[[LightningModule], SGD],
        *,
        curve: Callable[[SGD], Any] | None = None,
        stalled: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.optimizer, self.curve, self.stalled = backbone, head, optimizer, curve, stalled

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images.to(self.dtype))
        if self.training:
            self.keeps_graph = features.requires_grad
        return self.head(features)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("val_loss", torch.ones(()) if self.stalled else loss, sync_dist=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self)
        return optimizer if self.curve is None else {"optimizer": optimizer, "lr_scheduler": self.curve(optimizer)}


class Watch(Callback):
    """Record whether the backbone trains, and the ratio of the learning rates, at each step. Must come after the callbacks of the peer."""

    def __init__(self) -> None:
        self.unfrozen_at: int | None = None
        self.ratios: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if next(pl_module.backbone.parameters()).requires_grad:
            self.unfrozen_at = trainer.global_step if self.unfrozen_at is None else self.unfrozen_at
            self.ratios.append(ratio_of(trainer, pl_module))

    @property
    def ratio_range(self) -> str:
        """Learning rate of the backbone / learning rate of the head, while both train."""
        low, high = min(self.ratios), max(self.ratios)
        return f"{low:.2g}" if high - low < 1e-6 else f"{low:.2g} to {high:.2g}"


def ratio_of(trainer: Trainer, module: LightningModule) -> float:
    rates = {id(p): group["lr"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
    lower, head = (id(next(part.parameters())) for part in (module.backbone, module.head))
    return rates.get(lower, 0.0) / rates[head]


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())


def linear_head() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(8, 3)


def images() -> list[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(4, generator=generator), i % 3) for i in range(IMAGES)]


def loader() -> DataLoader:
    data = images()
    sampler = DistributedSampler(data, num_replicas=world_size(), rank=int(os.environ.get("LOCAL_RANK", 0)), shuffle=False)
    return DataLoader(data, batch_size=BATCH // world_size(), sampler=sampler)


def world_size() -> int:
    return int(os.environ.get(WORLD, 1))


def trainer_for(callbacks: list[Callback], folder: Path, *, epochs: int = EPOCHS, **settings: Any) -> Trainer:
    torch.manual_seed(3)
    quiet = {"logger": False, "num_sanity_val_steps": 0, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=world_size(),
        strategy="ddp" if world_size() > 1 else "auto",
        callbacks=callbacks,
        default_root_dir=folder,
        use_distributed_sampler=False,
        **quiet | settings,
    )


def fit(net: LightningModule, callbacks: list[Callback], folder: Path, *, resume: Path | None = None, **settings: Any) -> Trainer:
    trainer = trainer_for(callbacks, folder, **settings)
    trainer.fit(net, loader(), loader(), ckpt_path=resume)
    return trainer


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def max_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def number(value: float) -> str:
    return f"{value:.1g}" if value else "0"
