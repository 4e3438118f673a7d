"""The data that the report of a run shows: stages, predictions, images, features, metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
NEAREST = 3  # training images beside each of the most confident errors


@dataclass
class StageRecord:
    """A stage as it was run.

    Args:
        name: of the stage.
        epoch: its first epoch.
        step: its first optimizer step.
        seconds: its duration, validation included.
        bytes: of memory: the peak on a GPU; on a CPU the largest that the process held at the end of an epoch.
    """

    name: str
    epoch: int
    step: int
    seconds: float = 0.0
    bytes: int = 0


OPTIONAL = ("uncalibrated", "of_label", "second", "of_second")  # fields of `Predictions`


@dataclass(frozen=True)
class Predictions:
    """Predictions on the test images.

    Args:
        items: path, number or text of each image.
        labels: true class numbers per image: one, or any number for data with several labels.
        predicted: predicted class numbers, likewise.
        probability: of the most probable class. With several labels: the confidence, in [0.5, 1], of the most confident wrong label, or of
            the most confident label if all are right.
        uncalibrated: the same at temperature 1, see `ftlit.probes.fitted_head.calibration`; `None` where the head has no other temperature.
        of_label: probability of the true class; with `second` and `of_second` of images with one label each, and else `None`.
        second: number of the second most probable class.
        of_second: its probability.
    """

    items: Sequence[str]
    labels: Sequence[tuple[int, ...]]
    predicted: Sequence[tuple[int, ...]]
    probability: Array
    uncalibrated: Array | None = None
    of_label: Array | None = None
    second: Array | None = None
    of_second: Array | None = None

    @property
    def optional(self) -> dict[str, Array]:
        """The arrays that are known, of those that may be `None`, by name."""
        return {name: values for name in OPTIONAL if (values := getattr(self, name)) is not None}


@dataclass(frozen=True)
class SuspectRow:
    """A training example that is possibly mislabelled, as `suspects.csv` lists it.

    Args:
        item: path, number or text.
        label: name of its class.
        suggested: name of the class that is most probable without the example.
        probability: of the label.
        suggested_probability: of the suggested class.
        place: of the example in the training split.
    """

    item: str
    label: str
    suggested: str
    probability: float
    suggested_probability: float
    place: int


@dataclass(frozen=True)
class Pictures:
    """Images as the network sees them, and their captions.

    Args:
        images: uint8 (n, S, S, 3).
        captions: one per image.
    """

    images: Array
    captions: Sequence[str]


@dataclass(frozen=True)
class RunData:
    """All that the report of a run shows; parts that the run did not leave are empty or `None`.

    Args:
        folder: of the run.
        about: `run.json`: title, plan, warnings, layers, counts, noun of the examples; `state` and
            `metrics` of a run that was interrupted, or that has no test.
        class_names: class number -> name.
        metrics: rows of metrics.csv, numbers only.
        stages: in order.
        predictions: on the test images.
        features: (n, C) float32 of some test images, their labels (n,), -1 for no label, and whether each was classified wrongly (n,), if
            that is known.
        samples: training images.
        mistakes: the test images with the most confident errors.
        depths: kind of probe -> cut -> accuracy on held-out images, the lowest cut first.
        result: `result.json`: metrics, and what they hold for.
        suspects: training examples that are possibly mislabelled; `None` where nothing was held out to find them.
        suspected: images of the first of them.
        nearest: for each image of `mistakes` the `NEAREST` training images with the most similar features, one image after the other.
        maps: for each image of `mistakes` what spoke for the predicted class and for its own, see `ftlit.models.class_maps`.
    """

    folder: Path
    about: Mapping[str, Any]
    class_names: Sequence[str]
    metrics: Sequence[Mapping[str, float]]
    stages: Sequence[StageRecord]
    predictions: Predictions | None
    features: tuple[Array, Array, Array | None] | None
    samples: Pictures | None
    mistakes: Pictures | None
    depths: Mapping[str, Mapping[str, float]]
    result: Mapping[str, Any]
    suspects: Sequence[SuspectRow] | None = None
    suspected: Pictures | None = None
    nearest: Pictures | None = None
    maps: Pictures | None = None

    @property
    def noun(self) -> str:
        """The examples: images or texts; `images` for runs of earlier releases."""
        return str(self.about.get("noun", "images"))
