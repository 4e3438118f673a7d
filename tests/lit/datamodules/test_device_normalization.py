"""Images are normalised after their transfer: a module gets the batches that the loaders give by hand, to the bit."""

import lightning.pytorch as pl
import pytest
import torch
from feature_runs import QUIET
from PIL import Image
from torch import nn

from ftlit import FeatureData, InputSpec
from ftlit.data.dataset import Collection, Examples
from ftlit.data.transforms import AUGMENTS
from ftlit.features.extract import extract_features
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.models.backbone import Backbone


def picture(index: int) -> Image.Image:
    values = torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
    return Image.fromarray(values.numpy())


def data(of: type[ImageData] = ImageData, **options) -> ImageData:
    splits = {name: Examples(range(n), [(i % 2,) for i in range(n)], picture) for name, n in (("train", 6), ("val", 4), ("test", 4))}
    return of(Collection(splits, ["a", "b"]), InputSpec(size=12), batch_size=4, num_workers=0, **options)


class Seen(pl.LightningModule):
    """Keeps the batches that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone({"low": nn.Conv2d(3, 2, 3)}, InputSpec(size=12))
        self.batches = {"train": [], "val": []}

    def training_step(self, batch, batch_idx):
        self.batches["train"].append(batch[0])

    def validation_step(self, batch, batch_idx):
        self.batches["val"].append(batch[0])

    def configure_optimizers(self):
        pass


@pytest.fixture
def sent(monkeypatch):
    """The types of the images that loaders give, as they are transferred."""
    found, transfer = [], pl.LightningDataModule.transfer_batch_to_device

    def transferred(self, batch, device, dataloader_idx):
        found.append(batch[0].dtype)
        return transfer(self, batch, device, dataloader_idx)

    monkeypatch.setattr(pl.LightningModule, "transfer_batch_to_device", transferred)
    return found


def fit(module: pl.LightningModule, given: pl.LightningDataModule, precision: str = "32-true") -> None:
    pl.Trainer(max_epochs=1, num_sanity_val_steps=0, precision=precision, **QUIET).fit(module, datamodule=given)


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_module_gets_the_normalised_images_that_loaders_give_by_hand(tmp_path, sent, augment, wrapped):
    images, module = data(augment=augment), Seen()
    expected = {"train": [batch for batch, _ in images.train_dataloader()], "val": [batch for batch, _ in images.val_dataloader()]}
    fit(module, FeatureData(images, tmp_path) if wrapped else images)
    assert set(sent) == {torch.uint8} and expected["train"][0].dtype == torch.float32
    for split, batches in expected.items():
        assert all(map(torch.equal, batches, module.batches[split])) and len(batches) == len(module.batches[split])
    assert next(iter(images.val_dataloader()))[0].dtype == torch.float32  # after the fit
    assert len(extract_features(module.backbone, images.val_dataloader(), cache=tmp_path)) == 4


def test_images_are_converted_to_the_precision_of_the_trainer(sent):
    images, module = data(augment="none"), Seen()
    expected = next(iter(images.val_dataloader()))[0]
    fit(module, images, "64-true")
    assert torch.equal(module.batches["val"][0], expected.double()) and set(sent) == {torch.uint8}


class Brighter(ImageData):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] + 1, *batch[1:]


class LooksBefore(Seen):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch[0] + 1, *batch[1:]


class LooksAfter(Seen):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] + 1, *batch[1:]


@pytest.mark.filterwarnings("ignore:You have overridden")
@pytest.mark.parametrize(
    ("of", "module", "kind"), [(Brighter, Seen, "float32"), (ImageData, LooksBefore, "float32"), (ImageData, LooksAfter, "uint8")]
)
def test_hooks_of_a_subclass_or_of_the_module_see_normalised_images(sent, of, module, kind):
    images, module = data(of, augment="none"), module()
    fit(module, images)
    assert torch.equal(module.batches["val"][0], next(iter(images.val_dataloader()))[0] + 1)
    assert {str(dtype).removeprefix("torch.") for dtype in sent} == {kind}


def test_mixed_training_images_are_normalised_before_they_are_mixed(sent):
    images, module = data(mix="both"), Seen()
    expected = [batch for batch, _ in images.train_dataloader()]
    fit(module, images)
    assert all(map(torch.equal, expected, module.batches["train"])) and sent[:2] == [torch.float32] * 2 and sent[-1] == torch.uint8
