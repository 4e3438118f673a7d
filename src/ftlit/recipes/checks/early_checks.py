"""Checks of a composed config without torch, whose import takes seconds: unknown names, missing values, numbers out of
range, paths that do not exist.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ftlit.data.source_paths import existing_csv, existing_folder
from ftlit.errors import UserError
from ftlit.recipes.checks.config_names import check_names
from ftlit.recipes.checks.ranges import check_ranges
from ftlit.recipes.config.candidates import AUTO, GROUP, candidates_of
from ftlit.recipes.config.hydra_internals import choices, hydra_config, run_mode
from ftlit.recipes.config.overrides import given

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
NOT_OF_LAYERS = (  # names that layer-wise pretraining does not read
    *("optimizer", "lr_scheduler", "schedule", "loss", "head", "average", "batchnorm", "decay_all", "compile", "trainer.max_epochs"),
)
PATHS: Mapping[str, tuple[tuple[str, ...], Callable[[str], Path]]] = {  # data source -> values that are paths, and their check
    "ftlit.lit.datamodules.image_sources.folder_data": (("root",), existing_folder),
    "ftlit.lit.datamodules.image_sources.unlabelled_data": (("root",), existing_folder),
    "ftlit.lit.datamodules.image_sources.csv_data": (CSV_FILES, existing_csv),
    "ftlit.lit.datamodules.text_sources.text_csv_data": (CSV_FILES, existing_csv),
}
LABEL_SEPARATORS = {  # data source whose labels are known from its config -> its value for several labels per example; `None`: it has none
    "ftlit.lit.datamodules.image_sources.folder_data": None,
    "ftlit.lit.datamodules.image_sources.digits_data": None,
    "ftlit.lit.datamodules.glyph_source.GlyphData": None,
    "ftlit.lit.datamodules.image_sources.csv_data": "label_separator",
    "ftlit.lit.datamodules.text_sources.text_csv_data": "label_separator",
}
LOSSES = {"ftlit.finetuning.losses.cross_entropy": False, "ftlit.finetuning.losses.bce": True}  # -> whether it takes several labels
WITHOUT_LOSS = ("probe", "advise")  # recipes


def check_early(cfg: DictConfig) -> None:
    """Check what needs neither torch nor the parts of the run.

    Raises:
        UserError: what `check_names` raises; a value that is missing, a number out of its range, a path of a built-in data source that does
            not exist, a candidate of `backbone=auto` that is no option, or a loss for another number of labels than the data have.
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
    if hydra_config() is not None and run_mode() == "RUN":
        check_folder_words(hydra_config().overrides.hydra, is_sweep=False)
    _check_pretraining(cfg)
    _check_loss(cfg)
    _check_callbacks(cfg)
    check_ranges(cfg)


def check_folder_words(words: Sequence[str], *, is_sweep: bool) -> None:
    """Raise `UserError` for the folder of a run given to a sweep, or the reverse: Hydra would ignore it.

    >>> check_folder_words(["hydra.run.dir=runs/a"], is_sweep=True)
    Traceback (most recent call last):
    ftlit.errors.UserError: hydra.run.dir=runs/a is the folder of a single run, and a sweep ignores it: give hydra.sweep.dir=runs/a
    """
    pairs = [word.lstrip("+").partition("=") for word in words]
    folders = {name: value for name, _, value in pairs if name in ("hydra.run.dir", "hydra.sweep.dir")}
    if is_sweep and (folder := folders.get("hydra.run.dir")) is not None:
        remedy = "leave it out" if "hydra.sweep.dir" in folders else f"give hydra.sweep.dir={folder}"
        raise UserError(f"hydra.run.dir={folder} is the folder of a single run, and a sweep ignores it: {remedy}")
    if not is_sweep and [*folders] == ["hydra.sweep.dir"]:  # a job of a sweep that runs by itself has both
        folder = folders["hydra.sweep.dir"]
        raise UserError(
            f"hydra.sweep.dir={folder} is the folder of a sweep, and a single run ignores it: add -m for a sweep, or give "
            f"hydra.run.dir={folder}"
        )


def wrong_loss(*, several: bool) -> UserError:
    """The error for a loss that does not suit the labels.

    Args:
        several: whether an example has several labels.
    """
    if several:
        return UserError("this data has several labels per example, and loss=cross_entropy is for one label: give loss=bce")
    return UserError("this data has one label per example, and loss=bce is for several labels: give loss=cross_entropy")


def _check_loss(cfg: DictConfig) -> None:
    """Compare the loss with the labels, where the config tells how many an example has; otherwise the run does, once it reads the data."""
    source, taken = cfg.data.get("_target_"), LOSSES.get(str(cfg.loss.get("_target_")))
    if source not in LABEL_SEPARATORS or taken is None or cfg.recipe in WITHOUT_LOSS or isinstance(cfg.get("pretrain"), DictConfig):
        return
    separator = LABEL_SEPARATORS[source]
    several = separator is not None and cfg.data.get(separator) is not None
    if several != taken:
        raise wrong_loss(several=several)


def _check_pretraining(cfg: DictConfig) -> None:
    """Refuse an objective of layers in a recipe that trains none, and options of other training beside it."""
    if not isinstance(cfg.get("pretrain"), DictConfig) or hydra_config() is None:
        return
    chosen = f"pretrain={choices()['pretrain']}"
    if cfg.recipe != "pretrain":
        raise UserError(f"{chosen} has an effect with recipe=pretrain only: give recipe=pretrain too, or leave {chosen} out")
    for word in given(*NOT_OF_LAYERS):
        name, _, value = word.lstrip("+").partition("=")
        own = "pretrain.epochs" if name == "trainer.max_epochs" else f"pretrain.{name}"
        meant = own if OmegaConf.select(cfg, own) is not None and "." in name else None
        remedy = f"give {meant}={value}" if meant else f"leave {word} out"
        raise UserError(
            f"{word} has no effect with {chosen}, which trains each layer by itself: {remedy} (docs/pretraining.md#options-of-the-training)"
        )


def _check_callbacks(cfg: DictConfig) -> None:
    """Check callbacks and loggers as far as their classes need not be imported."""
    for group in ("callbacks", "logger"):
        for name, node in cfg[group].items():
            if node and not (isinstance(node, DictConfig) and "_target_" in node):
                raise UserError(f"{group}.{name}={node} names no class: give {group}.{name}._target_=..., or {group}.{name}=null for none")
    if "csv" in cfg.logger and not isinstance(cfg.logger.csv, DictConfig):
        raise UserError("logger.csv=null is not supported, because ftlit report and resume=true read metrics.csv: leave logger.csv out")
    for name, place in OF_A_RUN.items():
        path = OmegaConf.select(cfg, name)
        if path is not None and Path(str(path)) != (Path(place) if name.endswith("filename") else Path(cfg.paths.run, place)):
            raise UserError(
                f"{name}={path} is not supported, because ftlit predict, ftlit report and resume=true read "
                f"{Path(cfg.paths.run, 'checkpoints')}/best.ckpt and last.ckpt: leave {name} out"
            )
