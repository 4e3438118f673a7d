"""Run `recipe=pretrain`: train a backbone with labels as `finetune` does, or layer by layer without labels, and save its weights."""

from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from ftlit.data.tokens import TextSpec
from ftlit.errors import UserError
from ftlit.features.store import Store
from ftlit.files import temporary_folder, write_figure
from ftlit.formatting import count
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.datamodules.indexed_images import IndexedImages
from ftlit.lit.strategies import keeps_whole_weights
from ftlit.lit.tasks.layerwise_pretraining import Curves, LayerwisePretrainer
from ftlit.models.backbone import Backbone
from ftlit.printing import print_rows
from ftlit.recipes import finetune
from ftlit.recipes.build_run import build
from ftlit.recipes.config.hydra_internals import instantiate
from ftlit.recipes.console.commands import resume_command
from ftlit.recipes.resuming.data_record import check_data
from ftlit.recipes.resuming.resume import check_settings, write_config
from ftlit.recipes.resuming.split_file import store_split
from ftlit.recipes.run.artifacts import write_command
from ftlit.recipes.run.feature_setup import one_device
from ftlit.recipes.run.parts import check_indexed_images, check_one_process, load_parts
from ftlit.recipes.run.trainer import strategy_class
from ftlit.tensor_files import write_tensors


def run(cfg: DictConfig) -> float:
    """Train, then write `backbone.safetensors` (float16) to the run's folder.

    Returns:
        The best validation accuracy; for layer-wise pretraining, minus the error of the last layer on val.
    """
    if not keeps_whole_weights(strategy_class(cfg)):
        raise UserError("recipe=pretrain does not shard the weights of the network, as trainer=fsdp2 does: give trainer=ddp")
    if cfg.get("pretrain"):
        backbone, score = pretrain(cfg)
        first = True
    else:
        run = build(cfg, compares=False)
        score, backbone, first = finetune.fit(cfg, run), run.model.backbone, run.trainer.is_global_zero
    if first:
        path = save_backbone(backbone, Path(cfg.paths.run, "backbone.safetensors"))
        print(f"wrote {path}; to use these weights, give backbone.weights={path}")
    return score


def save_backbone(backbone: Backbone, path: Path) -> Path:
    """Save parameters and buffers under the names of the backbone, floating-point ones as float16. Returns the path."""
    state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in backbone.state_dict().items()}
    write_tensors(path, {name: tensor.to(memory_format=torch.contiguous_format).contiguous() for name, tensor in state.items()})
    return path


def pretrain(cfg: DictConfig) -> tuple[Backbone, float]:
    """Pretrain every layer with parameters. Writes `pretrain.csv`, `pretrain.png` and a file per layer to the run's folder; `resume=true`
    continues after the last complete layer.

    Returns:
        The backbone, and minus the error of the last layer on val.

    Raises:
        UserError: data that is not built in, several processes, a folder that holds another pretraining, a layer that the objective cannot
            train.
    """
    check_one_process(cfg)
    parts = load_parts(cfg, labelled=False)
    backbone, data = parts.backbone, parts.data
    check_indexed_images(cfg, data)
    if isinstance(backbone.input_spec, TextSpec):
        raise UserError(
            "recipe=pretrain learns from images only, but the data are texts: use recipe=finetune with pretrained "
            "weights, backbone.weights=..."
        )
    folder = Path(cfg.paths.run)
    with temporary_folder() as own_folder:
        pretrainer = LayerwisePretrainer(
            instantiate(cfg.pretrain),
            folder,
            trainer=one_device(cfg),
            store=Store(cfg.cache.get("folder", own_folder) or cfg.paths.cache, trust=cfg.cache.get("trust", False)),
            seed=cfg.seed,
        )
        if pretrainer.has_layers and not cfg.resume:
            raise UserError(f"{folder} already holds a pretraining run: give resume=true to continue it, or another hydra.run.dir=...")
        if cfg.resume:
            check_settings(cfg)
        _, notes = check_data(cfg, data)
        write_config(cfg)
        if not cfg.resume:
            write_command(folder)
        store_split(folder, data if isinstance(data, ImageData) else None)
        _say_plan(cfg, backbone, data, notes)
        curves = pretrainer.fit(backbone, data, resume=bool(cfg.resume))
    _draw(folder / "pretrain.png", curves)
    last = curves.get(backbone.layers_with_parameters[-1])
    return backbone, -last[-1][1] if last else float("nan")


def _say_plan(cfg: DictConfig, backbone: Backbone, data: IndexedImages, notes: Sequence[str]) -> None:
    sizes = (f"{name} {sum(p.numel() for p in backbone.get_submodule(name).parameters()):,}" for name in backbone.layers_with_parameters)
    epochs = f"{count(cfg.pretrain.epochs, 'epoch')} each"
    rows = {
        "pretrain": f"layer by layer, {epochs}, without labels; layers below the current one are frozen and their features cached",
        "backbone": f"weights: {backbone.origin.describe()}; parameters: {', '.join(sizes)}",
        "input": data.input_spec.summary,
        "data": ", ".join(f"{split} {len(part):,}" for split, part in data.collection.splits.items()) + " images (test is not used)",
        "run": f"seed {cfg.seed}, folder {cfg.paths.run}",
        "resume": resume_command(cfg),
    }
    print_rows([*rows.items(), *(("note", note) for note in [*getattr(data, "notes", []), *notes])])


def _draw(path: Path, curves: Curves) -> None:
    """Plot the errors of each layer by epoch, as PNG."""
    from matplotlib.figure import Figure  # here: matplotlib takes a second to import; no pyplot: no screen is needed

    figure = Figure(figsize=(max(4.0, 2.6 * len(curves) + 0.6), 3.2), layout="constrained")
    for axes, (layer, errors) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for label, values in zip(("train", "val"), zip(*errors, strict=True), strict=True):
            axes.plot(range(1, len(errors) + 1), values, "o-" if label == "val" else "o--", markersize=3, label=label)
        axes.set(title=layer, xlabel="epochs", ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share of variance lost")
    figure.axes[-1].legend()
    write_figure(path, figure, dpi=120)
