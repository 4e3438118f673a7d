"""Invariant 8 in the project of another: a LightningModule with a plain encoder and a data module of its own, with stored features."""

from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import timm
import torch
from feature_runs import QUIET
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchvision.models import resnet18

from ftlit import FeatureData, InputSpec, Schedule, Stage, StagedFinetuning, UserError, WeightsOrigin, backbone_from, build_optimizer
from ftlit.features.store import Store
from ftlit.lit.datamodules.image_sources import digits_data
from ftlit.lit.features.loader_plan import LoaderOptions, LoaderPlan

IMAGES = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 3


class Numbered(Dataset):
    """Images with label and number, decoded at each reading."""

    def __init__(self, images=IMAGES):
        self.images, self.read = images, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.read += 1
        return self.images[i], int(LABELS[i]), {"number": i}["number"]


class OwnData(pl.LightningDataModule):
    def __init__(self, shuffle=True, data=None, **options):
        super().__init__()
        self.data, self.options = data or Numbered(), {"batch_size": 4, **options}
        self.shuffle = shuffle

    def train_dataloader(self):
        return DataLoader(self.data, shuffle=self.shuffle, **self.options)

    def val_dataloader(self):
        return DataLoader(self.data, **self.options)


def own_encoder():
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(256, 8))


ENCODERS = {
    "torchvision": (lambda: setattr(net := resnet18(), "fc", nn.Identity()) or net, 512),
    "timm": (lambda: timm.create_model("resnet18", num_classes=0), 512),
    "own": (own_encoder, 8),
}


class Owner(pl.LightningModule):
    """Written without knowledge of ftlit."""

    def __init__(self, kind="own", freeze=True):
        super().__init__()
        torch.manual_seed(0)
        encoder, width = ENCODERS[kind]
        self.encoder, self.head = encoder(), nn.Linear(width, 3)
        self.encoder.requires_grad_(not freeze)
        self.seen, self.batches = [], []

    def forward(self, images):
        return self.head(self.encoder(images))

    def training_step(self, batch, batch_idx):
        images, labels, numbers = batch
        self.seen += numbers.tolist()
        self.batches.append(type(images).__name__)
        assert torch.equal(labels, LABELS[numbers]) and len(images) == images.shape[0] == images.size(0)
        return cross_entropy(self(images), labels)

    def validation_step(self, batch, batch_idx):
        self.log("val", cross_entropy(self(batch[0]), batch[1]))

    def on_train_epoch_start(self):
        self.encoder.eval()  # so that a run without stored features computes the same

    def configure_optimizers(self):
        return build_optimizer(self, partial(torch.optim.SGD, lr=0.1))


def fit(data, module=None, stages=None, epochs=3, **options):
    module = module or Owner()
    callbacks = [StagedFinetuning(Schedule(stages))] if stages else []
    torch.manual_seed(5)
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=callbacks, num_sanity_val_steps=0, **{**QUIET, **options})
    trainer.fit(module, datamodule=data)
    return module, trainer


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_head_on_stored_features_gets_the_weights_and_logits_of_one_on_images(tmp_path, kind):
    live, _ = fit(OwnData(), Owner(kind))
    stored, trainer = fit(FeatureData(OwnData(), tmp_path, cut="encoder"), Owner(kind))
    assert set(live.batches) == {"Tensor"} and set(stored.batches) == {"FeatureBatch"}
    assert live.seen == stored.seen != sorted(live.seen)  # the same order, shuffled
    for name, value in live.state_dict().items():
        assert torch.allclose(value, stored.state_dict()[name], atol=1e-5), name
    with torch.inference_mode():
        assert torch.allclose(stored.eval()(IMAGES), live.eval()(IMAGES), atol=1e-4)
    assert "forward" not in vars(stored.encoder) and trainer.callback_metrics["val"].isfinite()


def test_images_are_read_once_and_a_second_run_computes_nothing(tmp_path, capsys):
    data = OwnData()
    fit(FeatureData(data, tmp_path, cut="encoder"))
    once = data.data.read
    assert once < 2 * (20 + 2 * 20) and "features of 20 images of train at encoder: 20 computed" in capsys.readouterr().out
    fit(FeatureData(OwnData(), tmp_path, cut="encoder"))
    printed = capsys.readouterr().out
    assert printed.count("all read from the cache") == 2 and "computing" not in printed and " computed," not in printed
    assert printed.count("reading 20 images: their features at encoder are taken from the cache or computed\n") == 2
    changed = Owner()
    with torch.no_grad():
        changed.encoder[1].running_mean += 1
    fit(FeatureData(OwnData(), tmp_path, cut="encoder"), changed)
    assert "train at encoder: 20 computed" in capsys.readouterr().out
    fit(FeatureData(OwnData(data=Numbered(IMAGES + 1)), tmp_path, cut="encoder"))
    assert "train at encoder: 20 computed\n" in capsys.readouterr().out
    partly = torch.cat([IMAGES[:5], IMAGES[5:] + 2])
    fit(FeatureData(OwnData(data=Numbered(partly)), tmp_path, cut="encoder"))
    assert "train at encoder: 15 computed, 5 read from the cache\n" in capsys.readouterr().out


STAGES = [Stage(["head"]), Stage(["*"], epoch=1), Stage(["head"], epoch=2)]


def test_stages_that_train_the_encoder_read_images_and_a_later_one_its_new_features(tmp_path, capsys):
    live, _ = fit(OwnData(), stages=STAGES)
    stored, _ = fit(FeatureData(OwnData(), tmp_path, cut="encoder"), stages=STAGES)
    assert [stored.batches[i] for i in (0, 5, 10)] == ["FeatureBatch", "Tensor", "FeatureBatch"]
    assert "stage 1 reads images, because encoder trains" in capsys.readouterr().out
    for name, value in live.state_dict().items():
        assert torch.allclose(value, stored.state_dict()[name], atol=1e-4), name


def test_mode_of_the_encoder_stays_and_its_statistics_too(tmp_path, capsys):
    class Training(Owner):
        def on_train_epoch_start(self):
            self.train()

    module = Training()
    before = module.encoder[1].running_mean.clone()
    fit(FeatureData(OwnData(), tmp_path, cut="encoder"), module)
    assert torch.equal(module.encoder[1].running_mean, before) and module.encoder[2].training
    assert "encoder is frozen but in training mode; its features are computed in evaluation mode" in (out := capsys.readouterr().out)
    assert "module.encoder.eval()\n" in out


class Augmented(Numbered):
    def __getitem__(self, i):
        image, label, number = super().__getitem__(i)
        return image.flip(-1) if torch.rand(()) < 0.5 else image, label, number


class NoisyLabels(Numbered):
    def __getitem__(self, i):
        image, label, number = super().__getitem__(i)
        return image, label, number + int(torch.randint(1000, ()))


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(IMAGES[0], 1, 0)])


class OnDevice(OwnData):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class Nested(Numbered):
    def __getitem__(self, i):
        return self.images[i], {"box": 1}, i


class Normalising(Owner):
    def forward(self, images):
        return super().forward(images * 2)


class TwoPaths(Owner):
    def forward(self, images):
        return self.head(self.encoder(images)) + images.mean()


class Pairs(nn.Module):
    def forward(self, images):
        return images, images


def paired():
    module = Owner()
    module.encoder = Pairs()
    return module


AT = {"cut": "encoder"}
REFUSED = [
    (
        OwnData(data=Augmented()),
        Owner,
        AT,
        r"the train loader of OwnData gives different images each time that the same items are read",
    ),
    (OwnData(data=NoisyLabels()), Owner, AT, "the train loader of OwnData gives different values of entry 2 each time"),
    (OwnData(shuffle=None, data=Stream()), Owner, AT, "the train loader of OwnData has an IterableDataset, but"),
    (OwnData(batch_size=None), Owner, AT, "the train loader of OwnData has batch_size=None, but FeatureData"),
    (OwnData(data=Nested()), Owner, AT, "entry 1 of the batch is a dict, but the batch has 4 images: give a tensor or list of length 4"),
    (
        OwnData(),
        Owner,
        {},
        r"Owner has 0 Backbones, .* FeatureData\(cut=NAME\), where NAME is a module that takes the images, one of encoder, head",
    ),
    (OwnData(), Owner, {"cut": "encodr"}, "Owner has no module 'encodr': did you mean 'encoder'"),
    (OwnData(), Owner, {**AT, "max_gb": 1e-9}, r"features at encoder need 640 B, more than max_gb=1e-09"),
    (OwnData(), Owner, {**AT, "pooled": True}, "pooled=True works only with a Backbone, and 'encoder' is not one"),
    (
        OwnData(),
        partial(Owner, freeze=False),
        AT,
        r"features of 'encoder' cannot be stored, because 'encoder' is trained in all epochs: freeze the module with module\.encoder",
    ),
    (
        OwnData(),
        Normalising,
        AT,
        r"the batch contains stored features of 'encoder' in place of images, so arithmetic, such as images \* 2, cannot be applied to it",
    ),
    (OwnData(), TwoPaths, AT, r"the batch contains stored features of 'encoder' in place of images, so \.mean cannot be applied to it"),
    (OwnData(), paired, AT, "'encoder' returns a tuple, but only tensors can be stored"),
]


@pytest.mark.parametrize(("data", "module", "options", "message"), REFUSED)
def test_what_cannot_be_held_is_one_line(tmp_path, data, module, options, message):
    with pytest.raises((UserError, AttributeError, TypeError), match=message) as raised:
        fit(FeatureData(data, tmp_path, **options), module(), epochs=1)
    assert "\n" not in str(raised.value)


def test_augmentation_of_train_is_found_before_features_of_val_are_computed(tmp_path, capsys):
    class Split(OwnData):
        def val_dataloader(self):
            return DataLoader(Numbered(), batch_size=4)

    with pytest.raises(UserError, match="the train loader of Split gives different images"):
        trainer = pl.Trainer(max_epochs=1, accelerator="cpu", **QUIET)  # validates before it trains
        trainer.fit(Owner(), datamodule=FeatureData(Split(data=Augmented()), tmp_path, cut="encoder"))
    assert "features of" not in capsys.readouterr().out


def test_an_unknown_argument_is_one_line(tmp_path):
    for data in (OwnData(), digits_data(InputSpec(size=8))):
        with pytest.raises(UserError, match=r"^FeatureData for this data has no argument 'cuts': did you mean 'cut'"):
            FeatureData(data, tmp_path, cuts="encoder")


def test_data_that_are_no_data_module_or_change_batches_on_the_device_are_one_line(tmp_path):
    with pytest.raises(
        UserError,
        match=r"^FeatureData needs a LightningDataModule, not DataLoader: wrap loaders in one, .* ftlit\.extract_features",
    ):
        FeatureData(DataLoader(Numbered()), tmp_path)
    with pytest.raises(UserError, match=r"^FeatureData cannot be used with OnDevice, because OnDevice overrides on_after_batch_transfer"):
        FeatureData(OnDevice(), tmp_path)


def test_batches_may_be_mappings_and_data_sets_stand_for_a_data_module(tmp_path):
    class Named(Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, i):
            return {"id": f"image {i}", "pixel_values": IMAGES[i], "labels": int(LABELS[i])}

    class Mapped(Owner):
        def training_step(self, batch, batch_idx):
            numbers = [int(name.split()[1]) for name in batch["id"]]
            return super().training_step((batch["pixel_values"], batch["labels"], torch.tensor(numbers)), batch_idx)

    data = pl.LightningDataModule.from_datasets(Named(), batch_size=5, num_workers=0)
    module, _ = fit(FeatureData(data, tmp_path, cut="encoder"), Mapped())
    assert set(module.batches) == {"FeatureBatch"} and sorted(module.seen) == sorted([*range(20)] * 3)


def test_half_precision_trains_from_the_features_of_half_precision(tmp_path):
    live, _ = fit(OwnData(), precision="bf16-mixed")
    stored, _ = fit(FeatureData(OwnData(), tmp_path, cut="encoder"), precision="bf16-mixed")
    assert all(torch.allclose(value, stored.state_dict()[name], atol=2e-2) for name, value in live.state_dict().items())


class WithBackbone(Owner):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = backbone_from(resnet18(), input_spec=InputSpec(size=32), origin=WeightsOrigin("custom", "mine"))
        self.head = nn.Linear(512, 3)

    def forward(self, images):
        self.seen.append(getattr(images, "cut", "images"))
        return self.head(self.encoder.pool(self.encoder(images)))

    def on_train_epoch_start(self):
        pass

    def configure_optimizers(self):
        return build_optimizer(self, partial(torch.optim.SGD, lr=0.01))


def test_a_backbone_gets_the_features_at_the_top_of_the_frozen_layers_of_each_stage(tmp_path):
    stages = [Stage(["head"]), Stage(["head", "encoder.layer4"], epoch=1), Stage(["*"], epoch=2)]
    live, _ = fit(OwnData(), WithBackbone(), stages)
    stored, _ = fit(FeatureData(OwnData(), tmp_path, pooled=True), WithBackbone(), stages)
    assert [cut for cut in dict.fromkeys(cut for cut in stored.seen if isinstance(cut, str))] == ["layer4", "layer3", "images"]
    for name, value in live.state_dict().items():
        assert torch.allclose(value, stored.state_dict()[name], atol=1e-4), name


class HeadInside(Owner):
    """The usual layout: the head is a part of the network."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = resnet18()
        self.encoder.fc = self.head = nn.Linear(512, 3)
        self.encoder.requires_grad_(False).fc.requires_grad_(True)

    def forward(self, images):
        return self.encoder(images)


@pytest.mark.parametrize("cut", ["encoder.avgpool", "encoder.layer3"])
def test_the_cut_may_lie_inside_a_network_whose_head_trains(tmp_path, cut):
    live, _ = fit(OwnData(), HeadInside())
    stored, _ = fit(FeatureData(OwnData(), tmp_path, cut=cut), HeadInside())
    assert set(stored.batches) == {"FeatureBatch"} and not any("forward" in vars(part) for part in stored.modules())
    for name, value in live.state_dict().items():
        assert torch.allclose(value, stored.state_dict()[name], atol=1e-4), name


def test_a_cut_around_which_images_find_another_way_is_one_line(tmp_path):
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return (self.high(self.low(x)) + x).mean((2, 3))

    module = Owner()
    module.encoder = nn.Sequential(Skip(), nn.Linear(3, 8)).requires_grad_(False)
    with pytest.raises(UserError, match=r"stored features of 'encoder.0.high' in place of images, so add cannot be applied to it"):
        fit(FeatureData(OwnData(), tmp_path, cut="encoder.0.high"), module)


def test_several_processes_are_one_line(tmp_path):
    options = LoaderOptions("OwnData", Store(tmp_path), "encoder", pooled=False, dtype=None, max_gb=1.0)
    with pytest.raises(UserError, match=r"^FeatureData of OwnData works in one process only, .* has 2: give Trainer\(devices=1\), or"):
        LoaderPlan(options, SimpleNamespace(world_size=2), OwnData().train_dataloader(), None)
