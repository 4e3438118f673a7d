"""From config to a backbone pretrained without labels: layer by layer, the lowest first, each from the stored codes of those below."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from ftlit.backbone import Backbone
from ftlit.column import Rows
from ftlit.errors import UserError
from ftlit.lit.images import ImageData
from ftlit.lit.pretrainer import Curve, LayerPretrainer, Pretraining
from ftlit.recipes import finetune, words
from ftlit.recipes.binding import bind
from ftlit.recipes.extracting import whole_codes_of
from ftlit.recipes.isolation import several_processes
from ftlit.seeding import derived_seed

SAMPLE = 1000  # codes that an objective is made with
SAME = ("backbone", "data", "pretrain", "seed")  # of a pretraining that goes on
Batches = tuple[Any, Any, Tensor]  # of train and of val, and a sample


def pretrain(cfg: DictConfig) -> tuple[Backbone, float]:
    """Train every layer that holds parameters, and leave `pretrain.csv`, `pretrain.png` and a file of each layer in the run's folder, from
    which `resume=true` goes on after the last whole layer. Returns the backbone, and minus the last layer's error on val.

    Raises:
        UserError: data without images that can be read in any order, several processes, a folder that holds another pretraining, a layer
            that the objective cannot train.
    """
    finetune.quiet()
    bind(cfg)
    if several_processes(cfg):
        raise UserError("recipe=pretrain trains layer by layer in one process: give trainer=auto, or trainer.devices=1")
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    backbone: Backbone = instantiate(cfg.backbone)
    data = instantiate(cfg.data, input_spec=backbone.input_spec)
    if type(data) is not ImageData:
        raise UserError(f"recipe=pretrain reads images in its own way: take one of ftlit's options of data, not {type(data).__name__}")
    folder = Path(cfg.paths.run, "layers")
    _check_begun(cfg, folder)
    folder.mkdir(parents=True, exist_ok=True)
    Path(cfg.paths.run, "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    layers = backbone.learned
    images = ", ".join(f"{split} {len(data.collection.splits[split]):,}" for split in ("train", "val"))
    epochs = f"{cfg.pretrain.epochs} epoch{'s' * (cfg.pretrain.epochs > 1)} each"
    words.console().print(f"pretrain  {', '.join(layers)}, {epochs}, without labels; images: {images}", soft_wrap=True)
    words.console().print(f"resume    {words.resume_command(cfg)}", soft_wrap=True, markup=False)
    table = Path(cfg.paths.run, "pretrain.csv")
    curves = _read(table) if cfg.resume and table.is_file() else {}
    for number, name in enumerate(layers):
        file, beside = folder / f"{name}.safetensors", folder / f"{name}.part"
        if file.is_file():
            backbone.get_submodule(name).load_state_dict(load_file(file))
            print(f"{name}: done before", flush=True)
            continue
        torch.manual_seed(derived_seed(cfg.seed, number))  # whatever was trained, or resumed, before
        curves[name] = _train(cfg, backbone, data, name)
        if not curves[name][-1][1] < 1:
            print(f"{name} gives back no more than the mean does: more pretrain.epochs, or another pretrain.optimizer.lr", flush=True)
        _write(table, curves)
        save_file({key: tensor.contiguous() for key, tensor in backbone.get_submodule(name).state_dict().items()}, beside)
        beside.replace(file)  # all of it, or none
    _draw(Path(cfg.paths.run, "pretrain.png"), curves)
    return backbone, -curves[layers[-1]][-1][1] if layers[-1] in curves else float("nan")


def _check_begun(cfg: DictConfig, folder: Path) -> None:
    """Refuse a folder with layers that are not gone on with, or that were trained in another way."""
    if not any(folder.glob("*.safetensors")):
        return
    if not cfg.resume:
        raise UserError(f"{cfg.paths.run} holds a pretraining already: resume=true goes on with it, or give another hydra.run.dir=")
    before = Path(cfg.paths.run, "config.yaml")
    told: Any = OmegaConf.load(before) if before.is_file() else {}
    now: Any = OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True))
    for name in SAME:
        if told.get(name) != now.get(name):
            raise UserError(f"{cfg.paths.run} holds layers that were trained with another {name}: give the same, or another hydra.run.dir=")


def _train(cfg: DictConfig, backbone: Backbone, data: ImageData, name: str) -> list[tuple[float, float]]:
    """Train one layer in place. Returns its errors on train and val by epoch."""
    place, layer = backbone.index(name), backbone.get_submodule(name)
    below = backbone.get_submodule(backbone.cuts[place - 1]) if place else None
    pretraining: Pretraining = instantiate(cfg.pretrain)
    trainer: pl.Trainer = instantiate(
        {**cfg.trainer, "max_epochs": pretraining.epochs},
        devices=1,
        strategy="auto",
        logger=False,
        callbacks=[curve := Curve(name)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
    with _batches(cfg, backbone, data, place) as (train, val, sample):
        try:
            objective: Any = pretraining.objective(layer, below, sample)
        except UserError as error:
            raise UserError(f"layer {name!r}: {error}") from error
        trainer.fit(LayerPretrainer(objective, pretraining.optimizer), train, val)
        if trainer.interrupted:
            raise KeyboardInterrupt
    objective.to("cpu")
    objective.finish()
    layer.eval().requires_grad_(False)
    return curve.epochs


@contextmanager
def _batches(cfg: DictConfig, backbone: Backbone, data: ImageData, place: int) -> Iterator[Batches]:
    """What a layer is given, of train and val, and a sample of it: images for the lowest, else stored codes of the layers below."""
    if not place:
        images = data.collection.splits["train"]
        seen = [data.transforms["val"](images.load(images.sources[i])) for i in _sample(len(images), cfg.seed)]
        yield data.train_dataloader(), data.val_dataloader(), torch.stack(seen)
        return
    with whole_codes_of(cfg, backbone, data, backbone.cuts[place - 1], ("train", "val")) as found:
        train, val = found["train"], found["val"]
        backbone.to("cpu")  # where the next objective is made; the trainer moves it
        draw = torch.Generator().manual_seed(derived_seed(cfg.data.seed, place))
        yield _loader(train, data.batch_size, draw), _loader(val, data.batch_size), train.read(_sample(len(train), cfg.seed)).float()


def _sample(count: int, seed: int) -> list[int]:
    """Places of at most SAMPLE of so many, drawn: what is listed first is of one class."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed(seed, count)))[:SAMPLE].tolist()


def _loader(rows: Rows, batch_size: int, draw: torch.Generator | None = None) -> DataLoader[Tensor]:
    """Batches of codes: in order, or in a new one each epoch, without a last one of a single row, of which there are no statistics."""
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


def _read(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Layer -> errors by epoch, in the order of training."""
    found: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["layer"], []).append((float(row["train/error"]), float(row["val/error"])))
    return found


def _draw(path: Path, curves: dict[str, list[tuple[float, float]]]) -> None:
    """The errors of each layer by epoch, as PNG."""
    from matplotlib.figure import Figure  # here, so that settings are read without it; no pyplot: no screen is needed

    figure = Figure(figsize=(2.6 * len(curves) + 0.6, 3.2), layout="constrained")
    for axes, (layer, errors) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for label, values in zip(("train", "val"), zip(*errors, strict=True), strict=True):
            axes.plot(range(len(errors)), values, "o-" if label == "val" else "--", markersize=3, label=label)
        axes.set(title=layer, xlabel="epoch", ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share of the variance that is lost")
    figure.axes[-1].legend()
    figure.savefig(path, dpi=120)
