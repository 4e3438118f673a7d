"""LayerwisePretrainer: greedy unsupervised pretraining of a backbone, one layer after the other, on stored features of those below."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftlit.errors import UserError
from ftlit.features.spec import FeatureSpec
from ftlit.features.store import Store
from ftlit.features.table import Rows
from ftlit.files import temporary_folder, write_rows
from ftlit.finetuning.layerwise_objectives import LayerObjective
from ftlit.formats import reading
from ftlit.lit.datamodules.indexed_images import IndexedImages
from ftlit.lit.features.extraction import evaluation_features
from ftlit.lit.tasks.layer_pretrainer import ErrorsByEpoch, LayerPretrainer, Pretraining
from ftlit.models.backbone import Backbone
from ftlit.plain_arguments import plain_arguments
from ftlit.seeding import derived_seed
from ftlit.tensor_files import read_tensors, write_tensors

SAMPLE = 1000  # inputs that an objective is built with
ONE_DEVICE = partial(pl.Trainer, devices=1)
LAYERS, CURVES = "layers", "pretrain.csv"  # in the folder
Curves = dict[str, list[tuple[float, float]]]  # layer -> (error on train, error on val) by epoch, in the order of training


class LayerInputs(NamedTuple):
    """Inputs of one layer.

    Args:
        train: loader of batches (N, *shape), or of (images, targets).
        val: the same of the val split.
        sample: (n, *shape) from the train split, n at most `SAMPLE`.
    """

    train: Any
    val: Any
    sample: Tensor


class LayerwisePretrainer:
    """Trains every layer that holds parameters, in one process, without labels (Bengio et al. 2007, section 2.3).

    Args:
        pretraining: how each layer learns: objective, optimizer, epochs; see `autoencoder` and `rbm` in
            `ftlit.lit.tasks.layer_pretrainer`.
        folder: keeps each trained layer as `layers/NAME.safetensors`, and all errors as `pretrain.csv`; created if it does not exist.
        trainer: called with arguments of Lightning's Trainer; returns a Trainer of one device.
        store: keeps the features; `None` for a temporary folder.
        seed: of the random numbers of each layer.
    """

    @plain_arguments
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
    def has_layers(self) -> bool:
        """Whether the folder holds trained layers."""
        return any((self.folder / LAYERS).glob("*.safetensors"))

    def fit(self, backbone: Backbone, data: IndexedImages, *, resume: bool = False) -> Curves:
        """Train the layers in place, and freeze them. Prints a line for each epoch.

        The lowest layer sees training images as `data` augments them; layers above see features of the evaluation view.

        Args:
            backbone: named layers.
            data: images; labels are ignored.
            resume: take the layers in the folder as trained and train the others. The result is the same to the bit.

        Raises:
            UserError: a folder with layers, without `resume`; a layer that the objective does not support.
            SystemExit: the Trainer was interrupted by Ctrl-C.
        """
        if self.has_layers and not resume:
            raise UserError(
                f"{self.folder} already contains a pretraining run: resume it with resume=true, or give another hydra.run.dir=..."
            )
        (self.folder / LAYERS).mkdir(parents=True, exist_ok=True)
        table = self.folder / CURVES
        curves = read_curves(table) if resume and table.is_file() else {}
        for number, name in enumerate(backbone.layers_with_parameters):
            layer, file = backbone.get_submodule(name), self.folder / LAYERS / f"{name}.safetensors"
            if file.is_file():
                layer.load_state_dict(_read(file))
                layer.eval().requires_grad_(False)
                print(f"{name}: already trained", flush=True)
                continue
            torch.manual_seed(derived_seed(self.seed, number))  # whatever was trained, or loaded, before
            curves[name] = self._train(backbone, data, name)
            _warn_about(name, curves[name])
            write_curves(table, curves)
            _save(layer, file)
        return curves

    def _train(self, backbone: Backbone, data: IndexedImages, name: str) -> list[tuple[float, float]]:
        """Train one layer in place and freeze it. Returns its errors on train and val by epoch."""
        place, layer = backbone.index(name), backbone.get_submodule(name)
        below = backbone.get_submodule(backbone.cuts[place - 1]) if place else None
        with self._inputs(backbone, data, place) as inputs:
            try:
                objective = self.pretraining.objective(layer, below, inputs.sample)
            except UserError as error:
                raise UserError(f"layer {name!r}: {error}") from error
            errors = self._fit(objective, inputs, name)
        objective.to("cpu")
        objective.finish()
        layer.eval().requires_grad_(False)
        return errors

    def _fit(self, objective: LayerObjective, inputs: LayerInputs, name: str) -> list[tuple[float, float]]:
        recorded = ErrorsByEpoch(name)
        trainer = self._trainer(
            max_epochs=self.pretraining.epochs,
            callbacks=[recorded],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(LayerPretrainer(objective, self.pretraining.optimizer), inputs.train, inputs.val)
        if not all(isfinite(train) for train, _ in recorded.errors):
            raise UserError(
                f"the reconstruction error of layer {name!r} is not finite: give a lower pretrain.optimizer.lr, or check the images"
            )
        return recorded.errors

    @contextmanager
    def _inputs(self, backbone: Backbone, data: IndexedImages, place: int) -> Iterator[LayerInputs]:
        """Inputs of the layer at `place`: images for the lowest, features of the layers below for the others."""
        if not place:
            yield self._images(data)
            return
        with temporary_folder() as own_folder:
            spec = FeatureSpec(backbone.cuts[place - 1], None)
            store = self.store or Store(own_folder)
            found = evaluation_features(self._trainer(), store, backbone, data, [spec], ("train", "val"))
            train, val = found["train"][spec], found["val"][spec]
            backbone.to("cpu")  # where the objective is built; the trainer moves it
            shuffle = torch.Generator().manual_seed(derived_seed(data.seed, place))
            sample = train.read(sample_of(len(train), self.seed)).float()
            yield LayerInputs(_loader(train, data.batch_size, shuffle), _loader(val, data.batch_size), sample)

    def _images(self, data: IndexedImages) -> LayerInputs:
        images, transform = data.collection.splits["train"], data.transforms["val"]
        sample = [transform(images.load(images.sources[i])) for i in sample_of(len(images), self.seed)]
        return LayerInputs(data.train_dataloader(), data.val_dataloader(), torch.stack(sample))


def sample_of(count: int, seed: int) -> list[int]:
    """At most `SAMPLE` of `count` places, at random: neighbours in a list are often of one class."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed(seed, count)))[:SAMPLE].tolist()


def _loader(rows: Rows, batch_size: int, shuffle: torch.Generator | None = None) -> DataLoader[Tensor]:
    """Batches of features, in order or shuffled. A last training batch of one row is left out: it has no batch statistics."""
    one_left = shuffle is not None and len(rows) % batch_size == 1

    def read(places: list[int]) -> Tensor:
        return rows.read(places).float()

    return DataLoader(
        range(len(rows)),  # type: ignore[arg-type]
        batch_size,
        shuffle=shuffle is not None,
        generator=shuffle,
        collate_fn=read,
        drop_last=one_left,
    )


def _warn_about(name: str, errors: Sequence[tuple[float, float]]) -> None:
    _, last = errors[-1]
    if not last < 1:
        print(
            f"layer {name!r} has not learned: its reconstruction error is no lower than that of always giving the mean input; "
            "give more pretrain.epochs, or another pretrain.optimizer.lr",
            flush=True,
        )


def _save(layer: nn.Module, file: Path) -> None:
    """Write the parameters and buffers of a layer. The file is complete or does not exist."""
    write_tensors(file, {key: tensor.contiguous() for key, tensor in layer.state_dict().items()})


def _read(file: Path) -> dict[str, Tensor]:
    """The parameters and buffers that `_save` has written. Raises `UserError` for a damaged file."""
    with reading(file, "remove it; then resume=true trains this layer again"):
        return read_tensors(file)[0]


def write_curves(path: Path, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Write a csv file with a row for each epoch: layer, epoch, error on train, error on val."""
    rows = ((layer, epoch, *pair) for layer, errors in curves.items() for epoch, pair in enumerate(errors))
    write_rows(path, [("layer", "epoch", "train/error", "val/error"), *rows])


def read_curves(path: Path) -> Curves:
    """The curves that `write_curves` has written. Raises `UserError` for a damaged file."""
    found: Curves = {}
    with reading(path, "remove this file; the curves of the layers trained so far are then lost"), path.open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["layer"], []).append((float(row["train/error"]), float(row["val/error"])))
    return found
