"""Replace `auto` in `checkpoint`, `compile` and the settings that depend on the hardware: precision, `float32`, `optimizer.fused`."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from ftlit.errors import UserError
from ftlit.inference.slim import base_record, loads_again
from ftlit.lit.strategies import keeps_whole_weights
from ftlit.models.backbone import Backbone
from ftlit.models.precision import device_of, matmul_precision_of, precision_for, set_matmul_precision
from ftlit.recipes.checks.ranges import AUTO, HARDWARE_SETTINGS
from ftlit.recipes.resuming.resume import read_config
from ftlit.recipes.run.artifacts import images_of
from ftlit.recipes.run.trainer import strategy_class

FLOAT32 = "32-true"
ASSUMED_SPEED = 1.5e14  # operations per second of a GPU: only for `compile=auto`
MIN_SECONDS_TO_COMPILE = 300.0


def resolve_hardware_settings(cfg: DictConfig, backbone: Backbone) -> list[str]:
    """Replace `auto` in `HARDWARE_SETTINGS`, in place, and set the precision of float32 matrix products of this process.

    The values depend on the device and the network, so that the same command gives the same result on the same machine. A run that is
    resumed keeps the values that it began with, also on other hardware.

    Returns:
        Notes on values that would be others here.

    Raises:
        UserError: a fused optimizer that clips gradients under mixed precision.
    """
    here = _values_here(cfg, backbone)
    stored = read_config(cfg.paths.run) if cfg.resume else None
    notes = []
    for name in [name for name in HARDWARE_SETTINGS if OmegaConf.select(cfg, name) == AUTO]:
        value = OmegaConf.select(stored.settings, name, default=HARDWARE_SETTINGS[name]) if stored else here[name]
        OmegaConf.update(cfg, name, value)
        if value != here[name]:
            notes.append(f"the resumed run keeps {name}={value}; a new run on this machine would use {here[name]}")
    if OmegaConf.select(cfg, "optimizer.fused") and _clips_mixed(cfg, str(cfg.trainer.get("precision"))):
        raise UserError(
            f"gradients cannot be clipped with optimizer.fused=true and trainer.precision={cfg.trainer.precision}: "
            "give optimizer.fused=false, or leave trainer.gradient_clip_val out"
        )
    set_matmul_precision(cfg.float32)
    return notes


def base_of(cfg: DictConfig, backbone: Backbone) -> dict[str, str] | None:
    """See `base_record`; `None` where checkpoints will be full. With `checkpoint=auto` the schedule decides, see `resolve_checkpoint`."""
    return base_record(backbone) if cfg.checkpoint == "slim" or (cfg.checkpoint == AUTO and loads_again(backbone)) else None


def resolve_checkpoint(cfg: DictConfig, backbone: Backbone, *, few: bool) -> str:
    """Replace `checkpoint=auto`, in place: slim where few of the backbone's weights change and all can be loaded again anywhere, else full.

    A run that is resumed keeps the value that it began with. Returns the value.

    Args:
        cfg: the composed config.
        backbone: as it was loaded.
        few: whether no stage trains a whole layer of it.
    """
    if cfg.checkpoint == AUTO:
        stored = read_config(cfg.paths.run) if cfg.resume else None
        if stored:
            cfg.checkpoint = OmegaConf.select(stored.settings, "checkpoint", default="full")
        else:
            whole = keeps_whole_weights(strategy_class(cfg))
            cfg.checkpoint = "slim" if few and loads_again(backbone) and whole else "full"
    return str(cfg.checkpoint)


def resolve_compile(cfg: DictConfig, backbone: Backbone, data: Any, *, frozen: bool) -> bool:
    """Replace `compile=auto`, in place: true on CUDA where training takes long enough to repay what compiling takes. Returns the value.

    It depends on the plan only, not on a clock: forward and backward passes of all images at an assumed speed. A run that is resumed keeps
    the value that it began with.
    """
    if cfg.compile == AUTO:
        stored = read_config(cfg.paths.run) if cfg.resume else None
        if stored:
            cfg.compile = bool(OmegaConf.select(stored.settings, "compile", default=False))
        else:
            on_gpu = device_of(str(cfg.trainer.get("accelerator", AUTO))).type == "cuda"
            cfg.compile = on_gpu and not frozen and _repays_compiling(cfg, backbone, data)
    return bool(cfg.compile)


def _repays_compiling(cfg: DictConfig, backbone: Backbone, data: Any) -> bool:
    """Whether training takes so long that compiling pays; false for data of another kind than ours, whose size is not known."""
    images = images_of(data)
    if images is None:
        return False
    operations = backbone.on_meta(images.input_spec.shape)[backbone.cuts[-1]][1]
    read = len(images.collection.splits["train"]) * max(0, cfg.trainer.get("max_epochs") or 0)
    return bool(3 * operations * read / ASSUMED_SPEED > MIN_SECONDS_TO_COMPILE)


def _values_here(cfg: DictConfig, backbone: Backbone) -> dict[str, Any]:
    """The value that `auto` stands for on this machine, for each of `HARDWARE_SETTINGS`."""
    device = device_of(str(cfg.trainer.get("accelerator", AUTO)))
    precision = FLOAT32 if cfg.recipe == "pretrain" else precision_for(backbone, device)  # pretraining in others is untested
    given = cfg.trainer.get("precision")
    fused = device.type in ("cpu", "cuda") and not _clips_mixed(cfg, str(precision if given == AUTO else given))
    return {
        "trainer.precision": precision,
        "float32": matmul_precision_of(device),
        "optimizer.fused": fused or None,
        "cache.pixels": AUTO,  # the plan decides
    }


def _clips_mixed(cfg: DictConfig, precision: str) -> bool:
    """Whether gradients are clipped under mixed precision, which Lightning refuses for fused optimizers."""
    return precision.endswith("mixed") and cfg.trainer.get("gradient_clip_val") is not None
