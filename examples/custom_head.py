"""A head of your own: python custom_head.py

On the command line, from this folder: ftlit train head._target_=custom_head.CosineHead scenario=large_similar
"""

from functools import partial

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from ftlit import FineTuner, load_backbone
from ftlit.lit.datamodules.image_sources import digits_data


class CosineHead(nn.Module):
    """Logits are cosines between features (N, in_features) and class vectors (num_classes, in_features), times a scale that trains too
    (Gidaris and Komodakis 2018).
    """

    def __init__(self, in_features: int, num_classes: int, *, scale: float = 16.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(1e-3 * torch.randn(num_classes, in_features))  # short vectors turn to their classes in few steps
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * nn.functional.normalize(features) @ nn.functional.normalize(self.weight).T


if __name__ == "__main__":
    pl.seed_everything(0)
    backbone = load_backbone("glyph")
    data = digits_data(backbone.input_spec, per_class=20)
    head = CosineHead(backbone.num_features, data.num_classes)
    scales = [("head", 1.0), ("backbone", 0.1)]  # factors on lr
    model = FineTuner(backbone, head, num_classes=10, optimizer=partial(torch.optim.AdamW, lr=1e-2), lr_scale=scales)
    trainer = pl.Trainer(max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(model, data)
    print(f"validation accuracy {trainer.callback_metrics['val/accuracy']:.3f}")
