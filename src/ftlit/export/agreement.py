"""Compare an exported file that prepares images itself with `ftlit predict`, on photos: how often both name the same class."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ftlit.data.images import read_image, read_image_in_range
from ftlit.export.program_files import ImagesToLogitsFunction
from ftlit.inference.network import Network
from ftlit.inference.predict import rows_of
from ftlit.inference.prediction import Prediction
from ftlit.report.run_files import read_predictions

MOST_PHOTOS = 500


class Agreement(NamedTuple):
    """How often the file and `ftlit predict` name the same class.

    Args:
        same: number of such images.
        images: number of images that were compared.
        least: the share of images with the same class that is enough.
        final: whether the run was trained on all images, so that it has no test images.
    """

    same: int
    images: int
    least: float
    final: bool = False

    @property
    def enough(self) -> bool:
        """Whether enough images have the same class; true for none."""
        return self.same >= self.least * self.images

    def describe(self) -> str:
        """The comparison as text."""
        if not self.images:
            why = "has no test images (final=true)" if self.final else "has no test images whose files are there"
            return f"the run {why}, so the file was not compared with ftlit predict on photos"
        return f"the file and ftlit predict name the same class for {self.same} of {self.images} test images of the run"


def test_images(run: Path) -> list[Path]:
    """The test images of a run that are files, at most `MOST_PHOTOS`, evenly among all."""
    found = read_predictions(run) if run.is_dir() else None
    files = [path for path in map(Path, found.items if found else ()) if path.is_file()]
    return [files[place] for place in torch.linspace(0, len(files) - 1, min(len(files), MOST_PHOTOS)).long().tolist()]


def compare(network: Network, logits: ImagesToLogitsFunction, images: Sequence[Path], least: float) -> Agreement:
    """Predict images with `ftlit predict`, and, decoded at their full size, with the file. Those that cannot be read do not count.

    Args:
        network: that was exported; it may be moved to a GPU.
        logits: of the file, from one image (1, 3, H, W) of 8 bits.
        images: paths.
        least: see `Agreement`.
    """
    same = compared = 0
    for path, (_, prediction) in zip(images, rows_of(network, [(str(path), str(path)) for path in images], 32, 0), strict=True):
        if isinstance(prediction, Prediction):
            compared += 1
            with torch.inference_mode():
                place = int(logits(_pixels(network, path)).argmax())
            same += network.class_names[place] == prediction.label
    return Agreement(same, compared, least)


def _pixels(network: Network, path: Path) -> torch.Tensor:
    grey_range = network.input_spec.grey_range
    image = read_image(path) if grey_range is None else read_image_in_range(path, None, grey_range)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
