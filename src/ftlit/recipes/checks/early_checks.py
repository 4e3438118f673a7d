"""Checks of a composed config without torch, whose import takes seconds: unknown names, missing values, numbers out of
range, paths that do not exist.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ftlit.data.source_paths import existing_csv, existing_folder
from ftlit.errors import UserError
from ftlit.recipes.checks.config_names import check_names
from ftlit.recipes.checks.ranges import check_ranges
from ftlit.recipes.config.candidates import AUTO, GROUP, candidates_of
from ftlit.recipes.config.hydra_internals import choices

CSV_FILES = ("csv", "val_csv", "test_csv")
GIVEN_PATHS = (  # where an empty text would be the current folder
    *(f"data.{name}" for name in ("root", *CSV_FILES, "split_from")),
    *("init_from", "backbone.weights", "cache.folder", "paths.run", "paths.runs", "paths.cache"),
)
OF_A_RUN = {  # values that have one place in a run's folder: resume=true, predict and report read it
    "callbacks.last.path": "checkpoints/last.ckpt",
    "callbacks.best.dirpath": "checkpoints",
    "callbacks.best.filename": "best",
    "average.path": "checkpoints/start.ckpt",
}
PATHS: Mapping[str, tuple[tuple[str, ...], Callable[[str], Path]]] = {  # data source -> values that are paths, and their check
    "ftlit.lit.datamodules.image_sources.folder_data": (("root",), existing_folder),
    "ftlit.lit.datamodules.image_sources.unlabelled_data": (("root",), existing_folder),
    "ftlit.lit.datamodules.image_sources.csv_data": (CSV_FILES, existing_csv),
    "ftlit.lit.datamodules.text_sources.text_csv_data": (CSV_FILES, existing_csv),
}


def check_early(cfg: DictConfig) -> None:
    """Check what needs neither torch nor the parts of the run.

    Raises:
        UserError: what `check_names` raises; a value that is missing, a number out of its range, a path of a built-in data source that does
            not exist, or a candidate of `backbone=auto` that is no option.
    """
    check_names(cfg)
    for name in sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"{name} has no value: give {name}=...")
    for name in GIVEN_PATHS:
        if OmegaConf.select(cfg, name) == "":
            raise UserError(f"{name} is empty: give a path, or leave it out")
    names, check = PATHS.get(str(cfg.data.get("_target_")), ((), Path))
    for name in names:
        if isinstance(path := cfg.data.get(name), str):
            check(path)
    if choices().get(GROUP) == AUTO and cfg.backbone.among is not None:
        candidates_of(cfg)  # without names it would look for weights, which takes torch
    _check_callbacks(cfg)
    check_ranges(cfg)


def _check_callbacks(cfg: DictConfig) -> None:
    """Check callbacks and loggers as far as their classes need not be imported."""
    for group in ("callbacks", "logger"):
        for name, node in cfg[group].items():
            if node and not (isinstance(node, DictConfig) and "_target_" in node):
                raise UserError(f"{group}.{name}={node} names no class: give {group}.{name}._target_=..., or {group}.{name}=null for none")
    if "csv" in cfg.logger and not isinstance(cfg.logger.csv, DictConfig):
        raise UserError("logger.csv=null is not supported, because ftlit report and resume=true read metrics.csv: leave logger.csv out")
    for name, place in OF_A_RUN.items():
        given = OmegaConf.select(cfg, name)
        if given is not None and Path(str(given)) != (Path(place) if name.endswith("filename") else Path(cfg.paths.run, place)):
            raise UserError(
                f"{name}={given} is not supported, because best.ckpt and last.ckpt must be in {Path(cfg.paths.run, 'checkpoints')}, where "
                f"ftlit predict, ftlit report and resume=true read them: leave {name} out, or give another hydra.run.dir=..."
            )
