"""Compare an exported file that prepares images itself with `ftlit predict`, on photos: how often both name the same class."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ftlit.data.dataset import Split
from ftlit.data.images import read_image, read_image_in_range
from ftlit.data.splitting.stored_split import FILE, read_split
from ftlit.export.program_files import ImagesToLogitsFunction
from ftlit.inference.network import Network
from ftlit.inference.predict import rows_of
from ftlit.inference.prediction import Prediction
from ftlit.report.run_files import read_predictions

MOST_PHOTOS = 500
NO_FILES = "no test images whose files are there"
MOVED = "if the data were moved, add data.root=FOLDER or data.csv=FILE to the command"
LOW_AGREEMENT = "use predict.py of an export without --with-preprocessing, which prepares images exactly as ftlit predict does"


class Agreement(NamedTuple):
    """How often the file and `ftlit predict` name the same class.

    Args:
        same: number of such images.
        images: number of images that were compared.
        least: the share of images with the same class that is enough.
        split: of the images: `test`, or `train` of a run that was trained on all images, so that it has no test images.
    """

    same: int
    images: int
    least: float
    split: Split

    @property
    def enough(self) -> bool:
        """Whether enough images have the same class; true for none."""
        return self.same >= self.least * self.images

    def describe(self) -> str:
        """The comparison as text."""
        if not self.images:
            why = "no test images (final=true), and its training images are not there as files" if self.split == "train" else NO_FILES
            return f"the run has {why}, so the file was not compared with ftlit predict on photos"
        kind = "training images of the run, which has no test images (final=true)" if self.split == "train" else "test images of the run"
        return f"the file and ftlit predict name the same class for {self.same} of {self.images} {kind}"

    def messages(self) -> Iterator[str]:
        """Lines for the command line: the comparison, and what to do where there was none, or where the class differs too often."""
        yield self.describe() if self.images else f"{self.describe()}; {MOVED}"
        if not self.enough:
            yield f"the same class is needed for at least {self.least:.0%}: {LOW_AGREEMENT}"


class Photos(NamedTuple):
    """Images of a run that are files.

    Args:
        split: see `Agreement`.
        paths: of the images.
    """

    split: Split
    paths: Sequence[Path]


def photos_of(run: Path) -> Photos:
    """The test images of a run that are files, or its training images if it has no test images; see `some_of`."""
    split, names = _names(run)
    return some_of(split, [path for path in map(Path, names) if path.is_file()])


def some_of(split: Split, files: Sequence[Path]) -> Photos:
    """At most `MOST_PHOTOS` of these images, evenly among all."""
    return Photos(split, [files[place] for place in torch.linspace(0, len(files) - 1, min(len(files), MOST_PHOTOS)).long().tolist()])


def _names(run: Path) -> tuple[Split, Sequence[str]]:
    found = read_predictions(run) if run.is_dir() else None
    if found or not (run / FILE).is_file():
        return "test", found.items if found else ()
    images = read_split(run).images
    split: Split = "test" if images["test"] else "train"
    return split, [name for *_, name in images[split]]


def compare(network: Network, logits: ImagesToLogitsFunction, photos: Photos, least: float) -> Agreement:
    """Predict images with `ftlit predict`, and, decoded at their full size, with the file. Those that cannot be read do not count.

    Args:
        network: that was exported; it may be moved to a GPU.
        logits: of the file, from one image (1, 3, H, W) of 8 bits.
        photos: see `photos_of`.
        least: see `Agreement`.
    """
    same = compared = 0
    rows = rows_of(network, [(str(path), str(path)) for path in photos.paths], 32, 0)
    for path, (_, prediction) in zip(photos.paths, rows, strict=True):
        if isinstance(prediction, Prediction):
            compared += 1
            with torch.inference_mode():
                place = int(logits(_pixels(network, path)).argmax())
            same += network.class_names[place] == prediction.label
    return Agreement(same, compared, least, photos.split)


def _pixels(network: Network, path: Path) -> torch.Tensor:
    grey_range = network.input_spec.grey_range
    image = read_image(path) if grey_range is None else read_image_in_range(path, None, grey_range)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
