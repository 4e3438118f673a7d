"""From config to a pretrained backbone: by labels, as `finetune` trains, or layer by layer without them; then keep the layers."""

import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

from ftlit.data.tokens import TextSpec
from ftlit.errors import UserError
from ftlit.features.store import Store
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.tasks.layerwise_pretraining import Curves, LayerwisePretrainer
from ftlit.models.backbone import Backbone
from ftlit.recipes import finetune
from ftlit.recipes.config.hydra_internals import instantiate
from ftlit.recipes.config.validate import bind
from ftlit.recipes.run import console as words
from ftlit.recipes.run.feature_setup import one_device
from ftlit.recipes.run.processes import several_processes
from ftlit.recipes.run.resume import read_config, write_config


def run(cfg: DictConfig) -> float:
    """Train, then write `backbone.safetensors` (float16) to the run's folder. Returns the best validation accuracy; layer by layer minus
    the last layer's error.
    """
    if cfg.get("pretrain"):
        backbone, score = pretrain(cfg)
        first = True
    else:
        run = finetune.build(cfg)
        score, backbone, first = finetune.fit(cfg, run), run.model.backbone, run.trainer.is_global_zero
    if first:
        path = save_backbone(backbone, Path(cfg.paths.run, "backbone.safetensors"))
        print(f"wrote {path}: a file that backbone.weights= takes")
    return score


def save_backbone(backbone: Backbone, path: Path) -> Path:
    """Parameters and statistics under the backbone's own names, floating point ones as float16."""
    state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in backbone.state_dict().items()}
    save_file({name: tensor.to(memory_format=torch.contiguous_format).contiguous() for name, tensor in state.items()}, path)
    return path


SAME = ("backbone", "data", "pretrain", "seed")  # of a pretraining that goes on


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
    if isinstance(backbone.input_spec, TextSpec):
        raise UserError("recipe=pretrain gives images back layer by layer, and these are texts: take weights of an encoder as they are")
    folder = Path(cfg.paths.run)
    with tempfile.TemporaryDirectory(prefix="ftlit-") as own_folder:
        pretrainer = LayerwisePretrainer(
            instantiate(cfg.pretrain),
            folder,
            trainer=one_device(cfg),
            store=Store(cfg.cache.get("folder", own_folder) or cfg.paths.cache),
            seed=cfg.seed,
        )
        if pretrainer.has_layers:
            _check_begun(cfg, folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_config(cfg)
        _say_plan(cfg, backbone, data)
        curves = pretrainer.fit(backbone, data, resume=cfg.resume)
    _draw(folder / "pretrain.png", curves)
    last = curves.get(backbone.layers_with_parameters[-1])
    return backbone, -last[-1][1] if last else float("nan")


def _say_plan(cfg: DictConfig, backbone: Backbone, data: ImageData) -> None:
    sizes = (f"{name} {sum(p.numel() for p in backbone.get_submodule(name).parameters()):,}" for name in backbone.layers_with_parameters)
    epochs = f"{cfg.pretrain.epochs} epoch{'s' * (cfg.pretrain.epochs > 1)} each"
    rows = {
        "pretrain": f"layer by layer, {epochs}, without labels; below the layer that learns all is frozen, and its features are stored",
        "backbone": f"weights: {backbone.origin.describe()}; parameters: {', '.join(sizes)}",
        "input": data.input_spec.told,
        "data": ", ".join(f"{split} {len(part):,}" for split, part in data.collection.splits.items()) + " images (none of test is seen)",
        "run": f"seed {cfg.seed}, folder {cfg.paths.run}",
        "resume": words.resume_command(cfg),
    }
    for name, text in rows.items():
        words.console().print(f"{name:<8}  {text}", soft_wrap=True, markup=False)


def _check_begun(cfg: DictConfig, folder: Path) -> None:
    """Refuse layers that are not gone on with, or that were trained in another way."""
    if not cfg.resume:
        raise UserError(f"{folder} holds a pretraining already: resume=true goes on with it, or give another hydra.run.dir=")
    told: Any = read_config(folder) or {}
    now: Any = OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True))
    for name in SAME:
        if told.get(name) != now.get(name):
            raise UserError(f"{folder} holds layers that were trained with another {name}: give the same, or another hydra.run.dir=")


def _draw(path: Path, curves: Curves) -> None:
    """The errors of each layer by epoch, as PNG."""
    from matplotlib.figure import Figure  # here, so that settings are read without it; no pyplot: no screen is needed

    figure = Figure(figsize=(max(4.0, 2.6 * len(curves) + 0.6), 3.2), layout="constrained")
    for axes, (layer, errors) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for label, values in zip(("train", "val"), zip(*errors, strict=True), strict=True):
            axes.plot(range(1, len(errors) + 1), values, "o-" if label == "val" else "o--", markersize=3, label=label)
        axes.set(title=layer, xlabel="epochs", ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share of the variance that is lost")
    figure.axes[-1].legend()
    figure.savefig(path, dpi=120)
