"""Load the parts that every recipe starts from: backbone and data, from a config that is checked first."""

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from omegaconf import DictConfig

from ftlit.errors import UserError
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.models.backbone import Backbone
from ftlit.recipes.config.hydra_internals import instantiate
from ftlit.recipes.config.validate import bind, check_input, check_labelled
from ftlit.recipes.run.processes import several_processes

HIDDEN_WARNINGS = (  # of Lightning: hints on hardware and loaders, and what is meant here
    "does not have many workers",
    "number of training batches",
    "directory .* exists and is not empty",
    "Checkpoint directory",
    "use_distributed_sampler",
    "GPU available but not used",
    "Starting from v1.9.0, `tensorboardX`",
    "resuming from a checkpoint that ended before",
    "`lr_scheduler.step",
    "module\\(s\\) in eval mode at the start of training",  # frozen layers
    "isinstance\\(treespec, LeafSpec\\)",
    "`IterableDataset` has `__len__`",
)


@dataclass(frozen=True)
class Parts:
    """Backbone and data of a run; the data is an option of the config group `data`."""

    backbone: Backbone
    data: Any


def load_parts(cfg: DictConfig, *, labelled: bool = True) -> Parts:
    """Check the config, seed the process, and load backbone and data.

    Args:
        cfg: the composed config.
        labelled: whether the recipe needs labels.

    Raises:
        UserError: a value that does not fit; images for a network of texts or the reverse; data without labels where they are needed.
    """
    hide_warnings()
    bind(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    backbone: Backbone = instantiate(cfg.backbone)
    check_input(cfg, backbone.input_spec)
    data = instantiate(cfg.data, input_spec=backbone.input_spec)
    if labelled:
        check_labelled(data)
    return Parts(backbone, data)


def hide_warnings() -> None:
    """Hide hints of Lightning that do not help here, and print other warnings in one line."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    for text in HIDDEN_WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{text}.*")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


def check_built_in(cfg: DictConfig, data: Any) -> None:
    """Refuse a custom data module in a recipe that reads images by itself."""
    if type(data) is not ImageData:
        raise UserError(f"recipe={cfg.recipe} needs a built-in option of data, not {type(data).__name__}: it reads the images itself")


def check_one_process(cfg: DictConfig) -> None:
    """Refuse a trainer with several processes."""
    if several_processes(cfg):
        raise UserError(f"recipe={cfg.recipe} runs in one process: give trainer=auto, or trainer.devices=1")
