"""The data modules: batches of their loaders, order of the images, and their use under Lightning."""

from inspect import Parameter, signature
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerState
from paths import CONF as ALL_CONF
from PIL import Image
from torch import nn

from ftlit.data.dataset import Collection, Examples
from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.lit.datamodules.image_sources import ImageData, csv_data, digits_data, folder_data, torchvision_data, unlabelled_data

SPEC = InputSpec(size=8)
CONF = ALL_CONF / "data"


def numbered(index: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (index, index, index))


def ramp(index: int) -> Image.Image:
    return Image.linear_gradient("L").convert("RGB")


def tiny(train: int = 20, load=numbered, **options) -> ImageData:
    """Return data in which image i has the grey value i, so that a batch shows which images it has."""
    splits = {s: Examples(range(n), [(i % 2,) for i in range(n)], load) for s, n in (("train", train), ("val", 5), ("test", 6))}
    spec = InputSpec(size=8, mean=0.0, std=1 / 255, interpolation="nearest")
    return ImageData(Collection(splits, ["even", "odd"]), spec, **{"augment": "none", "num_workers": 0, **options})


def order(data: ImageData, epoch: int = 0) -> list[int]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [round(float(image[0, 0, 0])) for images, _ in loader for image in images]


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return digits_data(SPEC)


def test_loaders_of_digits_give_float_images_and_class_numbers(digits):
    for loader in (digits.train_dataloader(), digits.val_dataloader(), digits.test_dataloader()):
        images, targets = next(iter(loader))
        assert images.shape == (32, 3, 8, 8) and images.dtype == torch.float32
        assert targets.shape == (32,) and targets.dtype == torch.int64
    assert digits.num_classes == 10 and digits.class_names == [str(i) for i in range(10)] and not digits.multilabel


def test_the_counts_agree_with_the_loaders(digits):
    loaders = {"train": digits.train_dataloader(), "val": digits.val_dataloader(), "test": digits.test_dataloader()}
    for split, loader in loaders.items():
        targets = torch.cat([targets for _, targets in loader])
        assert dict(zip(digits.class_names, targets.bincount(minlength=10).tolist(), strict=True)) == digits.counts[split]


@given(seed=st.integers(0, 99), epoch=st.integers(0, 9))
@settings(max_examples=15)
def test_the_order_is_a_permutation_that_depends_only_on_seed_and_epoch(seed, epoch):
    first = order(tiny(seed=seed), epoch)
    torch.rand(3)  # the global random state has no effect
    assert first == order(tiny(seed=seed), epoch) and sorted(first) == list(range(20))
    assert first != order(tiny(seed=seed), epoch + 1) and first != order(tiny(seed=seed + 1), epoch)


def test_loading_does_not_change_the_global_random_state():
    data = tiny()
    state = torch.get_rng_state()
    order(data)
    list(data.val_dataloader())
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize(("n", "batch_size", "loaded"), [(9, 4, 8), (10, 4, 10), (8, 4, 8), (1, 4, 1), (3, 1, 3)])
def test_a_last_batch_of_a_single_image_is_left_out(n, batch_size, loaded):
    assert len(order(tiny(n, batch_size=batch_size))) == loaded


def test_augmentation_does_not_depend_on_the_number_of_workers():
    def epoch(number: int, **options) -> torch.Tensor:
        loader = tiny(load=ramp, augment="photo", batch_size=4, **options).train_dataloader()
        loader.sampler.set_epoch(number)
        return torch.cat([images for images, _ in loader])

    first = epoch(0)
    assert first.equal(epoch(0, num_workers=1)) and first.equal(epoch(0, num_workers=2))
    assert not first.equal(epoch(1)) and not first.equal(epoch(0, seed=1))


def test_mixing_changes_training_batches_only_and_gives_probabilities():
    data = tiny(mix="both")
    _, targets = next(iter(data.train_dataloader()))
    assert targets.shape == (20, 2) and torch.allclose(targets.sum(dim=1), torch.ones(20))
    assert next(iter(data.val_dataloader()))[1].dtype == torch.int64


def test_per_class_limits_the_training_images_of_each_class():
    data = tiny(per_class=3)
    assert data.counts["train"] == {"even": 3, "odd": 3} and sum(data.counts["test"].values()) == 6
    assert set(order(data)) <= set(order(tiny(per_class=4)))


class Recorder(LightningModule):
    """A module that records the images of each epoch and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.epochs: list[list[int]] = []

    def on_train_epoch_start(self) -> None:
        self.epochs.append([])

    def training_step(self, batch, batch_idx):
        self.epochs[-1] += [round(float(image[0, 0, 0])) for image in batch[0]]
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fitted(tmp_path: Path, **options) -> list[list[int]]:
    module = Recorder()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, **quiet).fit(module, datamodule=tiny(**options))
    return module.epochs


def test_lightning_sets_the_epoch_of_the_order(tmp_path):
    first, second = fitted(tmp_path)
    assert first == order(tiny(), 0) and second == order(tiny(), 1)


class TwoProcessTrainer:
    """The attributes of a trainer of two processes that the data module reads."""

    def __init__(self, rank: int) -> None:
        self.distributed_sampler_kwargs, self.overfit_batches = {"num_replicas": 2, "rank": rank}, 0.0
        self.state = TrainerState()


def test_batches_of_two_processes_together_equal_those_of_one_with_twice_the_batch_size():
    one = [set(batch) for batch in chunks(order(tiny(batch_size=8), 3), 8)]
    ranks = []
    for rank in range(2):
        data = tiny(batch_size=4)
        data.trainer = TwoProcessTrainer(rank)
        ranks.append(chunks(order(data, 3), 4))
    assert [set(a) | set(b) for a, b in zip(*ranks, strict=True)] == one


def chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def files(root: Path) -> Path:
    for label, grey in (("a", 0), ("b", 100)):
        for i in range(10):
            (root / label).mkdir(parents=True, exist_ok=True)
            Image.new("L", (9, 9), grey + i).save(root / label / f"{i}.png")
    return root


def test_a_folder_is_split_in_the_same_way_each_time(tmp_path):
    one, two = folder_data(SPEC, root=files(tmp_path)), folder_data(SPEC, root=tmp_path)
    for split in ("train", "val", "test"):
        assert one.collection.splits[split].sources == two.collection.splits[split].sources
    assert one.counts == two.counts and min(one.counts["val"].values()) > 0
    images, _ = next(iter(one.test_dataloader()))
    assert images.shape == (sum(one.counts["test"].values()), 3, 8, 8)


def test_a_csv_with_several_labels_gives_multi_hot_floats(tmp_path):
    files(tmp_path)
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}{'|odd' if int(path.stem) % 2 else ''}" for path in tmp_path.glob("*/*.png")]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    data = csv_data(SPEC, csv=tmp_path / "list.csv", label_separator="|", mix="mixup", num_workers=0)
    assert data.multilabel and data.class_names == ["a", "b", "odd"]
    for loader in (data.train_dataloader(), data.val_dataloader()):
        images, targets = next(iter(loader))
        assert targets.dtype == torch.float32 and targets.shape == (len(images), 3)


def test_torchvision_data_have_photo_augmentation_by_default():
    data = torchvision_data(SPEC, name="FakeData", options={"size": 40, "image_size": (3, 8, 8), "num_classes": 2}, num_workers=0)
    assert sum(len(images) for images, _ in data.train_dataloader()) == sum(data.counts["train"].values())
    assert "RandomHorizontalFlip" in repr(data.train_dataloader().dataset.images.transform)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "foto"}, "did you mean 'photo'"),
        ({"mix": "mixap"}, "did you mean 'mixup'"),
        ({"batch_size": 0}, "data.batch_size=0: give a whole number, 1 or more"),
        ({"num_workers": -1}, "data.num_workers=-1"),
        ({"per_class": 0}, "data.per_class=0"),
    ],
)
def test_arguments_out_of_range_are_one_line_errors(options, message):
    with pytest.raises(UserError, match=message):
        tiny(**options)


@pytest.mark.parametrize("target", [digits_data, folder_data, csv_data, torchvision_data, unlabelled_data], ids=lambda f: f.__name__)
def test_each_option_of_the_config_group_has_the_defaults_of_its_function(target):
    option = yaml.safe_load((CONF / f"{target.__name__.removesuffix('_data')}.yaml").read_text())
    assert option.pop("_target_") == f"ftlit.lit.datamodules.image_sources.{target.__name__}"
    assert option.pop("_convert_") == "object"
    defaults = {name: "???" if p.default is Parameter.empty else p.default for name, p in signature(target).parameters.items()}
    del defaults["input_spec"]
    different = {"seed": "${seed}", "options": {}}
    assert list(option) == list(defaults) and option == {name: different.get(name, default) for name, default in defaults.items()}


def test_a_collection_without_a_split_is_an_error():
    with pytest.raises(UserError, match="the Collection lacks val: give all of the splits train, val, test"):
        ImageData(Collection({split: Examples([], [], str) for split in ("train", "test")}, ["a"]), InputSpec(size=8))
