"""The interface of image data that can be read image by image: what feature extraction, probes, pretraining and advice need."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

from ftlit.data.dataset import Collection, Split
from ftlit.data.input_spec import InputSpec
from ftlit.data.tokens import TextSpec
from ftlit.data.transforms import Transform
from ftlit.errors import UserError
from ftlit.lit.datamodules.image_data import ImageData


@runtime_checkable
class IndexedImages(Protocol):
    """Image data whose images can be read in any order, in the evaluation view. `ImageData` and its subclasses have this interface.

    Attributes:
        collection: the images, in three splits.
        input_spec: what the network expects.
        transforms: image -> tensor; of val and test without augmentation.
        class_names: in the order of the class numbers.
        num_classes: number of classes; 0 without labels.
        multilabel: whether an image has several labels.
        batch_size: images in a batch of one process.
        seed: of the order of the images.
        per_class: limit on the training images of each class; `None`: all.
    """

    collection: Collection
    input_spec: InputSpec | TextSpec
    transforms: dict[Split, Transform]
    class_names: list[str]
    num_classes: int
    multilabel: bool
    batch_size: int
    seed: int
    per_class: int | None

    @property
    def num_workers(self) -> int:
        """Processes that load images."""

    @property
    def batch_overrides(self) -> Sequence[str]:
        """Names of the overridden methods that change batches; empty: training reads `collection` as `transforms` give it."""

    @property
    def counts(self) -> Mapping[Split, Mapping[str, int]]:
        """Images of each class by split."""

    def with_few(self, per_class: int) -> Self:
        """Return the same data with at most this number of training images of each class."""

    def with_share(self, share: float) -> Self:
        """Return the same data with this share of the training images of each class."""

    def train_dataloader(self) -> Any:
        """Return shuffled, augmented batches."""

    def val_dataloader(self) -> Any:
        """Return batches of the val split in the evaluation view."""


def number_of_views(images: IndexedImages, fitted_on: Sequence[Split] = ()) -> int:
    """Augmented views that are read of each image, see `ImageData`; other data have none."""
    return images.number_of_views(fitted_on) if isinstance(images, ImageData) else 0


def require_indexed_images(data: object, reader: str) -> IndexedImages:
    """Return `data`. Raises `UserError` if it is data of another type, or overrides its batches, which `reader` would not read."""
    if not isinstance(data, IndexedImages):
        raise UserError(
            f"{reader} needs to read single images, but {type(data).__name__} does not support this: "
            "use one of the data=... options, ImageData, or a subclass of ImageData"
        )
    if overrides := ", ".join(data.batch_overrides):
        name = type(data).__name__
        raise UserError(
            f"{reader} reads the images one by one, so it would ignore the batches of {name}, which overrides {overrides}: "
            f"remove {overrides} from {name}"
        )
    return data
