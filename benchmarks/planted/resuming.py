"""Faults of interrupted and resumed runs."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from .fault import Found, fault
from .nets import Net, fit, flat, linear_head, max_difference, number, plain, trainer_for
from .peers import Ours


@fault("resuming freezes the backbone again", pattern="frozen|freez")
def refrozen(peer: Any, folder: Path) -> Found:
    """Resumed from the end of the epoch that unfroze the backbone (Lightning#21901). Harm: the backbone does not change any more, or the
    final weights differ from those of the uninterrupted run."""

    def run(path: Path | None) -> Net:
        net = Net(plain(), linear_head(), peer.optimizer)
        keep = peer.checkpoint(dirpath=folder / "kept", filename="{epoch}", save_top_k=-1, monitor="val_loss", save_on_train_epoch_end=True)
        fit(net, [*peer.callbacks(net), keep], folder, resume=path)
        return net

    uninterrupted = run(None)
    path = (folder / "kept" / "epoch=1.ckpt").rename(folder / "resumed.ckpt")
    resumed = run(path)
    saved = torch.load(path, weights_only=False)["state_dict"]
    moved = max(max_difference(saved[f"backbone.{name}"], p.detach()) for name, p in resumed.backbone.named_parameters())
    difference = max_difference(flat(uninterrupted), flat(resumed))
    return Found(difference > 0, f"weights differ by {number(difference)} from the uninterrupted run; backbone changes by {number(moved)}")


class Interrupted(Exception):
    """Simulates a killed run."""


class Recording(LightningModule):
    """Record the images of the first epoch. `stop_after`: number of batches until the run is interrupted."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.backbone, self.head, self.stop_after = nn.Linear(1, 2), nn.Linear(2, 3), stop_after
        self.seen: list[list[int]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        values = batch[0].flatten(1)[:, :1]
        if len(self.seen) == self.stop_after:
            raise Interrupted
        if self.trainer.current_epoch == 0:
            self.seen.append((values[:, 0] * 255).round().int().tolist())
        return nn.functional.cross_entropy(self.head(self.backbone(values)), batch[1])

    def configure_optimizers(self) -> Any:
        return self.peer.optimizer(self)


class SaveAt(Callback):
    """Save a checkpoint within an epoch, as ModelCheckpoint(every_n_train_steps) does."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (shade,) * 3)


def shades() -> Any:
    """A data module of ftlit in which each image has its own shade of grey."""
    from ftlit import ImageData, InputSpec
    from ftlit.data.dataset import Collection, Examples

    splits = {split: Examples(range(16), [(i % 3,) for i in range(16)], picture) for split in ("train", "val", "test")}
    spec = InputSpec(size=8, mean=(0, 0, 0), std=(1, 1, 1))
    return ImageData(Collection(splits, list("abc")), spec, augment="none", batch_size=2, num_workers=0)


@fault("a run resumed within an epoch trains on the first batches of the epoch again", pattern="not resumable|replay")
def replayed(peer: Any, folder: Path) -> Found:
    """Interrupted after 5 of 8 batches and resumed; peers with a DataLoader, ftlit with its ImageData and LastCheckpoint. Harm: an image is
    used twice in the epoch, or not at all."""
    values = torch.arange(16.0).reshape(-1, 1) / 255

    def run(stop_after: int | None, resume: Path | None) -> list[list[int]]:
        net = Recording(stop_after)
        net.peer = peer
        if isinstance(peer, Ours):
            from ftlit import LastCheckpoint

            data, save = shades(), LastCheckpoint(folder / "last.ckpt", every_n_steps=1)
        else:
            labels = torch.arange(16) % 3
            data, save = DataLoader(TensorDataset(values, labels), batch_size=2, shuffle=True), SaveAt(folder / "last.ckpt", 5)
        trainer = trainer_for([*peer.callbacks(net), save], folder, epochs=2, limit_val_batches=0)
        try:
            trainer.fit(net, data, ckpt_path=resume)
        except Interrupted:
            pass
        return net.seen

    first = run(5, None)
    rest = run(None, (folder / "last.ckpt").rename(folder / "killed.ckpt"))
    epoch = [image for batch in [*first, *rest] for image in batch]
    twice = len(epoch) - len(set(epoch))
    return Found(sorted(epoch) != list(range(16)), f"{twice} of 16 images twice in the epoch, {16 - len(set(epoch))} never")
