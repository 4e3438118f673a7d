"""Run the frozen layers once, and train on their stored features: python cached_features.py [FOLDER]"""

import sys
import time
from functools import partial

import lightning.pytorch as pl
import torch

from ftlit import FeatureData, FineTuner, Schedule, Stage, StagedFinetuning, load_backbone
from ftlit.lit.datamodules.image_sources import digits_data
from ftlit.models.heads import LinearHead

folder = sys.argv[1] if len(sys.argv) > 1 else None  # None: FTLIT_CACHE, else ~/.cache/ftlit


def train() -> tuple[float, float]:
    """Train a head on features. Returns seconds and validation accuracy."""
    pl.seed_everything(0)
    backbone = load_backbone("glyph")
    data = FeatureData(digits_data(backbone.input_spec, per_class=20), folder, pooled=True)  # serves features in place of images
    head = LinearHead(backbone.num_features, data.num_classes)
    model = FineTuner(backbone, head, num_classes=data.num_classes, optimizer=partial(torch.optim.AdamW, lr=1e-2))
    callbacks = [StagedFinetuning(Schedule([Stage(["head"])]))]  # the backbone is frozen, so that its features can be stored
    trainer = pl.Trainer(max_epochs=5, accelerator="cpu", callbacks=callbacks, logger=False, enable_checkpointing=False)
    started = time.perf_counter()
    trainer.fit(model, data)
    return time.perf_counter() - started, float(trainer.callback_metrics["val/accuracy"])


if __name__ == "__main__":
    for run in ("first run, which computes the features it lacks", "second run, which reads them"):
        seconds, accuracy = train()
        print(f"{run}: {seconds:.1f} s, validation accuracy {accuracy:.3f}")
