"""Ten epochs of a head in a Lightning project with a plain torchvision encoder and a data module of its own, with and without FeatureData.

python benchmarks/extraction/own_project.py --data FOLDER   (a folder with images/hymenoptera; ten minutes on two cores)
"""

import argparse
import tempfile
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

from ftlit import FeatureData

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Photos(pl.LightningDataModule):
    """Photos in folders, without augmentation."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        steps = [v2.ToImage(), v2.Resize(256), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True)]
        normalize = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self.train, self.val = (ImageFolder(str(root / split), v2.Compose([*steps, normalize])) for split in ("train", "test"))

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches."""
        return DataLoader(self.train, batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Batches in order."""
        return DataLoader(self.val, batch_size=32)


class Head(pl.LightningModule):
    """A frozen encoder and a head that trains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = resnet18(), nn.Linear(512, 2)
        self.encoder.fc = nn.Identity()
        self.encoder.requires_grad_(False).eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.head(self.encoder(images))

    def training_step(self, batch, batch_idx: int) -> torch.Tensor:
        """Return the loss."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx: int) -> None:
        """Log the accuracy."""
        self.log("val/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer of the head."""
        return torch.optim.AdamW(self.head.parameters(), lr=1e-3)


def run(data: pl.LightningDataModule) -> tuple[Head, float]:
    """Train ten epochs; return the module and the seconds."""
    module = Head()
    torch.manual_seed(1)
    started = time.perf_counter()
    pl.Trainer(max_epochs=10, accelerator="cpu", num_sanity_val_steps=0, **QUIET).fit(module, datamodule=data)
    return module, time.perf_counter() - started


def main() -> None:
    """Print the times, their ratios, and the largest difference of logits on val."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    root = parser.parse_args().data / "images/hymenoptera"
    with tempfile.TemporaryDirectory() as cache:
        plain, before = run(Photos(root))
        stored, first = run(FeatureData(Photos(root), cache, cut="encoder"))
        _, again = run(FeatureData(Photos(root), cache, cut="encoder"))
    images = torch.stack([Photos(root).val[i][0] for i in range(16)])
    with torch.inference_mode():
        difference = (plain.eval()(images) - stored.eval()(images)).abs().max().item()
    print(f"through the encoder {before:.1f} s; FeatureData, empty cache {first:.1f} s ({before / first:.0f} times faster)")
    print(f"again, from the cache {again:.1f} s ({before / again:.0f} times faster); largest difference of logits {difference:.1e}")


if __name__ == "__main__":
    main()
