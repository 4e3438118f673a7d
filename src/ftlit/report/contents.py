"""What the report of a run is drawn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass
class StageRecord:
    """What became of a stage.

    Args:
        name: of it.
        epoch: the first.
        step: the first optimizer step.
        seconds: that it took, validation and all.
        bytes: of memory: the most that it has held on a GPU; else what the process held at the end of an epoch, or the most of them.
    """

    name: str
    epoch: int
    step: int
    seconds: float = 0.0
    bytes: int = 0


@dataclass(frozen=True)
class Predictions:
    """What the network says of the test images.

    Args:
        items: path, number or text of each.
        labels: class numbers of each: one, or any number where there are several labels.
        predicted: the same of what it says.
        probability: of the likeliest class. Where there are several labels: how sure it is, in [0.5, 1], of the one that it is most sure
            and wrong of, or, where all are right, of the surest.
    """

    items: Sequence[str]
    labels: Sequence[tuple[int, ...]]
    predicted: Sequence[tuple[int, ...]]
    probability: Array


@dataclass(frozen=True)
class Pictures:
    """Images as the network sees them, and what to write beneath.

    Args:
        images: uint8 (n, S, S, 3).
        captions: a text each.
    """

    images: Array
    captions: Sequence[str]


@dataclass(frozen=True)
class RunData:
    """All that the report of a run shows; what the run did not leave is empty, or `None`.

    Args:
        folder: of the run.
        run: `run.json`.
        class_names: class number -> name.
        metrics: rows of metrics.csv, numbers only.
        stages: in order.
        tested: what it says of test images.
        features: (n, C) float32 of some test images, and their labels (n,).
        samples: training images.
        mistakes: test images that it is most sure of, wrongly.
        depths: cut -> accuracy on held-out images, the lowest first, by kind of probe.
        result: accuracy and so on, by split.
    """

    folder: Path
    run: Mapping[str, Any]
    class_names: Sequence[str]
    metrics: Sequence[Mapping[str, float]]
    stages: Sequence[StageRecord]
    tested: Predictions | None
    features: tuple[Array, Array] | None
    samples: Pictures | None
    mistakes: Pictures | None
    depths: Mapping[str, Mapping[str, float]]
    result: Mapping[str, float]
