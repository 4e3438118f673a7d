"""Unfreeze a LightningModule of your own in stages: python own_lightning_module.py"""

from functools import partial

import lightning.pytorch as pl
import torch

from ftlit import Schedule, Stage, StagedFinetuning, build_optimizer, load_backbone
from ftlit.lit.datamodules.image_sources import digits_data


class Classifier(pl.LightningModule):
    """A pretrained feature extractor and a linear classifier; no base class of ftlit is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_extractor = load_backbone("glyph")
        self.classifier = torch.nn.Linear(self.feature_extractor.num_features, 10)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        features = self.feature_extractor.pool(self.feature_extractor(images))
        loss = torch.nn.functional.cross_entropy(self.classifier(features), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        scales = [("classifier", 1.0), ("feature_extractor", 0.1)]  # factors on lr; they must cover all parameters
        return build_optimizer(self, partial(torch.optim.AdamW, lr=1e-3), scales)


if __name__ == "__main__":
    pl.seed_everything(0)
    model = Classifier()
    data = digits_data(model.feature_extractor.input_spec, per_class=20)
    schedule = Schedule([Stage(["classifier"]), Stage(["classifier", "feature_extractor.layer4"], epoch=1), Stage(["*"], epoch=2)])
    staged = StagedFinetuning(schedule)
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", callbacks=[staged], logger=False, enable_checkpointing=False)
    trainer.fit(model, train_dataloaders=data.train_dataloader())
    print(f"the last stage trains {', '.join(staged.stage.train)}; loss {trainer.callback_metrics['loss']:.3f}")
