"""Choose among backbones by cross-validated heads on a few training images: successive halving, and the faster of equally good ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt

from torch import Tensor

from ftlit.errors import UserError

IMAGES = (200, 2000)  # training images of the two rounds
FINALISTS = 2  # at least so many are compared in the second round


@dataclass(frozen=True)
class MeasuredBackbone:
    """What a backbone is judged by.

    Args:
        correct: whether each of M images is classified correctly by a head that was fitted without it (M,); the same images in the same
            order for all backbones.
        images_per_second: speed of the backbone.
        bytes: size of its weights.
    """

    correct: Tensor = field(repr=False)
    images_per_second: float
    bytes: int

    @property
    def accuracy(self) -> float:
        """Share of the images that are classified correctly."""
        return float(self.correct.double().mean())

    @property
    def standard_error(self) -> float:
        """Of the accuracy."""
        return sqrt(self.accuracy * (1 - self.accuracy) / len(self.correct))

    def is_within_one_error(self, best: "MeasuredBackbone") -> bool:
        """Whether it is at most one standard error of the difference less accurate than `best`, on the same images.

        The difference is that of paired results, so its error is far smaller than that of either accuracy (the one-standard-error rule of
        Breiman et al. 1984, section 3.4.3, for paired samples).
        """
        difference = best.correct.double() - self.correct.double()
        return float(difference.mean()) <= float(difference.std(correction=0)) / sqrt(len(difference))


@dataclass(frozen=True)
class BackboneChoice:
    """A choice among backbones.

    Args:
        chosen: its name.
        most_accurate: the name of the most accurate one among those of the last round.
        measured: name -> the measurement of its last round, in the order in which the names were given.
        images: name -> number of training images of that round.
    """

    chosen: str
    most_accurate: str
    measured: dict[str, MeasuredBackbone]
    images: dict[str, int]


def choose_backbone(
    names: Sequence[str],
    measure: Callable[[str, int], MeasuredBackbone],
    images: int,
    rounds: Sequence[int] = IMAGES,
) -> BackboneChoice:
    """Choose by successive halving (Jamieson and Talwalkar 2016): all are measured on a few images, the better half on more.

    In the last round the fastest is chosen of those that are within one standard error of the most accurate one.

    Args:
        names: of the candidates.
        measure: name and number of training images -> measurement.
        images: how many training images there are; no more are asked for.
        rounds: training images of each round, in ascending order.

    Raises:
        UserError: there is no candidate.
    """
    if not names:
        raise UserError("there is no backbone to choose from: give at least one")
    measured: dict[str, MeasuredBackbone] = {}
    asked: dict[str, int] = {}
    left = list(dict.fromkeys(names))
    sizes = sorted({min(size, images) for size in rounds})
    for number, size in enumerate(sizes):
        measured |= {name: measure(name, size) for name in left}
        asked |= dict.fromkeys(left, size)
        ranked = sorted(left, key=lambda name: (-measured[name].accuracy, -measured[name].images_per_second))
        if number < len(sizes) - 1 and len(left) > 1:
            left = ranked[: max(FINALISTS, ceil(len(ranked) / 2))]
    best = ranked[0]
    equal = [name for name in ranked if measured[name].is_within_one_error(measured[best])]
    chosen = max(equal, key=lambda name: measured[name].images_per_second)
    return BackboneChoice(chosen, best, measured, asked)
