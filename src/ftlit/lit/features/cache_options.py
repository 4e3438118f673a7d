"""The options of the config group `cache`: their checks, and what `pixels` needs to know of the data and the trainer."""

from collections.abc import Sequence
from math import inf

from lightning.pytorch import Trainer

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError, invalid
from ftlit.features.keys import DTYPE_OF
from ftlit.features.pixel_plan import PIXEL_CHOICES, PixelChoice, StorablePixels
from ftlit.features.stored_pixels import StoredPixels, reads_files
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.plain_arguments import plain_arguments


def check_options(data: ImageData, dtype: str | None, max_gb: float) -> None:
    """Raise `UserError` for data whose images cannot be read one by one, and for options out of their range; see `FeatureData`."""
    if overrides := ", ".join(data.batch_overrides):
        name = type(data).__name__
        raise UserError(
            f"FeatureData cannot be used with {name}, because {name} overrides {overrides}: train without FeatureData, or "
            f"remove {overrides}"
        )
    check_store_options(dtype, max_gb)


@plain_arguments
def check_store_options(dtype: str | None, max_gb: float) -> None:
    """Raise `UserError` for options out of their range."""
    if dtype is not None and dtype not in DTYPE_OF:
        raise invalid("cache.dtype", dtype, DTYPE_OF)
    if max_gb < 0:
        raise UserError(f"cache.max_gb={max_gb}: give a number, 0 or more")


def storable_pixels(data: ImageData, choice: PixelChoice) -> StorablePixels | None:
    """The images of train and val as they would be stored; `None` for texts, and for views that cannot be stored.

    Raises:
        UserError: an unknown choice, or `True` for such views.
    """
    if choice != "auto" and not isinstance(choice, bool):
        raise invalid("cache.pixels", choice, PIXEL_CHOICES)
    train, val = (StoredPixels.of(data.transforms[split]) for split in ("train", "val"))
    if train and val:
        sizes = {split: len(data.collection.splits[split]) for split in ("train", "val")}
        return StorablePixels({"train": train, "val": val}, sizes, reads_files(data.collection.splits["train"]))
    if choice is not True:
        return None
    if not isinstance(data.input_spec, InputSpec):
        raise UserError(f"cache.pixels=true stores images, but this data set has {data.input_spec.noun}: give cache.pixels=auto")
    if isinstance(data.input_spec, InputSpec) and data.input_spec.channels != 3:
        raise UserError(f"cache.pixels=true stores RGB images, but backbone.in_chans={data.input_spec.channels}: give cache.pixels=auto")
    raise UserError("cache.pixels=true supports data.augment=none and data.augment=photo: give one of these, or cache.pixels=auto")


def readings(trainer: Trainer, spans: Sequence[range], images: int, batch_size: int) -> list[float]:
    """How often each stage reads a training image at most, from the epochs of the stages and the limits of the trainer."""
    together, limit = batch_size * trainer.world_size, trainer.limit_train_batches
    share = min(1.0, limit * together / images if isinstance(limit, int) else limit)
    most = trainer.max_steps * trainer.accumulate_grad_batches * together / images if trainer.max_steps >= 0 else inf
    return [min(share * len(span), most) for span in spans]
