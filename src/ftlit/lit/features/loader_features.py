"""Stored features for data modules of any kind: the loaders keep their order, and the images of each batch are replaced by features."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from ftlit.data.dataset import Split
from ftlit.data.samplers import SeededItems
from ftlit.errors import UserError
from ftlit.features.store import Store
from ftlit.lit.features.cache_options import check_store_options
from ftlit.lit.features.loader_plan import LoaderOptions, LoaderPlan
from ftlit.lit.module_internals import overrides, share_hyperparameters
from ftlit.lit.trainer_internals import overfits_batches
from ftlit.models.feature_batch import release_features

TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class LoaderFeatures(LightningDataModule):
    """What `FeatureData` is for a data module that is no `ImageData`; see there for the arguments.

    Reads each data set once, in order, before the first epoch; then its features, by their place in the data set.
    """

    def __init__(
        self,
        data: LightningDataModule,
        folder: str | Path | None = None,
        *,
        cut: str | None = None,
        pooled: bool = False,
        dtype: str | None = None,
        max_gb: float = 20.0,
        trust: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(data, LightningDataModule):
            raise UserError(
                f"FeatureData needs a LightningDataModule, not {type(data).__name__}: wrap loaders in one, or "
                "compute features without a trainer, with ftlit.extract_features(module, loader, cut)"
            )
        name = type(data).__name__
        if changed := [hook for hook in TRANSFER_HOOKS if overrides(data, LightningDataModule, hook)]:
            raise UserError(
                f"FeatureData cannot be used with {name}, because {name} overrides {', '.join(changed)}: move what this method does into "
                f"the data sets of {name}, or train without FeatureData"
            )
        check_store_options(dtype, max_gb)
        self.data, store = data, Store(folder, trust=trust)
        store.check()
        self._options = LoaderOptions(name, store, cut, pooled, dtype, max_gb)
        self._plan: LoaderPlan | None = None
        share_hyperparameters(self, data)

    def prepare_data(self) -> None:
        """Prepare the data module."""
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Set up the data module, and forget the last fit."""
        self.data.trainer = self.trainer
        self.data.setup(stage)
        share_hyperparameters(self, self.data)
        self._plan = None

    def teardown(self, stage: str) -> None:
        """Tear down the data module; the module takes images only again."""
        if self._plan:
            release_features(self._plan.way)
        self.data.teardown(stage)

    def on_exception(self, exception: BaseException) -> None:
        """Tell the data module."""
        self.data.on_exception(exception)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the data module."""
        return self.data.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the data module."""
        self.data.load_state_dict(state_dict)

    def train_dataloader(self) -> Any:
        """Return training batches, in each epoch with the features or images that the current stage reads."""
        return self._served(self.data.train_dataloader(), "train", "train")

    def val_dataloader(self) -> Any:
        """Return batches of val, as those of training."""
        if not overrides(self.data, LightningDataModule, "val_dataloader"):
            return []
        loaders = self.data.val_dataloader()
        if not isinstance(loaders, list | tuple):
            return self._served(loaders, "val", "val")
        return [self._served(loader, "val", f"val {number}") for number, loader in enumerate(loaders)]

    def test_dataloader(self) -> Any:
        """Return the loaders of test: each image is read once."""
        return self.data.test_dataloader()

    def predict_dataloader(self) -> Any:
        """Return the loaders of predict: each image is read once."""
        return self.data.predict_dataloader()

    def _served(self, loader: Any, split: Split, name: str) -> Any:
        assert self.trainer is not None
        if self.trainer.state.fn != "fit":
            return loader
        if overfits_batches(self.trainer):
            raise UserError("FeatureData does not support overfit_batches: use limit_train_batches")
        check_loader(loader, f"the {name} loader of {type(self.data).__name__}")
        if self._plan is None:
            self._plan = LoaderPlan(self._options, self.trainer, loader, self._train_loader)
        return ServedLoader(loader, partial(self._plan.serve, split, name, loader))

    def _train_loader(self) -> DataLoader[Any]:
        loader: Any = self.data.train_dataloader()
        check_loader(loader, f"the train loader of {type(self.data).__name__}")
        return loader  # type: ignore[no-any-return]


class ServedLoader:
    """A loader whose batches have features in place of images wherever there are some, in the order of the loader."""

    def __init__(self, loader: DataLoader[Any], serve: Any) -> None:
        self._loader, self._serve = loader, serve
        self.sampler, self.batch_sampler = loader.sampler, loader.batch_sampler  # Lightning sets the epoch on these
        self.dataset = loader.dataset

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        collate = self._serve()  # runs at the first batch, after the stage has begun
        if collate is None:
            yield from self._loader
            return
        generator = self._loader.generator or torch.default_generator
        torch.empty((), dtype=torch.int64).random_(generator=generator)  # as a DataLoader draws, so that the order is the same
        seeded = isinstance(self.dataset, SeededItems)
        for places in self._loader.batch_sampler:  # type: ignore[union-attr]
            yield collate([index for _, index in places] if seeded else places)


def check_loader(loader: Any, name: str) -> None:
    """Raise `UserError` for a loader whose items cannot be read again by their place in a data set."""
    if not isinstance(loader, DataLoader):
        raise UserError(f"{name} is a {type(loader).__name__}, but FeatureData reads items by their index: give a torch DataLoader")
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        if isinstance(loader.dataset, IterableDataset):
            fault, advice = "an IterableDataset", "a data set with __getitem__ and __len__"
        else:
            fault, advice = "batch_size=None", "a batch_size"
        raise UserError(f"{name} has {fault}, but FeatureData reads items by their index: give {advice}")
