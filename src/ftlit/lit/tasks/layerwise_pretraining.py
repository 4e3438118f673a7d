"""Greedy layer-wise unsupervised pretraining of a backbone: each layer, the lowest first, from the stored features of those below."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from ftlit.errors import UserError
from ftlit.features.spec import FeatureSpec
from ftlit.features.store import Store
from ftlit.features.table import Rows
from ftlit.lit.datamodules.extraction import evaluation_features
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.tasks.layer_pretrainer import Curve, LayerPretrainer, Pretraining
from ftlit.models.backbone import Backbone
from ftlit.seeding import derived_seed

SAMPLE = 1000  # features that an objective is made with
ONE_DEVICE = partial(pl.Trainer, devices=1)
LAYERS, CURVES = "layers", "pretrain.csv"  # in the folder
Curves = dict[str, list[tuple[float, float]]]  # layer -> errors on train and on val by epoch, in the order of training
Batches = tuple[Any, Any, Tensor]  # of train and of val, and a sample


class LayerwisePretrainer:
    """Trains every layer that holds parameters, in one process, without labels (Bengio et al. 2007, section 2.3).

    Args:
        pretraining: how each layer learns: objective, optimizer, epochs; `autoencoder` and `rbm` of `ftlit.lit.tasks.layer_pretrainer` give one.
        folder: keeps each trained layer as `layers/NAME.safetensors`, and all curves as `pretrain.csv`; made where it is not there.
        trainer: called with Lightning's arguments; gives a Trainer of one device.
        store: keeps the features; `None`: a folder that is gone afterwards.
        seed: of what each layer draws.
    """

    def __init__(
        self,
        pretraining: Pretraining,
        folder: str | Path,
        *,
        trainer: Callable[..., pl.Trainer] = ONE_DEVICE,
        store: Store | None = None,
        seed: int = 0,
    ) -> None:
        self.pretraining, self.folder, self.store, self.seed = pretraining, Path(folder), store, seed
        self._trainer = partial(trainer, logger=False, enable_checkpointing=False)

    @property
    def begun(self) -> bool:
        """Whether the folder holds layers."""
        return any((self.folder / LAYERS).glob("*.safetensors"))

    def fit(self, backbone: Backbone, data: ImageData, *, resume: bool = False) -> Curves:
        """Train the layers in place, and freeze them. A line is printed for each epoch. The first layer sees training images as `data`
        augments them, those above the features of the evaluation view.

        Args:
            backbone: named layers.
            data: images; labels, if there are any, are not looked at.
            resume: take what the folder holds as trained, and go on after it; to the same bits.

        Raises:
            UserError: a folder with layers, without `resume`; a layer that the objective cannot train.
            KeyboardInterrupt: as Lightning was interrupted.
        """
        if self.begun and not resume:
            raise UserError(f"{self.folder} holds a pretraining already: go on with it (resume=true), or take another folder")
        (self.folder / LAYERS).mkdir(parents=True, exist_ok=True)
        table = self.folder / CURVES
        curves = _read(table) if resume and table.is_file() else {}
        for number, name in enumerate(backbone.layers_with_parameters):
            layer, file = backbone.get_submodule(name), self.folder / LAYERS / f"{name}.safetensors"
            if file.is_file():
                layer.load_state_dict(load_file(file))
                layer.eval().requires_grad_(False)
                print(f"{name}: done before", flush=True)
                continue
            torch.manual_seed(derived_seed(self.seed, number))  # whatever was trained, or resumed, before
            curves[name] = self._train(backbone, data, name)
            if not curves[name][-1][1] < 1:
                print(f"{name} gives back no more than the mean does: more pretrain.epochs, or another pretrain.optimizer.lr", flush=True)
            _write(table, curves)
            save_file({key: tensor.contiguous() for key, tensor in layer.state_dict().items()}, beside := file.with_suffix(".part"))
            beside.replace(file)  # all of it, or none
        return curves

    def _train(self, backbone: Backbone, data: ImageData, name: str) -> list[tuple[float, float]]:
        """Train one layer in place. Returns its errors on train and val by epoch."""
        place, layer = backbone.index(name), backbone.get_submodule(name)
        below = backbone.get_submodule(backbone.cuts[place - 1]) if place else None
        curve = Curve(name)
        trainer = self._trainer(
            max_epochs=self.pretraining.epochs,
            callbacks=[curve],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        with self._batches(backbone, data, place) as (train, val, sample):
            try:
                objective: Any = self.pretraining.objective(layer, below, sample)
            except UserError as error:
                raise UserError(f"layer {name!r}: {error}") from error
            trainer.fit(LayerPretrainer(objective, self.pretraining.optimizer), train, val)
            if trainer.interrupted:
                raise KeyboardInterrupt
        objective.to("cpu")
        objective.finish()
        layer.eval().requires_grad_(False)
        return curve.epochs

    @contextmanager
    def _batches(self, backbone: Backbone, data: ImageData, place: int) -> Iterator[Batches]:
        """What a layer is given, of train and val, and a sample of it: images for the lowest, else stored features of the layers below."""
        if not place:
            images = data.collection.splits["train"]
            seen = [data.transforms["val"](images.load(images.sources[i])) for i in _sample(len(images), self.seed)]
            yield data.train_dataloader(), data.val_dataloader(), torch.stack(seen)
            return
        with TemporaryDirectory(prefix="ftlit-") as own_folder:
            spec = FeatureSpec(backbone.cuts[place - 1], None)
            store = self.store or Store(own_folder)
            found = evaluation_features(self._trainer(), store, backbone, data, [spec], ("train", "val"))
            train, val = found["train"][spec], found["val"][spec]
            backbone.to("cpu")  # where the next objective is made; the trainer moves it
            draw = torch.Generator().manual_seed(derived_seed(data.seed, place))
            yield _loader(train, data.batch_size, draw), _loader(val, data.batch_size), train.read(_sample(len(train), self.seed)).float()


def _sample(count: int, seed: int) -> list[int]:
    """Places of at most SAMPLE of so many, drawn: what is listed first is of one class."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed(seed, count)))[:SAMPLE].tolist()


def _loader(rows: Rows, batch_size: int, draw: torch.Generator | None = None) -> DataLoader[Tensor]:
    """Batches of features: in order, or in a new one each epoch, without a last one of a single row, of which there are no statistics."""
    one_left = draw is not None and len(rows) % batch_size == 1

    def read(places: list[int]) -> Tensor:
        return rows.read(places).float()

    return DataLoader(range(len(rows)), batch_size, shuffle=draw is not None, generator=draw, collate_fn=read, drop_last=one_left)  # type: ignore[arg-type]


def _write(path: Path, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """A row an epoch: layer, epoch, error on train and on val."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["layer", "epoch", "train/error", "val/error"])
        writer.writerows((layer, epoch, *pair) for layer, errors in curves.items() for epoch, pair in enumerate(errors))


def _read(path: Path) -> Curves:
    found: Curves = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["layer"], []).append((float(row["train/error"]), float(row["val/error"])))
    return found
