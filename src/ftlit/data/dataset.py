"""Labelled images: files of any kind read as RGB, and the dataset and collate that make batches of them.

What a data source hands on is a `Collection`: images not yet read, with class numbers, in three splits.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2

from ftlit.data.transforms import InputSpec, Transform
from ftlit.errors import UserError, one_line, unknown

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Batch = tuple[Tensor, Tensor]


class BadImage(UserError):
    """An image that cannot be decoded, named in one line, also where a DataLoader's worker process met it."""

    def __init__(self, text: str) -> None:
        # torch rebuilds a worker's exception from the text of its traceback; the last line of that is the line we wrote
        super().__init__(text.strip().splitlines()[-1].removeprefix(f"{__name__}.BadImage: "))


def read_image(path: str | Path, at_least: int | None = None) -> Image.Image:
    """An image file -> PIL image (RGB), upright.

    Args:
        path: a file of any format and mode that PIL decodes; see `to_rgb`.
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides keep this many pixels. A photo of
            12 megapixels is then read in a quarter of the time.

    Raises:
        BadImage: the file is missing, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            return to_rgb(image)
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
        raise BadImage(f"{shown(path)} cannot be read as an image: {one_line(error)}") from error


def image_reader(spec: InputSpec) -> Callable[[str | Path], Image.Image]:
    """`read_image` for a network with this input. Training, evaluation and prediction read through this, so that all see the same pixels.

    Twice the size that a shorter side is resized to is kept: there the result differs by 0.2 of 255 on average, and a random crop
    of a third of the area is never enlarged.
    """
    return partial(read_image, at_least=2 * (spec.resize or spec.size))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image -> RGB, upright: EXIF orientation applied, transparency laid on white, 16 bits scaled to 8."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        image = _grey_8_bits(image)
    if image.getbands()[-1] in ("A", "a") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _grey_8_bits(image: Image.Image) -> Image.Image:
    """Integers count as 16 bits, floats as the narrowest of [0, 1], [0, 255], [0, 65535] that holds them; beyond, the largest is white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64)).clip(0)
    tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    white = next((top for top in tops if values.max() <= top), values.max())
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def shown(path: str | Path) -> str:
    """A path to show: as it is, or quoted and escaped where it holds a line break."""
    return str(path) if str(path).isprintable() else repr(str(path))


@dataclass(frozen=True)
class Examples:
    """Images, or texts, of one split, not yet read, with their labels.

    Args:
        sources: one for each image: what `load` takes.
        labels: the class numbers of each image: one, or any number of them where there are several labels.
        load: source -> PIL image (RGB), or text. Must pickle, for worker processes.
        contents: file or array behind each image, to tell images apart without decoding; `None` where it cannot be told. A source that is
            neither this nor a number is taken for a part of it.
    """

    sources: Sequence[Any]
    labels: Sequence[tuple[int, ...]]
    load: Callable[[Any], Any]
    contents: Sequence[Path | np.ndarray[Any, Any]] | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def subset(self, places: Sequence[int]) -> "Examples":
        """The images at these places, in this order."""
        contents = None if self.contents is None else [self.contents[i] for i in places]
        return Examples([self.sources[i] for i in places], [self.labels[i] for i in places], self.load, contents)


@dataclass(frozen=True)
class Collection:
    """A data set in three splits.

    Args:
        splits: train, val and test, each with at least one image.
        class_names: class number -> name.
        multilabel: whether an image has any number of labels rather than one.
        notes: what a person should know before training, a sentence each.
    """

    splits: Mapping[Split, Examples]
    class_names: list[str]
    multilabel: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[Split, dict[str, int]]:
        """Images of each class in each split; with several labels an image counts for each of them."""
        numbers = {split: Counter(label for labels in self.splits[split].labels for label in labels) for split in SPLITS}
        return {split: {name: numbers[split][i] for i, name in enumerate(self.class_names)} for split in SPLITS}

    def targets(self, split: Split) -> Tensor:
        """Class numbers, int64 (N,); with several labels multi-hot, float32 (N, num_classes)."""
        labels = self.splits[split].labels
        if not self.multilabel:
            return torch.tensor([label for (label,) in labels])
        hot = torch.zeros(len(labels), len(self.class_names))
        for row, numbers in zip(hot, labels, strict=True):
            row[list(numbers)] = 1
        return hot


class LabelledImages(Dataset[Batch]):
    """One split of a collection as (image float32 (3, S, S), or token ids int64 (T,), target) pairs.

    Raises:
        BadImage: while reading, an image that cannot be decoded.
    """

    def __init__(self, collection: Collection, split: Split, transform: Transform) -> None:
        self.examples = collection.splits[split]
        self.targets = collection.targets(split)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Batch:
        return self.transform(self.examples.load(self.examples.sources[i])), self.targets[i]


MIXES: dict[str, Callable[[int], list[nn.Module]]] = {
    "none": lambda num_classes: [],
    # alpha as in torchvision's reference training
    "mixup": lambda num_classes: [v2.MixUp(alpha=0.2, num_classes=num_classes)],
    "cutmix": lambda num_classes: [v2.CutMix(alpha=1.0, num_classes=num_classes)],
    "both": lambda num_classes: [v2.RandomChoice([*MIXES["mixup"](num_classes), *MIXES["cutmix"](num_classes)])],
}


class MixedCollate:
    """Samples -> batch whose images are mixed by mixup (Zhang et al. 2018), cutmix (Yun et al. 2019) or either at random.

    Args:
        mix: `none`, `mixup`, `cutmix` or `both`. All but `none` give soft targets, float32 (N, num_classes).
        num_classes: length of a target.

    Raises:
        UserError: an unknown `mix`.
    """

    def __init__(self, mix: str, num_classes: int) -> None:
        if mix not in MIXES:
            raise unknown("mix", mix, MIXES)
        self.steps = MIXES[mix](num_classes)

    def __call__(self, samples: list[Batch]) -> Batch:
        """(image, target) pairs -> (images, targets)."""
        images, targets = default_collate(samples)
        for step in self.steps:
            images, targets = step(images, targets)
        return images, targets
