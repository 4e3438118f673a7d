"""What Lightning asks of a data module besides batches reaches the data module inside `FeatureData`."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from ftlit import Backbone, FeatureData, FineTuner, InputSpec
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.datamodules.image_sources import digits_data

pytestmark = pytest.mark.filterwarnings("ignore")  # advice of Lightning on loaders and modes
SPEC = InputSpec(size=8)
IMAGES, LABELS = torch.randn(8, 3, 8, 8), torch.arange(8) % 2


class Keeps:
    """Keeps the errors of training, and saves an argument."""

    def on_exception(self, exception):
        self.errors = [*getattr(self, "errors", []), exception]


class OwnData(Keeps, pl.LightningDataModule):
    def __init__(self, crop=7):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return DataLoader(list(zip(IMAGES, LABELS, strict=True)), batch_size=4)


class OwnImages(Keeps, ImageData):
    def __init__(self, collection, crop=7):
        super().__init__(collection, SPEC)
        self.save_hyperparameters("crop")


class Owner(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), nn.Linear(4, 2)
        self.encoder.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.head(self.encoder(batch[0])), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def tuner():
    layers = {"low": nn.Conv2d(3, 4, 1)}
    return FineTuner(Backbone(layers, SPEC), nn.Linear(4, 10), num_classes=10, optimizer=partial(torch.optim.SGD, lr=0.1))


KINDS = {
    "loaders": (OwnData, lambda data, folder: FeatureData(data, folder, cut="encoder"), Owner),
    "images": (lambda: OwnImages(digits_data(SPEC).collection), FeatureData, tuner),
}


class Stop(pl.Callback):
    def on_train_batch_start(self, *parts):
        raise RuntimeError("stop")


@pytest.mark.parametrize("kind", KINDS)
def test_hyperparameters_are_logged_and_saved_and_errors_are_told(kind, tmp_path):
    build, wrap, module = KINDS[kind]
    data = build()
    options = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "limit_val_batches": 0}
    logger, wrapped = CSVLogger(tmp_path / "logs"), wrap(data, tmp_path / "store")
    trainer = pl.Trainer(max_steps=1, logger=logger, default_root_dir=tmp_path, **options)
    trainer.fit(module(), datamodule=wrapped)
    assert wrapped.hparams == {"crop": 7} == wrapped.hparams_initial and "crop: 7" in next(tmp_path.rglob("hparams.yaml")).read_text()
    saved = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=False)
    assert saved["datamodule_hyper_parameters"]["crop"] == 7 and getattr(data, "errors", []) == []
    with pytest.raises(RuntimeError, match="stop"):
        pl.Trainer(max_steps=1, logger=False, enable_checkpointing=False, callbacks=[Stop()], **options).fit(module(), datamodule=wrapped)
    assert [str(error) for error in data.errors] == ["stop"]
